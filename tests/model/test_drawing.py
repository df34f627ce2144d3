from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from torch import nn
from torch.utils import deterministic

from timm_collab.model.drawing import Drawing
from timm_collab.split.meta import named_tensors


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """Memory that is allocated and never written to shows as NaN."""
    before = deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


def drawn(model: nn.Module) -> set[str]:
    return {name for name, tensor in named_tensors(model) if not tensor.is_floating_point() or not tensor.isnan().any()}


@pytest.mark.usefixtures('unwritten_is_nan')
@pytest.mark.parametrize(('arch', 'paths'), [
    ('test_resnet', ['layer4', 'fc']),
    ('test_vit', ['blocks.4', 'blocks.5', 'norm', 'head']),
    ('test_convnext', ['stages.3', 'norm_pre', 'head']),
    ('test_efficientnet', ['blocks.3', 'conv_head', 'bn2', 'classifier.weight', 'classifier.bias']),
    ('swin_tiny_patch4_window7_224', ['layers.3', 'norm', 'head']),
    ('deit_tiny_distilled_patch16_224', ['blocks.11', 'norm', 'head', 'head_dist']),
])
def test_what_is_asked_for_is_drawn_and_the_rest_is_not(arch: str, paths: list[str]) -> None:
    torch.manual_seed(0)
    drawing = Drawing(lambda: timm.create_model(arch))
    whole = drawing.whole()
    assert drawn(whole) == dict(named_tensors(whole)).keys()
    part = drawing.part(paths)
    wanted = {name for name, _ in named_tensors(whole) if f'{name}.'.startswith(tuple(f'{path}.' for path in paths))}
    assert wanted and wanted <= drawn(part)
    weights = {name for name, tensor in part.named_parameters() if tensor.ndim > 1}
    left_out = weights - drawn(part)
    assert len(left_out) > len(weights - wanted) * .8  # what isn't allocated empty is cheap, or is drawn all the same
    for name in wanted:
        a, b = whole.state_dict().get(name), part.state_dict().get(name)
        if a is None or not a.is_floating_point() or a.numel() < 500:
            continue
        assert b.std().item() == pytest.approx(a.std().item(), rel=.2), name  # from the same distribution
        assert a.std() == 0 or not torch.equal(a, b), name  # and not the same


def test_the_first_network_is_the_one_the_constructor_makes() -> None:
    torch.manual_seed(0)
    expected = timm.create_model('test_vit').state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(v, expected[k]) for k, v in Drawing(lambda: timm.create_model('test_vit')).whole()
               .state_dict().items())


class Copying(nn.Module):
    """Its last layer starts as its first: nothing of that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(30, 30), nn.Linear(30, 30)
        with torch.no_grad():
            self.last.weight.copy_(self.first.weight)


class Moody(nn.Module):
    """It makes other tensors the second time."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.first, self.last = nn.Linear(30, 20 + self.made), nn.Linear(20 + self.made, 30)


@pytest.mark.usefixtures('unwritten_is_nan')
@pytest.mark.parametrize('create', [Copying, Moody])
def test_a_constructor_that_needs_what_it_wrote_draws_everything(create: Callable[[], nn.Module]) -> None:
    drawing = Drawing(create)
    drawing.whole()
    part = drawing.part(['last'])
    assert drawn(part) == {'first.weight', 'first.bias', 'last.weight', 'last.bias'}
    if isinstance(part, Copying):
        assert torch.equal(part.first.weight, part.last.weight)


class Tying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(30, 30), nn.Linear(30, 30)
        self.last.weight = self.first.weight


@pytest.mark.usefixtures('unwritten_is_nan')
def test_a_tied_tensor_is_drawn_for_any_of_its_names() -> None:
    drawing = Drawing(Tying)
    drawing.whole()
    assert drawn(drawing.part(['last'])) == {'first.weight', 'last.weight', 'last.bias'}


def test_without_storage_there_is_nothing_to_draw() -> None:
    with torch.device('meta'):
        drawing = Drawing(lambda: timm.create_model('test_resnet'))
        whole, part = drawing.whole(), drawing.part(['fc'])
    assert all(tensor.is_meta for _, tensor in named_tensors(part))
    assert whole.fc is not part.fc and list(whole.state_dict()) == list(part.state_dict())
