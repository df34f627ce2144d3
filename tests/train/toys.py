"""Random images, a small tree and a trainer for both, without a data set."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from timm_collab.train import TrainConfig
from timm_collab.train.data.loading.images import evaluation_loader, training_loader
from timm_collab.train.loop.trainer import Callbacks, Loaders, Trainer


class CachedImages(TensorDataset):
    """Tensors that are ready for the model; takes the keys of `EpochSampler` as well as plain indices."""

    @property
    def split(self) -> SimpleNamespace:
        return SimpleNamespace(labels=self.tensors[1].numpy())

    def __getitem__(self, key: tuple[int, ...] | int) -> tuple[Tensor, ...]:
        return super().__getitem__(key[1] if isinstance(key, tuple) else key)


def make_data(size: int = 16) -> tuple[Tensor, Tensor]:
    """48 grey images of ten classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 1, size, size, generator=generator), torch.randint(10, (48,), generator=generator)


def make_model(heads: int, name: str = 'collab_test_resnet', **kwargs: Any) -> nn.Module:
    """A tree, always the same."""
    set_seed(0)
    return timm.create_model(name, heads=heads, num_classes=10, in_chans=1, **kwargs)


def make_trainer(
        config: TrainConfig,
        model: nn.Module,
        on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
        data: tuple[Tensor, Tensor] | None = None,
        accelerator: Accelerator | None = None,
        clean: Tensor | None = None,
        class_weights: Tensor | None = None,
) -> Trainer:
    """A trainer on `data` that validates on its first 20 images."""
    data = make_data() if data is None else data
    train_loader, sampler = training_loader(
        CachedImages(*data), config.batch_size, 0, config.seed, balanced=config.data.sampling == 'balanced')
    val = evaluation_loader(TensorDataset(data[0][:20], data[1][:20]), 8, 0)
    accelerator = accelerator or Accelerator(cpu=True)
    loaders = Loaders(train_loader, sampler, val, None, clean, data[1])
    return Trainer(config, model, loaders, accelerator, Callbacks(on_epoch), class_weights=class_weights)
