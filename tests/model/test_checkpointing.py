from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from timm_collab import CollabModel, CollaborativeTask
from timm_collab.model.checkpointing import checkpointed


def test_same_gradients_and_statistics_as_an_ordinary_step() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.3), nn.Linear(8, 2))
    other = copy.deepcopy(plain)
    x = torch.randn(6, 4)
    torch.manual_seed(1)
    plain(x).square().sum().backward()
    torch.manual_seed(1)
    checkpointed(other, x).square().sum().backward()
    assert other[1].num_batches_tracked == 1
    assert other[1].momentum == .1
    for a, b in zip((*plain.parameters(), *plain.buffers()), (*other.parameters(), *other.buffers()), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_inner_activations_are_not_kept() -> None:
    def saved(run) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            run(torch.randn(64, 32, requires_grad=True))
        return sum(sizes)

    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(8)))
    assert saved(lambda x: checkpointed(model, x)) <= 64 * 32 < saved(model) / 8


def step(model: CollabModel) -> None:
    generator = torch.Generator().manual_seed(0)
    x, target_B = torch.randn(4, 3, 64, 64, generator=generator), torch.randint(5, (4,), generator=generator)
    torch.manual_seed(1)
    CollaborativeTask(model, verbose=False).train()(x, target_B)['loss'].backward()


def make(tree: str) -> CollabModel:
    torch.manual_seed(0)
    return timm.create_model('collab_resnet18', tree=tree, num_classes=5, drop_rate=.2, drop_path_rate=.2)


@pytest.mark.parametrize('trunk', [False, True])
@pytest.mark.parametrize('tree', ['layer2:2,layer3:2', 'layer3:4', 'layer1:[layer2:[layer3:2 | head] | head]'])
def test_checkpointed_tree_takes_the_same_step(tree: str, trunk: bool) -> None:
    """Bit for bit, with dropout and drop path; each batch counts once in the statistics."""
    plain, other = make(tree), make(tree)
    other.set_grad_checkpointing(trunk=trunk)
    for _ in range(2):
        step(plain)
        step(other)
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_branches_are_recomputed_one_at_a_time() -> None:
    """The backward pass of a node ends before the next node is recomputed; the trunk is not recomputed."""
    model = make('layer2:2,layer3:2')
    model.set_grad_checkpointing(trunk=False)
    events: list[tuple[str, str]] = []
    for name, node in model.nodes.items():
        node.register_forward_pre_hook(lambda *_, name=name: events.append(('run', name)))
        for param in node.parameters():
            param.register_post_accumulate_grad_hook(
                lambda _, name=name: events.append(('done', name)) if events[-1] != ('done', name) else None)
    step(model)
    forward = [('run', name) for name in (
        'trunk', 'branch_0', 'branch_0_0', 'branch_0_1', 'branch_1', 'branch_1_0', 'branch_1_1')]
    assert events[:7] == forward
    again = ['branch_1_1', 'branch_1_0', 'branch_1', 'branch_0_1', 'branch_0_0', 'branch_0']
    assert events[7:] == [(what, name) for name in again for what in ('run', 'done')] + [('done', 'trunk')]
