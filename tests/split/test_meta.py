from __future__ import annotations

import torch
from torch import Tensor, nn

from timm_collab.split.meta import meta_twin


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.alias = self.a
        self.register_buffer('persistent', torch.ones(4))
        self.register_buffer('non_persistent', torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.persistent + self.non_persistent


def test_meta_twin_keeps_structure_and_has_no_data() -> None:
    model = Tied()
    twin = meta_twin(model)
    assert twin.a.weight is twin.b.weight and twin.alias is twin.a
    assert list(twin.state_dict()) == list(model.state_dict()) and 'non_persistent' not in twin.state_dict()
    assert all(tensor.is_meta for tensor in (*twin.parameters(), *twin.buffers()))
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
