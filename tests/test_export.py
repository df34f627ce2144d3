"""A pruned head exports exactly as the plain network does."""
from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tests.tester import images
from timm_collab import CollabModel
from timm_collab.sweep.checks import settle

CASES = [
    ('test_resnet', {}),
    ('test_vit3', dict(img_size=64)),
    ('efficientnet_b0', {}),
    pytest.param('hrnet_w18_small', {}, marks=pytest.mark.slow),
    ('deit_tiny_distilled_patch16_224', dict(img_size=64)),
]


def pruned_and_plain(arch: str, **kwargs) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = settle(CollabModel(arch, num_classes=5, **kwargs), images(64))
    plain = timm.create_model(arch, num_classes=5, **kwargs).eval()
    plain.load_state_dict(model.prune(1).state_dict())
    return model.prune(1), plain


@pytest.mark.parametrize(('arch', 'kwargs'), CASES)
def test_torch_export(arch: str, kwargs: dict) -> None:
    pruned, plain = pruned_and_plain(arch, **kwargs)
    x = images(64)
    exported, expected = (torch.export.export(net, (x,)) for net in (pruned, plain))
    assert exported.graph_module.code == expected.graph_module.code
    assert list(exported.state_dict) == list(expected.state_dict)
    with torch.no_grad():
        assert torch.equal(exported.module()(x), expected.module()(x))


@pytest.mark.parametrize(('arch', 'kwargs'), CASES[:2])
def test_onnx(arch: str, kwargs: dict) -> None:
    check_onnx(arch, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(('arch', 'kwargs'), CASES[2:])
def test_onnx_of_larger_networks(arch: str, kwargs: dict) -> None:
    check_onnx(arch, **kwargs)


def check_onnx(arch: str, **kwargs) -> None:
    pruned, plain = pruned_and_plain(arch, **kwargs)
    try:
        expected = torch.onnx.export(plain, (images(64),), dynamo=True, verbose=False).model_proto.graph
    except Exception as error:
        pytest.skip(f"this PyTorch can't export the plain network: {str(error)[:100]}")
    exported = torch.onnx.export(pruned, (images(64),), dynamo=True, verbose=False).model_proto.graph
    assert len(expected.node) > 30
    assert exported.SerializeToString() == expected.SerializeToString()


def test_torch_export_of_a_tree_in_eval_mode() -> None:
    model = settle(CollabModel('test_resnet', num_classes=5, kept_head=2), images(64))
    exported = torch.export.export(model, (images(64),))
    with torch.no_grad():
        assert torch.equal(exported.module()(images(64)), model.prune(2)(images(64)))
