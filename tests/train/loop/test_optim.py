"""Layer decay: the share of the learning rate that each layer gets."""
from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from timm_collab.train import TrainError
from timm_collab.train.config import OptimConfig, SchedConfig
from timm_collab.train.config.parse import parse_config
from timm_collab.train.loop.optim import build_optimizer, build_scheduler

STEMS = {'test_resnet': 'conv1.0.weight', 'resnet50': 'conv1.weight', 'resnet101': 'conv1.weight'}


def scales(arch: str, heads: int, config: OptimConfig) -> dict[str, float]:
    """The share of each parameter, after the schedule has begun."""
    with torch.device('meta'):
        model = timm.create_model(f'collab_{arch}', heads=heads, num_classes=10)
    optimizer = build_optimizer(model, config)
    build_scheduler(optimizer, SchedConfig(name='cosine'), epochs=2, updates_per_epoch=3)
    lrs = {id(p): group['lr'] / config.lr for group in optimizer.param_groups for p in group['params']}
    return {name: lrs[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize('heads', [1, 4])
@pytest.mark.parametrize(('arch', 'unlimited', 'limited'), [
    ('test_resnet', 0.75 ** 5, 0.75 ** 5), ('resnet50', 0.75 ** 17, 0.1)])
def test_layer_decay_ends_at_its_limit(arch: str, heads: int, unlimited: float, limited: float) -> None:
    for min_scale, expected in ((0.0, unlimited), (0.1, limited)):
        config = OptimConfig(name='adamw', layer_decay=0.75, layer_decay_min_scale=min_scale)
        found = scales(arch, heads, config)
        assert found[f'nodes.trunk.{STEMS[arch]}'] == pytest.approx(expected)
        classifiers = [scale for name, scale in found.items() if name.endswith('.fc.weight')]
        assert classifiers == [1.0] * heads
        assert all(expected <= scale * (1 + 1e-6) and scale <= 1 for scale in found.values())


@pytest.mark.parametrize(('arch', 'heads', 'expected'), [
    ('test_resnet', 4, 0.9 ** 5), ('resnet50', 4, 0.9 ** 17), ('resnet101', 1, 0.1)])
def test_fine_tuning_recipe_leaves_the_first_layer_a_tenth(arch: str, heads: int, expected: float) -> None:
    config = parse_config(['--config=finetune/image_folder', '--data.path=somewhere']).optim
    found = scales(arch, heads, config)
    assert found[f'nodes.trunk.{STEMS[arch]}'] == min(found.values()) == pytest.approx(expected)
    if heads == 1:
        constant = dataclasses.replace(config, layer_decay=None)
        assert set(scales(arch, heads, constant).values()) == {1.0}


def test_limit_of_layer_decay_is_a_share() -> None:
    with pytest.raises(TrainError, match=r'optim.layer_decay_min_scale must lie in \[0, 1\], got 2'):
        OptimConfig(layer_decay_min_scale=2.0)
    with pytest.raises(TrainError, match=r"can't contain 'layer_decay_min_scale': write optim.layer_decay_min_scale"):
        OptimConfig(kwargs={'layer_decay_min_scale': 0.1})
