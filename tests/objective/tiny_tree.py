"""A small handwritten tree: [H, B, C] in train mode, [B, C] of the kept head in eval mode."""
from __future__ import annotations

import torch
from torch import Tensor, nn

H, B, C, SIZE = 3, 8, 5, 4


class TinyTree(nn.Module):
    """A trunk and three heads, each with a classifier of two parts."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.num_heads, self.kept_head, self.num_classes = H, 1, C
        norm_layer = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16), norm_layer, nn.ReLU())
        self.heads = nn.ModuleList(
            nn.ModuleDict({'block': nn.Linear(16, 16), 'norm': nn.LayerNorm(16), 'fc': nn.Linear(16, C)})
            for _ in range(H)
        )

    def get_classifier(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(head['norm'], head['fc']) for head in self.heads]

    def head_logits(self, x: Tensor, head: nn.Module) -> Tensor:
        return head['fc'](head['norm'](head['block'](x).relu()))

    def forward_heads(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return torch.stack([self.head_logits(x, head) for head in self.heads])

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_heads(x) if self.training else self.head_logits(self.trunk(x), self.heads[self.kept_head])


def make_tree(norm: bool = True) -> TinyTree:
    torch.manual_seed(0)
    return TinyTree(norm)


def make_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, 3, SIZE, SIZE, generator=generator), torch.randint(C, (B,), generator=generator)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
