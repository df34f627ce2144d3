"""Each check of the sweep detects a head tree with one defect."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from tests.tester import images
from timm_collab import CollabModel
from timm_collab.sweep.checks import CheckError, check_logits, check_partition, check_pruned, check_training, vary


@pytest.fixture
def model() -> CollabModel:
    torch.manual_seed(0)
    return vary(CollabModel('test_resnet', num_classes=5))


@pytest.fixture
def plain() -> nn.Module:
    return timm.create_model('test_resnet', num_classes=5)


def test_valid_tree_passes_every_check(model: CollabModel, plain: nn.Module) -> None:
    check_partition(model, plain)
    check_pruned(model, plain)
    check_logits(model, plain, images(64))
    check_training(model, images(64), head=2)


def share_a_module(model: CollabModel) -> None:
    model.nodes['branch_0'].layer3 = model.nodes['branch_1'].layer3


def add_a_buffer(model: CollabModel) -> None:
    model.nodes['branch_0_0'].register_buffer('extra', torch.ones(1))


def remove_a_tensor(model: CollabModel) -> None:
    model.nodes['trunk'].conv1[0].weight = None


@pytest.mark.parametrize(('corrupt', 'message'), [
    (share_a_module, 'is owned by branch_0 and by branch_1'),
    (add_a_buffer, "'extra'.* is no tensor of the plain network"),
    (remove_a_tensor, 'head 0 has .* tensors, the plain network'),
])
def test_invalid_partition_is_detected(
        model: CollabModel,
        plain: nn.Module,
        corrupt: Callable[[CollabModel], None],
        message: str,
) -> None:
    corrupt(model)
    with pytest.raises(CheckError, match=message):
        check_partition(model, plain)


def test_other_architecture_is_detected(model: CollabModel) -> None:
    with pytest.raises(CheckError, match='the class of the pruned network'):
        check_pruned(model, timm.create_model('test_vit', num_classes=5))


def test_other_logits_are_detected(model: CollabModel, plain: nn.Module) -> None:
    model.nodes['branch_1_0'].register_forward_hook(lambda module, values, logits: logits * (1 + 1e-6))
    with pytest.raises(CheckError, match='head 2 pruned differs by up to'):
        check_logits(model, plain, images(64))


def test_other_gradient_is_detected(model: CollabModel) -> None:
    weight = model.nodes['trunk'].get_parameter('layer1.0.conv1.weight')
    weight.register_hook(lambda grad: grad * (1 + 1e-6))
    with pytest.raises(CheckError, match=r'the gradient of layer1.0.conv1.weight differs'):
        check_training(model, images(64))


def test_other_buffer_is_detected(model: CollabModel) -> None:
    norm = next(module for module in model.nodes['trunk'].modules() if isinstance(module, nn.BatchNorm2d))
    norm.momentum = .2
    with pytest.raises(CheckError, match=r'running_(mean|var) differs'):
        check_training(model, images(64))


def test_missing_gradient_is_detected(model: CollabModel) -> None:
    plain_prune = model.prune
    model.nodes['trunk'].requires_grad_(False)
    model.prune = lambda head: plain_prune(head).requires_grad_()
    with pytest.raises(CheckError, match=r'the absence of a gradient for .* is True, not False'):
        check_training(model, images(64))


def test_vary_changes_constant_parameters() -> None:
    model = vary(timm.create_model('test_convnext'))
    assert all(p.min() < p.max() for p in model.parameters() if p.numel() > 1)
