"""The classifiers of all heads: what timm's training script does with one, and how fresh ones start."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_WIDE = 2.
"""Fresh weights are narrowed if they are this many times as wide as those of `nn.Linear`.

With 10 classes, timm's EfficientNet and MobileNet draw them 11 to 13 times as wide, Inception 8 times, and CAFormer 1.6
times. VGG draws them 1.1 times as wide, and ResNet, ConvNeXt, RegNet, ViT and Swin at most as wide."""


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
    """The classifiers of all heads in order, a tuple that timm's training script can initialize as if it were one.

    Its `--head-init-scale` and `--head-init-bias` change `model.get_classifier().weight` and `.bias` in place.

    Examples:

        ```python
        >>> with torch.no_grad():
        ...     model.get_classifier().weight.mul_(.1)
        >>> nn.init.constant_(model.get_classifier().bias, -2.)
        ```
    """

    @property
    def layers(self) -> list[nn.Linear | nn.Conv2d]:
        """The layers that compute the logits: of a classifier with hidden layers the last, of a distilled one both."""
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
        """The biases of `layers`, as far as they have one."""
        return TensorGroup(layer.bias for layer in self.layers if layer.bias is not None)


@torch.no_grad()
def scale_classifiers(classifiers: Classifiers, scale: float) -> None:
    """Multiply weights and biases by `scale`, as timm's `--head-init-scale` does. Heads stay as different as drawn."""
    classifiers.weight.mul_(scale)
    classifiers.bias.mul_(scale)


@torch.no_grad()
def narrow_classifiers(classifiers: Classifiers) -> None:
    r"""Narrow weights that were drawn much wider than `nn.Linear` draws its own, to that width.

    On features with a mean square of 1, weights with standard deviation $\sigma$ give logits with $\sigma \sqrt{D}$ for
    D features. They add about half their variance to the first loss, whose best value is ln C. `nn.Linear` draws
    $\sigma = 1 / \sqrt{3 D}$, so its logits have .58. timm draws classifiers of EfficientNet and MobileNet with
    $\sigma = 1 / \sqrt{3 C}$, which depends on the number of classes C instead, and is made for training from scratch.
    With few classes the first gradients then come from confident wrong answers and damage pretrained features.

    The width is not reduced further, since heads of a tree differ at first by their classifiers alone. Architectures
    whose classifiers start as narrow as `nn.Linear`, or narrower, keep their weights bit for bit. No random number is
    drawn, and no image is needed.

    Args:
        classifiers: Freshly drawn classifiers. Each layer is multiplied by its own factor.
    """
    for layer in classifiers.layers:
        width = 1 / math.sqrt(3 * layer.weight[0].numel())
        drawn = layer.weight.std().item()
        if drawn > _WIDE * width:
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(width / drawn)
