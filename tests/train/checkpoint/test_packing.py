from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2
from torch import nn

from timm_collab.train.checkpoint import pack, unpack

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=3) | st.integers() | st.just('__tensor__'), inner, max_size=3),
    max_leaves=10,
)


def through_a_file(state):
    plain, tensors = pack(state)
    return unpack(json.loads(json.dumps(plain)), tensors)


@given(PLAIN)
def test_plain_data_is_restored(state):
    again = through_a_file(state)
    assert again == state and repr(again) == repr(state)  # 1 == 1.0 == True


def test_nan_and_infinity_are_restored():
    nan, infinity = through_a_file([math.nan, -math.inf])
    assert math.isnan(nan) and infinity == -math.inf


@pytest.mark.parametrize('dtype', [
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool,
])
def test_tensors_are_restored_bit_for_bit(dtype):
    tensor = (torch.randn(3, 4) * 10).to(dtype)
    again = through_a_file({'a': {1: [tensor, torch.tensor(3)]}, 'empty': torch.zeros(0, 2)})
    assert again['a'][1][0].dtype == dtype and torch.equal(again['a'][1][0], tensor)
    assert again['a'][1][1].shape == () and again['empty'].shape == (0, 2)


def test_shared_tensors_stay_shared_and_views_get_separate_memory():
    shared, memory = torch.randn(4), torch.randn(6)
    again = through_a_file({'a': shared, 'b': shared, 'c': memory[:4], 'd': memory[2:]})
    assert again['a'] is again['b']
    assert torch.equal(again['c'], memory[:4]) and torch.equal(again['d'], memory[2:])
    _, tensors = pack({'a': shared, 'b': shared, 'c': memory[:4], 'd': memory[2:]})
    assert sorted(tensors) == ['a', 'c', 'd']
    assert len({each.untyped_storage().data_ptr() for each in tensors.values()}) == 3


def test_channels_last_stays_channels_last():
    tensor = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    again = through_a_file([tensor])[0]
    assert torch.equal(again, tensor) and again.stride() == tensor.stride()


def test_unsupported_value_is_refused_with_its_path():
    with pytest.raises(TypeError, match=r"can't hold 'optimizer.state.0.hook': a function is neither"):
        pack({'optimizer': {'state': {0: {'hook': lambda: None}}}})


@pytest.mark.parametrize('name', [
    'sgd', 'adamw', 'lamb', 'lookahead_adam', 'adafactor', 'sgdw', 'lion',
    pytest.param('kron', marks=pytest.mark.slow),  # compiles its step
])
def test_state_of_timms_optimizers(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    optimizer = create_optimizer_v2(model, opt=name, lr=1e-2)
    for _ in range(3):
        model(torch.randn(2, 2, 4, 4)).square().mean().backward()
        optimizer.step()
    state = optimizer.state_dict()
    again = through_a_file(state)
    assert repr(again) == repr(state)


def test_dtypes_are_restored():
    state = {'a': torch.bfloat16, 'b': [torch.float32, {'__dtype__': 'float32'}]}
    assert through_a_file(state) == state
