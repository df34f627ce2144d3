"""The model that a recipe builds: how its classifiers start."""
from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate.utils import set_seed
from torch import nn

from tests.train.killed import KilledError
from timm_collab import CollabModel
from timm_collab.train import TrainError
from timm_collab.train.build import build_model
from timm_collab.train.config import DataConfig, ModelConfig
from timm_collab.train.run import train

WEIGHTS = Path(os.environ.get('TIMM_COLLAB_DATA', ''), 'weights', 'tf_efficientnet_lite0.safetensors')
ARCH = 'test_efficientnet'


def build(num_classes: int = 10, name: str = f'collab_{ARCH}', **keys: Any) -> CollabModel:
    set_seed(0)
    return build_model(ModelConfig(name=name, **keys), DataConfig(path='somewhere'), num_classes)


@pytest.fixture
def pretrained(tmp_path: Path) -> dict[str, Any]:
    """Keys of a start from pretrained weights with ten classes."""
    torch.manual_seed(1)
    torch.save(timm.create_model(ARCH, num_classes=10).state_dict(), tmp_path / 'weights.pth')
    overlay = {'file': str(tmp_path / 'weights.pth'), 'num_classes': 10}
    return {'pretrained': True, 'kwargs': {'pretrained_cfg_overlay': overlay}}


def same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in a.state_dict().items())


def stds(model: CollabModel) -> list[float]:
    return [weight.std().item() for weight in model.get_classifier().weight]


@pytest.mark.parametrize('heads', [1, 4])
def test_from_scratch_nothing_changes_but_what_the_keys_ask_for(heads: int) -> None:
    set_seed(0)
    plain = timm.create_model(f'collab_{ARCH}', heads=heads, num_classes=10)
    after = torch.rand(1)
    assert same(build(heads=heads), plain)
    assert torch.equal(torch.rand(1), after)
    model = build(heads=heads, head_init_scale=0.5, head_init_bias=-2.0)
    assert torch.equal(torch.rand(1), after)
    for layer, drawn in zip(model.get_classifier().layers, plain.get_classifier().layers, strict=True):
        assert torch.equal(layer.weight, drawn.weight * 0.5) and (layer.bias == -2).all()
    features = ('nodes.trunk.conv_stem.weight', 'nodes.trunk.bn1.weight')
    assert all(torch.equal(model.state_dict()[name], plain.state_dict()[name]) for name in features)


@pytest.mark.parametrize('heads', [1, 4])
def test_new_classifiers_of_a_pretrained_backbone_are_narrowed(pretrained: dict[str, Any], heads: int) -> None:
    narrow = [1 / math.sqrt(3 * 256)] * heads
    model = build(7, heads=heads, **pretrained)
    assert stds(model) == pytest.approx(narrow)
    wide = build(7, heads=heads, head_init_scale=1.0, **pretrained)
    assert min(stds(wide)) > 5 * narrow[0]
    tenth = build(7, heads=heads, head_init_scale=0.1, **pretrained)
    assert all(torch.equal(weight, drawn * 0.1) for weight, drawn in
               zip(tenth.get_classifier().weight, wide.get_classifier().weight, strict=True))
    assert heads == 1 or not torch.equal(*list(model.get_classifier().weight)[:2])


@pytest.mark.parametrize('keys', [{'heads': 1}, {'branch_init': 'copy'}, {'branch_init': 'perturb'}])
def test_pretrained_classifiers_stay(pretrained: dict[str, Any], keys: dict[str, Any]) -> None:
    set_seed(0)
    plain = timm.create_model(f'collab_{ARCH}', num_classes=10, pretrained=True, **pretrained['kwargs'], **keys)
    assert same(build(**keys, **pretrained), plain)
    assert same(build(head_init_scale=0.1, head_init_bias=-2.0, **keys, **pretrained), plain)


@pytest.mark.parametrize(('has_classifier', 'heads', 'is_narrowed'), [
    (True, 1, False), (True, 4, True), (False, 1, True), (False, 4, True)])
def test_checkpoint_without_a_classifier(tmp_path: Path, has_classifier: bool, heads: int, is_narrowed: bool) -> None:
    torch.manual_seed(1)
    state = timm.create_model(ARCH, num_classes=10).state_dict()
    kept = {name: value for name, value in state.items() if has_classifier or not name.startswith('classifier.')}
    torch.save(kept, tmp_path / 'plain.pth')
    model = build(heads=heads, checkpoint_path=str(tmp_path / 'plain.pth'))
    assert torch.equal(model.state_dict()['nodes.trunk.conv_stem.weight'], state['conv_stem.weight'])
    assert (max(stds(model)) < 0.04) == is_narrowed


def test_first_loss_of_a_new_classifier_is_that_of_chance() -> None:
    if not WEIGHTS.is_file():
        pytest.skip('TIMM_COLLAB_DATA, the folder with weights/tf_efficientnet_lite0.safetensors, is not set')
    images = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3)
    images = images / images.std()  # smooth, as photographs are
    target_B = torch.arange(32) % 10
    losses = {}
    for scale in (None, 1.0):
        model = build(
            name='collab_tf_efficientnet_lite0', head_init_scale=scale, heads=4, pretrained=True,
            kwargs={'pretrained_cfg_overlay': {'file': str(WEIGHTS)}})
        with torch.no_grad():
            logits_HBC = model.train()(images)
        losses[scale] = [nn.functional.cross_entropy(logits_BC, target_B).item() for logits_BC in logits_HBC]
        assert len(set(losses[scale])) == 4
    assert losses[None] == pytest.approx([math.log(10)] * 4, abs=0.2)
    assert min(losses[1.0]) > 3


def test_a_run_from_pretrained_weights_resumes_exactly(recipe, pretrained, tmp_path, kill_at) -> None:
    file = pretrained['kwargs']['pretrained_cfg_overlay']['file']
    argv = [f'--model.name=collab_{ARCH}', '--model.heads=2', '--model.pretrained=true', '--epochs=2',
            f'--model.kwargs={{pretrained_cfg_overlay: {{file: {file}, num_classes: 10}}}}', '--data.in_chans=3']
    kill_at(1000)
    train(recipe(*argv, f'--output={tmp_path / "whole"}'))
    kill_at(4)
    with pytest.raises(KilledError):
        train(recipe(*argv))
    kill_at(1000)
    train(recipe(*argv))
    whole, resumed = (timm.create_model(f'local-dir:{tmp_path / name / "pruned"}', pretrained=True)
                      for name in ('whole', 'run'))
    assert same(whole, resumed)


def test_keys_of_the_start_are_refused_elsewhere() -> None:
    with pytest.raises(TrainError, match=r"model.kwargs can't contain 'head_init_scale': write model.head_init_scale"):
        ModelConfig(name='collab_convnext_tiny', kwargs={'head_init_scale': 0.1})
    with pytest.raises(TrainError, match=r'model.head_init_scale must be greater than 0, got 0'):
        ModelConfig(name='collab_convnext_tiny', head_init_scale=0.0)
