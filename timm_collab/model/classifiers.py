"""The classifiers of all heads: changing them together, and narrowing freshly drawn ones."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_WIDE = 2.
"""Fresh weights are narrowed if their standard deviation is more than this many times that of `nn.Linear`.

With 10 classes, the ratio is 11 for EfficientNet and MobileNet, 8 for Inception, 1.6 for CAFormer, and about 1 or less
for ResNet, ConvNeXt, RegNet, ViT and Swin."""


class TensorGroup(tuple[Tensor, ...]):
    """Tensors that in-place operations, such as `mul_` or `nn.init.constant_`, change together."""

    def __getattr__(self, name: str) -> Callable[..., TensorGroup]:
        if not name.endswith('_') or name.startswith('_'):
            raise AttributeError(
                f"the parameters of {len(self)} classifiers have no '{name}', only operations in place such as mul_:"
                ' go through them one by one')

        def apply(*args: Any, **kwargs: Any) -> TensorGroup:
            for tensor in self:
                getattr(tensor, name)(*args, **kwargs)
            return self

        return apply


class Classifiers(tuple[nn.Module, ...]):
    """The classifiers of all heads in order, a tuple with the `weight` and `bias` of all of them.

    timm's training script changes `model.get_classifier().weight` and `.bias` in place for its `--head-init-scale` and
    `--head-init-bias`. That works here too, and each head keeps its own draw.

    Examples:

        ```python
        >>> with torch.no_grad():
        ...     model.get_classifier().weight.mul_(.1)
        >>> nn.init.constant_(model.get_classifier().bias, -2.)
        ```
    """

    @property
    def layers(self) -> list[nn.Linear | nn.Conv2d]:
        """The layers that compute logits: the last one of a classifier with hidden layers, both of a distilled one."""
        found: list[nn.Linear | nn.Conv2d] = []
        for classifier in self:
            layers = [layer for layer in classifier.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
            found += [layer for layer in layers if len(layer.weight) == len(layers[-1].weight)]
        return found

    @property
    def weight(self) -> TensorGroup:
        """The weights of `layers`."""
        return TensorGroup(layer.weight for layer in self.layers)

    @property
    def bias(self) -> TensorGroup:
        """The biases of those `layers` that have one."""
        return TensorGroup(layer.bias for layer in self.layers if layer.bias is not None)


@torch.no_grad()
def scale_classifiers(classifiers: Classifiers, scale: float) -> None:
    """Multiply the weights and biases of all classifiers by a factor, as timm's `--head-init-scale` does.

    Args:
        classifiers: The classifiers.
        scale: The factor.
    """
    classifiers.weight.mul_(scale)
    classifiers.bias.mul_(scale)


@torch.no_grad()
def narrow_classifiers(classifiers: Classifiers) -> None:
    r"""Narrow weights that were drawn much wider than `nn.Linear` draws its own, to that width.

    For D features with a mean square of 1, weights with standard deviation $\sigma$ give logits with standard deviation
    $s = \sigma \sqrt{D}$. The first cross-entropy of C classes is then about $\ln C + s^2 / 2$. `nn.Linear` draws
    $\sigma = 1 / \sqrt{3 D}$, so $s = .58$. timm draws the classifiers of EfficientNet and MobileNet with
    $\sigma = 1 / \sqrt{3 C}$, so $s$ is 6.5 for 1280 features and 10 classes. In fine-tuning, the gradients of such
    confident wrong answers damage the pretrained features.

    The weights are not narrowed further, because heads that start from the same pretrained weights differ by their
    classifiers alone. Classifiers that are not much wider than those of `nn.Linear` stay bit for bit. No random numbers
    are drawn.

    Args:
        classifiers: Freshly drawn classifiers. Each layer, with its bias, is multiplied by a factor of its own.
    """
    for layer in classifiers.layers:
        width = 1 / math.sqrt(3 * layer.weight[0].numel())
        drawn = layer.weight.std().item()
        if drawn > _WIDE * width:
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(width / drawn)
