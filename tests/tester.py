"""Shared checks that every architecture and every tree has to pass."""
from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor

from timm_collab import CollabModel
from timm_collab.split.segments import Chain
from timm_collab.sweep.checks import check_logits, check_partition, check_pruned, check_training, settle


@dataclass(frozen=True)
class Family:
    """A small architecture of one family, and where to split it."""

    arch: str
    splits: tuple[str, str]
    size: int = 64
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.arch


FAMILIES = (
    Family('resnet18', ('layer2', 'layer3')),
    Family('resnet18', ('bn1', 'layer3.0'), kwargs=dict(drop_rate=.1, drop_path_rate=.1)),  # then in place
    Family('cifar_resnet8', ('layer1', 'layer2'), 32),
    Family('convnext_atto', ('stages.1', 'stages.2.blocks.1'), kwargs=dict(drop_path_rate=.1)),
    Family('efficientnet_b0', ('blocks.2', 'blocks.4.1'), kwargs=dict(drop_rate=.2, drop_path_rate=.1)),
    Family('densenet121', ('features.denseblock2.denselayer3', 'features.transition2')),  # four live tensors
    Family('regnetx_002', ('s2', 's3.b1')),
    Family('test_vit', ('blocks.2', 'blocks.4'), 160),
    Family('deit_tiny_distilled_patch16_224', ('blocks.5', 'blocks.8'), kwargs=dict(img_size=64, drop_rate=.1)),
    Family('swin_tiny_patch4_window7_224', ('layers.1', 'layers.2.blocks.3'), 112, dict(img_size=112)),
    Family('mobilenetv4_conv_small', ('blocks.1', 'blocks.2.3')),
    Family('vit_tiny_r_s16_p8_224', ('blocks.2', 'blocks.8'), kwargs=dict(img_size=64)),  # a hybrid
    Family('hrnet_w18_small', ('stage2', 'stage3')),  # live lists of tensors
)


def images(size: int, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def check_tree(arch: str, size: int, tree: Any, **kwargs: Any) -> CollabModel:
    """Check that the tree computes the same as its plain networks, and that every head prunes to one of them."""
    torch.manual_seed(0)
    model = CollabModel(arch, tree=tree, num_classes=7, **kwargs)
    plain = timm.create_model(arch, num_classes=7, **kwargs)
    x = images(size)
    assert model.train()(x).shape == (model.num_heads, 2, 7)
    check_partition(model, plain)
    check_pruned(model, plain)
    check_logits(settle(model, x), plain, x)
    check_training(model, x, head=model.num_heads - 1)
    return model.eval()


def check_composition(arch: str, size: int, splits: tuple[str, ...], **kwargs: Any) -> Chain:
    """Check that the subgraphs between the splits equal the network bit for bit, forward and backward."""
    torch.manual_seed(0)
    plain = timm.create_model(arch, num_classes=7, **kwargs)
    chain = Chain(plain, splits, (3, size, size))
    cuts = range(chain.end + 1)
    x = images(size)
    settle(plain, x)
    with torch.no_grad():
        assert torch.equal(chain.run(cuts, x, plain), plain(x))
    full = copy.deepcopy(plain).train()
    plain.train()
    torch.manual_seed(2)
    logits = chain.run(cuts, x, plain)
    torch.manual_seed(2)
    expected = full(x)
    assert torch.equal(logits, expected)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), full.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), full.buffers(), strict=True):
        assert torch.equal(a, b), name
    return chain
