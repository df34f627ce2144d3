from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from timm_collab.split.meta import meta_twin, on_meta
from timm_collab.split.tracing import trace


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.alias = self.a
        self.register_buffer('kept', torch.ones(4))
        self.register_buffer('passing', torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.kept + self.passing


def test_the_meta_twin_keeps_ties_aliases_and_persistence_and_holds_no_data() -> None:
    model = Tied()
    twin = meta_twin(model)
    assert twin.a.weight is twin.b.weight and twin.alias is twin.a
    assert list(twin.state_dict()) == list(model.state_dict()) and 'passing' not in twin.state_dict()
    assert all(tensor.is_meta for tensor in (*twin.parameters(), *twin.buffers()))
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.fixture(params=[(2, 6, 4, 5), (2, 5, 6)], ids=['4d', '3d'])
def inputs(request: pytest.FixtureRequest) -> list[Tensor]:
    """Tensors of one shape and several layouts."""
    x = torch.zeros(request.param)
    return [x, x.mT.contiguous().mT, *([x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [])]


# What BatchNorm and RMSNorm make of other layouts depends on the device and on PyTorch's version.
@pytest.mark.parametrize('function', [
    lambda x: F.batch_norm(x.contiguous(), x.new_empty(x.shape[1]), x.new_empty(x.shape[1]), training=False),
    lambda x: F.group_norm(x, 1),
    lambda x: F.layer_norm(x, x.shape[-1:]),
    lambda x: F.rms_norm(x.contiguous(), x.shape[-1:]),
    lambda x: F.normalize(x, dim=-1),
    F.gelu,
    nn.ReLU6(),
    nn.ReLU6(inplace=True),
    nn.Hardtanh(-2, 2),
    nn.Hardtanh(-2, 2, inplace=True),
    nn.Hardswish(),
    nn.Hardswish(inplace=True),
    F.relu6,
    lambda x: F.relu6(x, inplace=True),
    lambda x: F.linear(x, x.new_empty(7, x.shape[-1]), x.new_empty(7)),
    lambda x: F.linear(x, weight=x.new_empty(7, x.shape[-1]), bias=x.new_empty(7)),
])
def test_shortcuts_answer_as_the_functions_do(function: Callable[[Tensor], Tensor], inputs: list[Tensor]) -> None:
    def answer(x: Tensor, where: AbstractContextManager[Any]) -> tuple[object, ...]:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), where:
            result = function(x)
        return result.shape, result.stride(), result.dtype, result is x, x._version > 0, counter.get_total_flops()

    for x in inputs:
        assert answer(x.to('meta'), on_meta()) == answer(x.clone(), nullcontext())


# In them: hardswish, ReLU6 in place, normalised queries and keys, RMSNorm, linear layers of channels that come last.
@pytest.mark.parametrize('arch', [
    'mobilenetv3_small_050', 'mobilenetv2_035', 'test_vit3', 'swinv2_cr_tiny_ns_224', 'test_convnext3',
    'mobilenetv4_hybrid_medium', 'vit_little_patch16_reg1_gap_256',
])
def test_traces_are_what_they_are_without_shortcuts(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device('meta'):
        twin = meta_twin(timm.create_model(arch)).requires_grad_(False)
    size = twin.pretrained_cfg['input_size']
    expand = {path for path, module in twin.named_modules() if path and not list(module.children())}
    expand = {path[:dot] for path in expand for dot in range(len(path)) if path[dot] == '.' and path.count('.') < 3}

    def found() -> list[tuple[object, ...]]:
        rows = []
        for node in trace(twin.eval(), expand, size, count_flops=True).graph.nodes:
            leaves = [leaf for leaf in tree_leaves(node.meta.get('value')) if isinstance(leaf, Tensor)]
            layouts = [(leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves]
            rows.append((node.name, layouts, len(node.meta.get('writes', ())), node.meta.get('flops')))
        return rows

    quick = found()
    monkeypatch.setattr('timm_collab.split.meta._ShapesOnly.__torch_function__',
                        lambda self, func, types, args=(), kwargs=None: func(*args, **(kwargs or {})))
    assert quick == found() and len(quick) > 15
