"""Classifiers of all heads: timm's training script initializes them as one, and fresh wide ones are narrowed."""
from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.tester import images
from timm_collab import CollabModel
from timm_collab.model.classifiers import Classifiers, narrow_classifiers, scale_classifiers

LAYERS = {  # final layers per classifier
    'test_resnet': 1,
    'dpn48b': 1,  # a convolution
    'convnext_atto': 1,  # normalisation before the layer
    'caformer_s18': 1,  # a hidden layer before it
    'deit_tiny_distilled_patch16_224': 2,
    'levit_128s': 2,  # with batch norms
    'repvit_m0_9': 2,  # two layers in one module
}


def make(arch: str = 'test_resnet', seed: int = 0, **kwargs: Any) -> CollabModel:
    torch.manual_seed(seed)
    return CollabModel(arch, **{'num_classes': 5, 'heads': 3, 'pattern': 'simple', **kwargs})


def init_as_timm_does(model: nn.Module, head_init_scale: float, head_init_bias: float) -> None:
    """What timm's train.py does for `--head-init-scale` and `--head-init-bias`."""
    with torch.no_grad():
        model.get_classifier().weight.mul_(head_init_scale)
        model.get_classifier().bias.mul_(head_init_scale)
    nn.init.constant_(model.get_classifier().bias, head_init_bias)


def plain_classifiers(arch: str, num_classes: int) -> Classifiers:
    torch.manual_seed(0)
    found: Any = timm.create_model(arch, num_classes=num_classes).get_classifier()
    return Classifiers(found if isinstance(found, tuple) else (found,))


@pytest.mark.parametrize('arch', LAYERS)
def test_layers_are_those_that_compute_logits(arch: str) -> None:
    layers = plain_classifiers(arch, 5).layers
    assert len(layers) == LAYERS[arch] and {len(layer.weight) for layer in layers} == {5}


@pytest.mark.parametrize('arch', ['test_resnet', 'convnext_atto', 'deit_tiny_distilled_patch16_224'])
def test_timm_initializes_the_classifiers_of_all_heads(arch: str) -> None:
    model, expected = make(arch), make(arch)
    layers = model.get_classifier().layers
    assert len(layers) == 3 * LAYERS[arch]
    init_as_timm_does(model, .25, -1.5)
    changed = set()
    for layer, before in zip(layers, expected.get_classifier().layers, strict=True):
        assert torch.equal(layer.weight, before.weight * .25) and (layer.bias == -1.5).all()
        changed |= {id(layer.weight), id(layer.bias)}
    others = dict(expected.named_parameters())
    assert all(torch.equal(p, others[name]) for name, p in model.named_parameters() if id(p) not in changed)
    assert all(not torch.equal(layer.weight, layers[0].weight) for layer in layers[1:])


def test_one_head_is_initialized_as_the_plain_network() -> None:
    model = make(heads=1)
    plain = model.prune()
    init_as_timm_does(model, .1, -2.)
    init_as_timm_does(plain, .1, -2.)
    state = plain.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.plain_state_dict().items())


def test_classifiers_are_a_tuple_of_modules() -> None:
    model = make()
    classifiers = model.get_classifier()
    assert isinstance(classifiers, tuple) and len(classifiers) == 3
    assert [type(each) for each in classifiers] == [nn.Linear] * 3
    assert [layer.weight.shape for layer in copy.deepcopy(classifiers).layers] == [(5, 96)] * 3
    assert [p.requires_grad for p in classifiers.weight.requires_grad_(False)] == [False] * 3
    for wrong in ('data', 'shape', 'mul', '__torch_function__'):
        with pytest.raises(AttributeError, match=f"3 classifiers have no '{wrong}', only operations in place"):
            getattr(classifiers.weight, wrong)


def relative_width(weight: Tensor) -> float:
    return weight.std().item() * math.sqrt(3 * weight[0].numel())


