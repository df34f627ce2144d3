from __future__ import annotations

import pytest
import timm
import torch

from timm_collab import CollabModel, split_points
from timm_collab.split.points import even_boundaries, stage_boundaries


def test_split_points_of_a_resnet() -> None:
    points = {point.name: point for point in split_points('resnet18')}
    assert list(points) == [
        'input', 'conv1', 'bn1', 'act1', 'maxpool', 'layer1.0', 'layer1', 'layer2.0', 'layer2', 'layer3.0', 'layer3',
        'layer4.0', 'layer4', 'global_pool',
    ]
    assert points['layer2'].shapes == ((-1, 128, 28, 28),)
    assert points['input'].cost == 2 and points['input'].params_after == 1
    model = timm.create_model('resnet18')
    after = sum(p.numel() for name in ('layer3', 'layer4', 'fc') for p in model.get_submodule(name).parameters())
    assert points['layer2'].params_after == after / sum(p.numel() for p in model.parameters())


def test_multiply_adds_match_an_independent_count() -> None:
    # conv and linear layers of ResNet-18 at 224 px (He et al. 2016, table 1: 1.8e9), counted by hand per stage
    def block(channels: int, size: int, stride: int) -> int:
        first = size ** 2 * channels * (channels // stride) * 9 + 3 * size ** 2 * channels * channels * 9
        return first + (size ** 2 * channels * channels // 2 if stride == 2 else 0)

    stem, head = 112 ** 2 * 64 * 3 * 49, 512 * 1000
    stages = [block(64, 56, 1), block(128, 28, 2), block(256, 14, 2), block(512, 7, 2)]
    total = stem + sum(stages) + head
    points = {point.name: point for point in split_points('resnet18')}
    assert total == pytest.approx(1.8e9, rel=.02)
    assert points['layer2'].macs_after == pytest.approx((stages[2] + stages[3] + head) / total, rel=1e-9)
    assert points['global_pool'].macs_after == pytest.approx(head / total, rel=1e-9)


@pytest.mark.parametrize(('arch', 'kwargs', 'some'), [
    ('vit_tiny_patch16_224', {}, ['patch_embed', 'blocks.5', 'blocks.8', 'norm']),
    ('swin_tiny_patch4_window7_224', {}, ['layers.0', 'layers.2.blocks.3']),
    ('densenet121', {}, ['features.denseblock2.denselayer3', 'features.transition2']),
    ('regnetx_002', dict(in_chans=1), ['s1', 's3.b2']),
    ('collab_cifar_resnet20', {}, ['layer1', 'layer2.1']),
])
def test_stages_and_blocks_are_listed_in_forward_order(arch: str, kwargs: dict, some: list[str]) -> None:
    points = split_points(arch, **kwargs)
    names = [point.name for point in points]
    assert [name for name in names if name in some] == some
    assert names[0] == 'input' and points[0].shapes[0][1] == kwargs.get('in_chans', 3)
    for shares in ([point.macs_after for point in points], [point.params_after for point in points]):
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize('arch', ['convnext_atto', 'densenet121', 'hrnet_w18_small', 'coat_lite_tiny'])
def test_every_listed_split_point_works(arch: str) -> None:
    points = split_points(arch)
    for point in (points[1], points[len(points) // 2], points[-1]):
        with torch.device('meta'):
            assert CollabModel(arch, tree=f'{point.name}:2').num_heads == 2


@pytest.mark.parametrize(('arch', 'boundaries'), [
    ('resnet50', ('act1', 'layer1', 'layer2', 'layer3')),
    ('cifar_resnet32', ('layer1', 'layer2')),
    ('convnext_atto', ('stages.0', 'stages.1', 'stages.2')),
    ('vit_tiny_patch16_224', ('blocks.2', 'blocks.5', 'blocks.8')),
    ('hrnet_w18_small', ('stage2', 'stage3')),
])
def test_stage_boundaries(arch: str, boundaries: tuple[str, ...]) -> None:
    with torch.device('meta'):
        model = timm.create_model(arch)
    assert stage_boundaries(model)[-2:] == boundaries[-2:]


def test_even_boundaries_divide_the_multiply_adds() -> None:
    points = split_points('vit_tiny_patch16_224')
    assert even_boundaries(points) == ('blocks.2', 'blocks.5', 'blocks.8')
    assert even_boundaries([]) == ()


def test_unknown_architecture_raises() -> None:
    with pytest.raises(ValueError, match="timm has no architecture 'resnet51'"):
        split_points('resnet51')
