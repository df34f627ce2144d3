from __future__ import annotations

import inspect
import pickle
import traceback

import pytest
import torch
from torch import Tensor, nn

from tests.tester import FAMILIES, Family, check_composition
from timm_collab.split.segments import Chain, Segment, SplitPointError


@pytest.mark.parametrize('family', FAMILIES, ids=str)
def test_segments_compose_to_the_original_bit_for_bit(family: Family) -> None:
    chain = check_composition(family.arch, family.size, family.splits, **family.kwargs)
    assert chain.names == family.splits


class ManyValues(nn.Module):
    """All kinds of live values at a cut: a tensor, a list of tensors, a number, and a parameter used on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Listing()
        self.scale = nn.Parameter(torch.full((4,), 2.))
        self.register_buffer('shift', torch.ones(4), persistent=False)
        self.middle = nn.Linear(4, 4)
        self.last = Mutating()
        self.idle = nn.Linear(2, 2)
        self.num_classes = 4

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stem(x * self.scale)
        batch = x.shape[0]
        y = self.middle(x.relu())
        return self.last(y + self.shift, parts).view(batch, 4) * self.scale


class Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.a(x), self.b(x)]


class Mutating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, y: Tensor, parts: list[Tensor]) -> Tensor:
        parts.append(y)
        parts[0].add_(1)
        return self.proj(sum(parts))


def test_lists_numbers_and_parameters_are_passed_across_a_cut() -> None:
    torch.manual_seed(0)
    model = ManyValues()
    chain = Chain(model, ['stem', 'middle'], (4,))
    x = torch.randn(3, 4)
    assert torch.equal(chain.run([0, 1, 2, 3], x, model), model(x))
    assert set(chain.subgraph(0, 1).contents) >= {'stem', 'scale', 'idle.weight', 'idle.bias'}
    assert set(chain.subgraph(2, 3).contents) == {'last', 'shift'}
    assert chain.subgraph(1, 2).train.mutates.count(True) == 0
    assert chain.subgraph(2, 3).train.mutates.count(True) == 1


def test_segments_that_share_an_input_do_not_modify_it() -> None:
    torch.manual_seed(0)
    model = ManyValues()
    chain = Chain(model, ['middle'], (4,))
    x = torch.randn(3, 4)
    expected = model(x)
    trunk = Segment(chain.subgraph(0, 1), model, shares_input=False)
    branch = Segment(chain.subgraph(1, 2), model, shares_input=True)
    values = trunk(x)
    assert torch.equal(branch(*values), expected)
    assert torch.equal(branch(*values), expected)
    assert branch.state_dict().keys() == {'last.proj.weight', 'last.proj.bias'}
    assert [name for name, _ in branch.named_buffers()] == ['shift']


def test_subgraph_pickles_by_source_and_shows_it_in_tracebacks() -> None:
    model = ManyValues()
    subgraph = Chain(model, ['middle'], (4,)).subgraph(1, 2)
    again = pickle.loads(pickle.dumps(subgraph))
    assert again == subgraph
    values = len(inspect.signature(again.train.function).parameters) - 1
    with pytest.raises((AttributeError, TypeError)) as error:
        again.train.function(nn.Module(), *(None,) * values)
    lines = [frame.line for frame in traceback.extract_tb(error.value.__traceback__)]
    assert any(line and line in again.train.source for line in lines[1:])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.num_classes = 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stem(x))
        return self.head(self.shared(self.block(self.block(x))))


@pytest.mark.parametrize(('name', 'complaint'), [
    ('nowhere', "'nowhere' is no module of this network"),
    ('', "'' is no module"),
    ('unused', 'nothing calls it by itself'),
    ('block', "'block' is called 2 times"),
])
def test_module_that_is_no_split_point_raises(name: str, complaint: str) -> None:
    with pytest.raises(SplitPointError, match=complaint):
        Chain(Twice(), [name], (4,))


class SharedAround(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.block(self.shared(self.stem(x)))))


def test_tensor_used_on_both_sides_raises() -> None:
    with pytest.raises(SplitPointError, match="can't be split after 'block': 'shared' is used before and after it"):
        Chain(SharedAround(), ['block'], (4,))
    Chain(SharedAround(), ['stem'], (4,))


def test_subgraph_without_parameters_raises() -> None:
    chain = Chain(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), ['0', '1', '2'], (4,))
    with pytest.raises(SplitPointError, match="no parameter between '0' and '1'"):
        chain.subgraph(1, 2)
    with pytest.raises(SplitPointError, match="no parameter between '2' and the end"):
        chain.subgraph(3, 4)