@pytest.mark.parametrize(('arch', 'expected'), [
    ('efficientnet_lite0', 11.3), ('mobilenetv3_large_100', 11.3), ('inception_v3', 7.8), ('caformer_s18', 1.6),
    ('resnet18', 1), ('convnext_atto', .6), ('regnety_002', .3), ('vit_tiny_patch16_224', .5),
    ('swin_tiny_patch4_window7_224', 1)])
def test_width_that_timm_draws_relative_to_a_linear_layer(arch: str, expected: float) -> None:
    widths = [relative_width(weight) for weight in plain_classifiers(arch, 10).weight]
    assert widths == pytest.approx([expected], rel=.1, abs=.1)


@pytest.mark.parametrize('arch', ['mobilenetv3_small_050', 'test_efficientnet'])
def test_wide_classifiers_are_narrowed(arch: str) -> None:
    model, before = make(arch, num_classes=10), make(arch, num_classes=10)
    narrow_classifiers(model.get_classifier())
    weights = list(model.get_classifier().weight)
    for weight, wide in zip(weights, before.get_classifier().weight, strict=True):
        assert relative_width(wide) > 4
        assert relative_width(weight) == pytest.approx(1)
        torch.testing.assert_close(weight / weight.std(), wide / wide.std())
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    'arch', ['resnet18', 'convnext_atto', 'test_vit', 'regnety_002', 'caformer_s18', 'deit_tiny_distilled_patch16_224',
             'levit_128s', 'swin_tiny_patch4_window7_224'])
def test_other_classifiers_stay_bit_for_bit(arch: str) -> None:
    classifiers, drawn = plain_classifiers(arch, 10), plain_classifiers(arch, 10)
    narrow_classifiers(classifiers)
    assert all(map(torch.equal, classifiers.weight, drawn.weight))
    assert all(map(torch.equal, classifiers.bias, drawn.bias))


def test_after_reset_classifier_each_head_is_scaled_by_its_own_draw() -> None:
    model = make('test_efficientnet', num_classes=10)
    model.reset_classifier(4)
    before = [weight.clone() for weight in model.get_classifier().weight]
    narrow_classifiers(model.get_classifier())  # timm resets them as narrow as nn.Linear
    assert all(map(torch.equal, model.get_classifier().weight, before))
    scale_classifiers(model.get_classifier(), .5)
    weights = list(model.get_classifier().weight)
    assert all(torch.equal(weight, old * .5) for weight, old in zip(weights, before, strict=True))
    assert {weight.shape for weight in weights} == {(4, 256)} and not torch.equal(weights[0], weights[1])
    x = images(64)
    assert model.train()(x).shape == (3, 2, 4)


def test_classifiers_are_fresh_unless_a_checkpoint_has_them(tmp_path: Path) -> None:
    path = tmp_path / 'plain.pth'
    plain = timm.create_model('test_resnet', num_classes=5)
    torch.save(plain.state_dict(), path)
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path), num_classes=5))

    def both(expected: bool, **kwargs: Any) -> None:
        """Check a tree that loads the weights as pretrained weights, and one that loads them as a checkpoint."""
        assert make(**kwargs, **overlay).fresh_classifiers is expected
        assert make(**kwargs, checkpoint_path=str(path)).fresh_classifiers is expected
        later = make(**kwargs)
        assert later.fresh_classifiers
        later.load_state_dict(plain.state_dict())
        assert later.fresh_classifiers is expected

    both(False, heads=1)
    both(True, branch_init='classifier')
    both(True, branch_init='fresh')
    both(False, branch_init='perturb')
    both(False, branch_init='copy')
    for heads, branch_init in ((1, 'classifier'), (3, 'copy'), (3, 'perturb')):
        assert make(heads=heads, branch_init=branch_init, num_classes=7, **overlay).fresh_classifiers
        headless = make(heads=heads, branch_init=branch_init)
        headless.load_state_dict({name: value for name, value in plain.state_dict().items() if name[:3] != 'fc.'})
        assert headless.fresh_classifiers
    tree, other = make(), make(seed=1)
    tree.load_state_dict(other.state_dict())
    assert not tree.fresh_classifiers
    tree.reset_classifier(4)
    assert tree.fresh_classifiers
