"""Common base of the networks for 32x32 images: the classifier head, and the preprocessing."""
from __future__ import annotations

from typing import Any

from timm.layers import create_classifier
from torch import Tensor, nn

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


class CifarNet(nn.Module):
    """Base of the CIFAR networks: a subclass builds its layers, then calls `_add_head`.

    Args:
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Number of image channels.
        drop_rate: Dropout rate before the classifier.
    """

    classifier_name: str
    num_features: int
    head_hidden_size: int
    global_pool: Any
    head_drop: nn.Module

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []

    def _add_head(self, num_features: int, global_pool: str, **dd: Any) -> None:
        """Add the classifier head, and initialize all convolutions of the network (He et al. 2015)."""
        self.num_features = num_features
        self.global_pool, self.head_drop, classifier = create_classifier(
            num_features, self.num_classes, pool_type=global_pool, drop_rate=self.drop_rate, **dd)
        setattr(self, self.classifier_name, classifier)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: Type of the pooling before it, None keeps the current one.
        """
        weight = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool, classifier = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            device=weight.device,
            dtype=weight.dtype,
        )
        setattr(self, self.classifier_name, classifier)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last feature map, [B, num_features, height / 4, width / 4]."""
        raise TypeError(f'{type(self).__name__} is a base class: create one of its networks')

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map and classify it, or stop before the classifier (pre_logits)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [B, num_classes] of images [B, in_chans, height, width]."""
        return self.forward_head(self.forward_features(x))


def cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg with the preprocessing of CIFAR-10; `kwargs` add the layer names and the paper."""
    return {
        'num_classes': 10, 'input_size': (3, 32, 32), 'pool_size': (8, 8),
        'crop_pct': 1.0, 'interpolation': 'bilinear', 'mean': CIFAR10_MEAN, 'std': CIFAR10_STD,
        'license': 'apache-2.0',
        **kwargs,
    }
