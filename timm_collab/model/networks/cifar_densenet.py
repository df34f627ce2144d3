"""DenseNet for 32x32 images, as run on CIFAR-10 without bottlenecks and compression (sections 3 and 4 of the paper).

Papers:
* `Densely Connected Convolutional Networks` - https://arxiv.org/abs/1608.06993
"""
from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from timm.layers import LayerType, get_norm_act_layer
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._manipulate import MATCH_PREV_GROUP
from timm.models.densenet import DenseTransition
from torch import Tensor, nn

from .cifar import CifarNet, cifar_cfg

__all__ = ['CifarDenseNet']  # the decorator adds each entry point


class DenseBlock(nn.Sequential):
    """Densely connected layers: each takes the block's input and the outputs of all layers before it."""

    def forward(self, x: Tensor) -> Tensor:
        """Append each layer's channels to `[B, C, height, width]`."""
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


class CifarDenseNet(CifarNet):
    """Densely connected network with a 3x3 stem and one 3x3 convolution per layer.

    Args:
        growth_rate: Channels that each layer adds (k in the paper).
        block_config: Number of layers of each dense block.
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Number of image channels.
        global_pool: Type of the pooling before the classifier.
        stem_width: Channels of the stem.
        act_layer: Activation layer.
        norm_layer: Normalization layer.
        drop_rate: Dropout rate before the classifier.
        proj_drop_rate: Dropout rate after each convolution of the dense blocks.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    classifier_name = 'classifier'

    def __init__(
            self,
            growth_rate: int = 12,
            block_config: tuple[int, ...] = (12, 12, 12),
            num_classes: int = 10,
            in_chans: int = 3,
            global_pool: str = 'avg',
            stem_width: int = 16,
            act_layer: LayerType = 'relu',
            norm_layer: LayerType = 'batchnorm2d',
            drop_rate: float = 0.,
            proj_drop_rate: float = 0.,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        dd = {'device': device, 'dtype': dtype}
        norm_act_cls = get_norm_act_layer(norm_layer, act_layer=act_layer)

        chs = stem_width
        self.features = nn.Sequential(OrderedDict(conv0=nn.Conv2d(in_chans, chs, 3, padding=1, bias=False, **dd)))
        self.feature_info.append({'num_chs': chs, 'reduction': 1, 'module': 'features.conv0'})
        for i, num_layers in enumerate(block_config, start=1):
            block = DenseBlock()
            for j in range(1, num_layers + 1):
                block.add_module(f'denselayer{j}', nn.Sequential(OrderedDict(
                    norm=norm_act_cls(chs, **dd),
                    conv=nn.Conv2d(chs, growth_rate, 3, padding=1, bias=False, **dd),
                    drop=nn.Dropout(proj_drop_rate),
                )))
                chs += growth_rate
            self.features.add_module(f'denseblock{i}', block)
            if i < len(block_config):
                self.feature_info.append(
                    {'num_chs': chs, 'reduction': 2 ** (i - 1), 'module': f'features.denseblock{i}'})
                self.features.add_module(f'transition{i}', DenseTransition(chs, chs, norm_act_cls, **dd))
        self.features.add_module('norm', norm_act_cls(chs, **dd))
        self.feature_info.append(
            {'num_chs': chs, 'reduction': 2 ** (len(block_config) - 1), 'module': 'features.norm'})

        self._add_head(chs, global_pool, **dd)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by block (coarse) or layer, for layer-wise learning rates."""
        return {
            'stem': r'^features\.conv0',
            'blocks': r'^features\.(?:denseblock|transition)(\d+)' if coarse else [
                (r'^features\.denseblock(\d+)\.denselayer(\d+)', None),
                (r'^features\.transition(\d+)', MATCH_PREV_GROUP),
            ],
        }

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last feature map, normalized, [B, num_features, height / 4, width / 4]."""
        return checkpoint_seq(self.features, x) if self.grad_checkpointing else self.features(x)


def _create_cifar_densenet(variant: str, pretrained: bool = False, **kwargs: Any) -> CifarDenseNet:
    feature_cfg = {'flatten_sequential': True, 'out_indices': (0, 1, 2, 3)}
    return build_model_with_cfg(CifarDenseNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


default_cfgs = generate_default_cfgs({
    'cifar_densenet40_12.untrained': cifar_cfg(
        first_conv='features.conv0', classifier='classifier', paper_ids='arXiv:1608.06993'),
})


@register_model
def cifar_densenet40_12(pretrained: bool = False, **kwargs: Any) -> CifarDenseNet:
    """DenseNet with 40 layers and growth rate 12 for 32x32 images, 1.0 M parameters."""
    model_args = dict(growth_rate=12, block_config=(12, 12, 12), **kwargs)
    return _create_cifar_densenet('cifar_densenet40_12', pretrained, **model_args)
