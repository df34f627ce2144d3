"""Images of other sizes than the one a network was traced at, and inputs that are not images."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import _registry
from torch import Tensor, nn

from tests.tester import images
from timm_collab import CollabModel
from timm_collab.sweep.checks import check_training, settle


class SizeDependent(nn.Module):
    """Runs other operations for small images than for large ones, with a layer of their own if `extra` is set."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.pretrained_cfg = {'input_size': (3, 32, 32)}
        self.num_classes = 5
        self.extra = extra
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.small, self.block = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        tiny = x.shape[-1] < 24
        x = self.mix(self.stem(x))
        x = self.small(x) if tiny and self.extra else x.flip(-1) * 2 if tiny else x
        x = self.block(x)
        return self.head(x.amax((2, 3)) if x.shape[-1] > 40 else x.mean((2, 3)))


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type[nn.Module]], None]:
    """Register an architecture with timm for one test."""

    def add(name: str, create: Callable[..., nn.Module]) -> None:
        monkeypatch.setitem(_registry._model_entrypoints, name, lambda pretrained=False, **kwargs: create())

    return add


def test_size_dependent_network_is_traced_again(register: Callable[..., None]) -> None:
    register('size_dependent', SizeDependent)
    model = CollabModel('size_dependent', tree='stem:[mix:2 | head]').eval()
    for size in (32, 16, 64, 33, 16):
        x = images(size)
        with torch.no_grad():
            for head, logits in enumerate(model.forward_heads(x)):
                assert torch.equal(logits, model.prune(head)(x))
        check_training(model, x, head=2)
        model.eval()
    assert {size: len(nodes) > 0 for size, nodes in model._resized.items()} == {
        (16, 16): True, (64, 64): True, (33, 33): False,  # 33 pixels run the same operations as 32
    }


def test_size_that_uses_other_layers_raises(register: Callable[..., None]) -> None:
    register('size_dependent_extra', lambda: SizeDependent(extra=True))
    model = CollabModel('size_dependent_extra', tree='stem:2')
    with pytest.raises(ValueError, match=r'uses other tensors in .* on images of 16x16: create the tree for that size'):
        model(images(16))


def test_compiled_tree_supports_sizes_seen_before(register: Callable[..., None]) -> None:
    register('size_dependent', SizeDependent)
    torch.compiler.reset()
    model = CollabModel('size_dependent', tree='mix:2').eval()
    with torch.no_grad():
        expected = model(images(16))
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        assert torch.equal(compiled(images(16)), expected)
        assert torch.equal(compiled(images(32)), model(images(32)))


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning', 'ignore::torch.jit.TracerWarning')
def test_jit_traced_tree_supports_sizes_seen_before(register: Callable[..., None]) -> None:
    register('size_dependent', SizeDependent)
    model = CollabModel('size_dependent', tree='mix:2').eval()
    with torch.no_grad():
        for seen in (48, 16):
            expected = model.prune()(images(seen))
            model(images(seen))
            assert torch.equal(torch.jit.trace(model, images(seen))(images(seen)), expected)
        plain = CollabModel('test_resnet', num_classes=5).eval()  # its programs are the same for all sizes
        traced = torch.jit.trace(plain, images(64))
        assert torch.equal(traced(images(64)), plain.prune()(images(64)))


@pytest.mark.parametrize('arch', ['test_resnet', 'efficientnet_b0', 'convnext_atto', 'xcit_nano_12_p16_224'])
def test_other_sizes_and_batch_sizes(arch: str) -> None:
    model = settle(CollabModel(arch, num_classes=5), images(64))
    with torch.no_grad():
        for height, width, batch in ((96, 96, 1), (48, 96, 3), (224, 224, 2)):
            x = torch.randn(batch, 3, height, width)
            assert torch.equal(model(x), model.prune()(x))


@pytest.mark.parametrize('arch', ['vit_tiny_patch16_224', 'eva02_tiny_patch14_224'])
def test_position_embeddings_are_resized_to_each_input(arch: str) -> None:
    model = CollabModel(arch, num_classes=5, dynamic_img_size=True, tree='blocks.5:2').eval()
    with torch.no_grad():
        for height, width in ((224, 224), (112, 224), (336, 112)):  # multiples of both patch sizes
            x = torch.randn(2, 3, height, width)
            for head, logits in enumerate(model.forward_heads(x)):
                assert torch.equal(logits, model.prune(head)(x))


def test_new_size_in_inference_mode() -> None:
    model = settle(CollabModel('test_resnet', num_classes=5), images(64))
    expected = model.prune()(images(48)).detach()
    with torch.inference_mode():
        assert torch.equal(model(images(48)), expected)  # a size not seen before
    model.train()(images(48)).sum().backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize(('x', 'complaint'), [
    (torch.randn(3, 64, 64), r'a head tree takes images \[B, in_chans, height, width\], got shape \[3, 64, 64\]'),
    ({'patches': torch.randn(2, 16, 768)}, r'takes images \[B, in_chans, height, width\], got dict'),
])
def test_input_that_is_not_a_batch_of_images_raises(x: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CollabModel('test_resnet')(x)


def test_unsupported_size_raises_with_the_reason_of_the_architecture() -> None:
    model = CollabModel('vit_tiny_patch16_224')
    with pytest.raises(ValueError, match=r"tiny_patch16_224' does not accept images of 100x100: .*doesn't match model"):
        model(images(100))
    with pytest.raises(AssertionError, match="doesn't match model"):
        timm.create_model('vit_tiny_patch16_224')(images(100))
