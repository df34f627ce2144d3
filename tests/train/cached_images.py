"""Tensors that are ready for the model, in place of a data set."""
from __future__ import annotations

import torch
from torch.utils.data import TensorDataset


class CachedImages(TensorDataset):
    """Takes the keys of `EpochSampler` as well as plain indices."""

    def __getitem__(self, key: tuple[int, ...] | int) -> tuple[torch.Tensor, ...]:
        return super().__getitem__(key[1] if isinstance(key, tuple) else key)
