"""ResNet for 32x32 images, as run on CIFAR-10 (section 4.2 of the paper).

Papers:
* `Deep Residual Learning for Image Recognition` - https://arxiv.org/abs/1512.03385
"""
from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath, LayerType, create_classifier, get_act_layer, get_norm_layer
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

__all__ = ['CifarResNet']  # the decorator adds each entry point

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class PadShortcut(nn.Module):
    """Identity shortcut to a smaller and wider feature map, without parameters (option A of the paper).

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output, those added are zeros.
        stride: Takes every stride-th pixel of each row and column.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.pad_chs = out_chs - in_chs
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample `[B, in_chs, height, width]` and append zero channels."""
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, 0, self.pad_chs))


class CifarResNet(nn.Module):
    """Residual network with a 3x3 stem, basic blocks and parameter-free shortcuts.

    Args:
        layers: Number of blocks of each of the three stages.
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Number of image channels.
        global_pool: Type of the pooling before the classifier.
        channels: Width of each stage, the first is that of the stem too.
        act_layer: Activation layer.
        norm_layer: Normalization layer.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Stochastic depth rate of the last block, growing linearly from 0 at the first.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
    """

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
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        act_cls, norm_cls = get_act_layer(act_layer), get_norm_layer(norm_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        in_chs = channels[0]
        self.conv1 = nn.Conv2d(in_chans, in_chs, kernel_size=3, padding=1, bias=False, **dd)
        self.bn1 = norm_cls(in_chs, **dd)
        self.act1 = act_cls(inplace=True)
        self.feature_info = [{'num_chs': in_chs, 'reduction': 1, 'module': 'act1'}]

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

        self.num_features = in_chs
        self.global_pool, self.head_drop, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by stage (coarse) or block, for layer-wise learning rates."""
        return {'stem': r'^conv1|bn1', 'blocks': r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: Type of the pooling before it, None keeps the current one.
        """
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the feature map of the last stage, [B, num_features, height / 4, width / 4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map and classify it, or stop before the classifier (pre_logits)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [B, num_classes] of images [B, in_chans, height, width]."""
        return self.forward_head(self.forward_features(x))


def _create_cifar_resnet(variant: str, depth: int, pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    # The stem, the classifier, and three stages of blocks with two convolutions each: depth = 6 * blocks + 2.
    blocks = (depth - 2) // 6
    model_args = dict(layers=(blocks, blocks, blocks), **kwargs)
    feature_cfg = {'out_indices': (0, 1, 2, 3)}
    return build_model_with_cfg(CifarResNet, variant, pretrained, feature_cfg=feature_cfg, **model_args)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'num_classes': 10, 'input_size': (3, 32, 32), 'pool_size': (8, 8),
        'crop_pct': 1.0, 'interpolation': 'bilinear', 'mean': CIFAR10_MEAN, 'std': CIFAR10_STD,
        'first_conv': 'conv1', 'classifier': 'fc', 'paper_ids': 'arXiv:1512.03385', 'license': 'apache-2.0',
        **kwargs,
    }


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
