from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from timm_collab.split.meta import meta_twin
from timm_collab.split.tracing import TraceError, trace


class Pythonic(nn.Module):
    """Uses its values in Python operations that only their meta values can answer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.pos = Positions()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if width % 2 or len(x.shape) != 3:
            raise AssertionError
        parts = [self.proj(part) for part in x.chunk(2, dim=1)]
        for index, part in enumerate(x.chunk(2, dim=1)):
            parts[index] = parts[index] + part * float(width) + range(height)[int(width) - 4]
        return torch.cat(parts, dim=1) + self.pos.table(x.shape[1])


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def table(self, length: int) -> Tensor:
        return torch.arange(length, device=self.scale.device)[:, None] * self.scale


def test_traced_values_support_python_operations() -> None:
    run = trace(meta_twin(Pythonic()), (), (6, 4))
    assert run.calls == {'proj': 2}
    assert run.ends == {}
    [output] = [node for node in run.graph.nodes if node.op == 'output']
    assert output.args[0].meta['value'].shape == (2, 6, 4)


def test_method_that_creates_tensors_is_one_node() -> None:
    run = trace(meta_twin(Pythonic()), (), (6, 4))
    [table] = [node for node in run.graph.nodes if node.op == 'call_method' and node.target == 'table']
    assert table.args[0].op == 'get_attr' and table.args[0].target == 'pos'


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)


def test_only_expanded_modules_are_traced_inside() -> None:
    twin = meta_twin(Nested())
    assert trace(twin, (), (4,)).ends == {'stages': 2}
    assert trace(twin, ('stages',), (4,)).ends == {'stages.0': 2, 'stages.1': 3, 'stages': 3}


def test_flops_are_counted_per_node() -> None:
    run = trace(meta_twin(Nested()), ('stages',), (4,), batch_size=3, count_flops=True)
    flops = {node.target: node.meta['flops'] for node in run.graph.nodes if node.op == 'call_module'}
    assert flops == {'stages.0': 2 * 3 * 4 * 4, 'stages.1': 2 * 3 * 4 * 4}


def test_tracing_changes_neither_random_state_nor_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(.5), nn.BatchNorm1d(4))
    twin = meta_twin(model)
    attributes = {path: set(vars(module)) for path, module in twin.named_modules()}
    before = torch.get_rng_state()
    trace(twin.train(), (), (4,))
    assert torch.equal(torch.get_rng_state(), before)
    assert attributes == {path: set(vars(module)) for path, module in twin.named_modules()}
    assert model[2].num_batches_tracked == 0


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(Branching())

    def forward(self, x: Tensor) -> Tensor:
        return self.stage(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class CreatesTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(4)


def test_data_dependent_forward_raises_with_its_module() -> None:
    with pytest.raises(TraceError) as error:
        trace(meta_twin(DataDependent()), ('stage', 'stage.0'), (4,))
    assert error.value.module_path == 'stage.0'
    with pytest.raises(TraceError, match='does not depend on its input'):
        trace(meta_twin(CreatesTensor()), (), (4,))
