"""ResNet for 32x32 images, as run on CIFAR-10 (section 4.2 of the paper).

Papers:
* `Deep Residual Learning for Image Recognition` - https://arxiv.org/abs/1512.03385
"""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath, LayerType, get_act_layer, get_norm_layer
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from .cifar import CifarNet, cifar_cfg

__all__ = ['CifarResNet']  # the decorator adds each entry point


class PadShortcut(nn.Module):
    """Identity shortcut to a smaller and wider feature map, without parameters (option A of the paper).

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output, those added are zeros.
        stride: Keep every stride-th pixel of each row and column.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.pad_chs = out_chs - in_chs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample `[B, in_chs, height, width]` and append zero channels."""
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.pad_chs))


class CifarResNet(CifarNet):
    """Residual network with a 3x3 stem, basic blocks and parameter-free shortcuts.

    Args:
        layers: Number of blocks of each of the three stages.
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Number of image channels.
        global_pool: Type of the pooling before the classifier.
        channels: Width of each stage; the stem has that of the first.
        act_layer: Activation layer.
        norm_layer: Normalization layer.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Stochastic depth rate of the last block, growing linearly from 0 at the first.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

    classifier_name = 'fc'

    def __init__(
            self,
            layers: tuple[int, int, int],
            num_classes: int = 10,
            in_chans: int = 3,
            global_pool: str = 'avg',
            channels: tuple[int, int, int] = (16, 32, 64),
            act_layer: LayerType = nn.ReLU,
            norm_layer: LayerType = nn.BatchNorm2d,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__(num_classes, in_chans, drop_rate)
        dd = {'device': device, 'dtype': dtype}
        act_cls, norm_cls = get_act_layer(act_layer), get_norm_layer(norm_layer)

        in_chs = channels[0]
        self.conv1 = nn.Conv2d(in_chans, in_chs, kernel_size=3, padding=1, bias=False, **dd)
        self.bn1 = norm_cls(in_chs, **dd)
        self.act1 = act_cls(inplace=True)
        self.feature_info.append({'num_chs': in_chs, 'reduction': 1, 'module': 'act1'})

        stages = []
        block_idx, last_block = 0, sum(layers) - 1
        for stage_idx, (num_blocks, out_chs) in enumerate(zip(layers, channels, strict=True)):
            blocks = []
            for i in range(num_blocks):
                stride = 2 if stage_idx > 0 and i == 0 else 1
                drop_path = drop_path_rate * block_idx / last_block
                blocks.append(BasicBlock(
                    in_chs,
                    out_chs,
                    stride=stride,
                    downsample=PadShortcut(in_chs, out_chs, stride) if stride > 1 or in_chs != out_chs else None,
                    act_layer=act_cls,
                    norm_layer=norm_cls,
                    drop_path=DropPath(drop_path) if drop_path > 0. else None,
                    **dd,
                ))
                in_chs = out_chs
                block_idx += 1
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append(
                {'num_chs': out_chs, 'reduction': 2 ** stage_idx, 'module': f'layer{stage_idx + 1}'})
        self.layer1, self.layer2, self.layer3 = stages

        self._add_head(in_chs, global_pool, **dd)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by stage (coarse) or block, for layer-wise learning rates."""
        return {'stem': r'^conv1|bn1', 'blocks': r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'}

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the feature map of the last stage, [B, num_features, height / 4, width / 4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return x


def _create_cifar_resnet(variant: str, depth: int, pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    # The stem, the classifier, and three stages of blocks with two convolutions each: depth = 6 * blocks + 2.
    blocks = (depth - 2) // 6
    model_args = dict(layers=(blocks, blocks, blocks), **kwargs)
    feature_cfg = {'out_indices': (0, 1, 2, 3)}
    return build_model_with_cfg(CifarResNet, variant, pretrained, feature_cfg=feature_cfg, **model_args)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cifar_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:1512.03385', **kwargs)


default_cfgs = generate_default_cfgs({
    'cifar_resnet8.untrained': _cfg(),
    'cifar_resnet14.untrained': _cfg(),
    'cifar_resnet20.untrained': _cfg(),
    'cifar_resnet32.untrained': _cfg(),
    'cifar_resnet44.untrained': _cfg(),
    'cifar_resnet56.untrained': _cfg(),
    'cifar_resnet110.untrained': _cfg(),
})


@register_model
def cifar_resnet8(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8 for 32x32 images, 78 thousand parameters; not in the paper, sized for studies on a CPU."""
    return _create_cifar_resnet('cifar_resnet8', 8, pretrained, **kwargs)


@register_model
def cifar_resnet14(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-14 for 32x32 images, 0.17 M parameters; not in the paper, sized for studies on a CPU."""
    return _create_cifar_resnet('cifar_resnet14', 14, pretrained, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 for 32x32 images, 0.27 M parameters."""
    return _create_cifar_resnet('cifar_resnet20', 20, pretrained, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for 32x32 images, 0.46 M parameters."""
    return _create_cifar_resnet('cifar_resnet32', 32, pretrained, **kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44 for 32x32 images, 0.66 M parameters."""
    return _create_cifar_resnet('cifar_resnet44', 44, pretrained, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56 for 32x32 images, 0.85 M parameters."""
    return _create_cifar_resnet('cifar_resnet56', 56, pretrained, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-110 for 32x32 images, 1.7 M parameters."""
    return _create_cifar_resnet('cifar_resnet110', 110, pretrained, **kwargs)
