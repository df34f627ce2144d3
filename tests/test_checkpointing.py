from __future__ import annotations

import copy

import torch
from torch import nn

from timm_collab.checkpointing import checkpointed


def test_gradients_and_statistics_are_those_of_an_ordinary_step() -> None:
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


def test_activations_inside_are_not_kept() -> None:
    def saved(run) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            run(torch.randn(64, 32, requires_grad=True))
        return sum(sizes)

    model = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(8)))
    assert saved(lambda x: checkpointed(model, x)) <= 64 * 32 < saved(model) / 8
