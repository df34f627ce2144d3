"""Handwritten head trees, as a reference for those of the package.

A handwritten tree is an ordinary module that calls the plain network's layers in order, with `rescale_gradient` at each
fork and `torch.stack` at the end. It has the weights of the tree of the package, and `check` verifies that their logits
are equal and the gradients of the trunk close.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from timm_collab import CollabModel
from timm_collab.model.rescale import rescale_gradient

from .measure import Side


class CifarResNet(nn.Module):
    """`layer1:2,layer2:2` of a CIFAR ResNet.

    Args:
        nets: The plain network of each head, whose modules move here.
    """

    tree = 'layer1:2,layer2:2'

    def __init__(self, nets: list[Any]):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nets[0].conv1, nets[0].bn1, nets[0].act1
        self.layer1 = nets[0].layer1
        self.layer2 = nn.ModuleList([nets[0].layer2, nets[2].layer2])
        self.layer3 = nn.ModuleList([net.layer3 for net in nets])
        self.global_pool, self.head_drop = nets[0].global_pool, nets[0].head_drop
        self.fc = nn.ModuleList([net.fc for net in nets])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of all heads `[H, B, C]`."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = rescale_gradient(self.layer1(x), 1 / 2)
        logits_BC = []
        for branch in range(2):
            y = rescale_gradient(self.layer2[branch](x), 1 / 2)
            for head in (2 * branch, 2 * branch + 1):
                z = self.head_drop(self.global_pool(self.layer3[head](y)))
                logits_BC.append(self.fc[head](z))
        return torch.stack(logits_BC)


class ResNet(nn.Module):
    """`layer2:2,layer3:2` of a ResNet.

    Args:
        nets: The plain network of each head, whose modules move here.
    """

    tree = 'layer2:2,layer3:2'

    def __init__(self, nets: list[Any]):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nets[0].conv1, nets[0].bn1, nets[0].act1
        self.maxpool = nets[0].maxpool
        self.layer1, self.layer2 = nets[0].layer1, nets[0].layer2
        self.layer3 = nn.ModuleList([nets[0].layer3, nets[2].layer3])
        self.layer4 = nn.ModuleList([net.layer4 for net in nets])
        self.global_pool = nets[0].global_pool
        self.fc = nn.ModuleList([net.fc for net in nets])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits of all heads `[H, B, C]`."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = rescale_gradient(self.layer2(self.layer1(x)), 1 / 2)
        logits_BC = []
        for branch in range(2):
            y = rescale_gradient(self.layer3[branch](x), 1 / 2)
            for head in (2 * branch, 2 * branch + 1):
                logits_BC.append(self.fc[head](self.global_pool(self.layer4[head](y))))
        return torch.stack(logits_BC)


BUILDERS: dict[str, Any] = {'cifar_resnet32': CifarResNet, 'resnet50': ResNet, 'test_resnet': ResNet}
"""The handwritten tree of each architecture that has one."""


def by_hand(tree: CollabModel) -> nn.Module | None:
    """Create the handwritten tree with the weights of `tree`, None if there is none for it."""
    builder = BUILDERS.get(tree.backbone)
    if builder is None or builder.tree != str(tree.tree):
        return None
    model: nn.Module = builder([tree.prune(head) for head in range(tree.num_heads)])
    return model


def check(tree: Side, other: Side) -> None:
    """Verify that a tree computes the same as a handwritten one, or a tree with one head as the plain network.

    Both sides take a training step.

    Raises:
        AssertionError: Parameters, logits or a gradient of the trunk differ.
    """
    logits_HBC, expected = (side.model.train()(side.x).detach() for side in (tree, other))
    assert torch.equal(logits_HBC, expected.reshape_as(logits_HBC)), 'the logits differ'
    sizes = [sum(p.numel() for p in side.model.parameters()) for side in (tree, other)]
    assert sizes[0] == sizes[1], f'{sizes[0]} parameters and {sizes[1]}'
    tree.step()
    other.step()
    for name, parameter in tree.model.get_submodule('nodes.trunk').named_parameters():
        torch.testing.assert_close(parameter.grad, other.model.get_parameter(name).grad)
