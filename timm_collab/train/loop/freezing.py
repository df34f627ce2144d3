"""Hold the trunk still for the first epochs, while fresh branches learn to read what it gives them."""
from __future__ import annotations

from typing import Any

import torch.nn as nn


class FrozenTrunk:
    """Keeps the trunk of a tree as it is during the first epochs: weights, and statistics of its batch norms.

    Frozen weights have no gradient when the optimizer steps, so it passes them over: no update, no weight decay, no
    momentum. What is done depends on the epoch alone, so a run that goes on from a checkpoint does the same.

    In one process nothing is computed backward through the trunk. DistributedDataParallel waits in every step for the
    gradient of each parameter that it was made with, and never shares one of a parameter that was frozen then; so with
    several processes the gradients are computed, and dropped.

    Args:
        model: `CollabModel`, not wrapped.
        epochs: How many epochs the trunk stays frozen.
        distributed: Whether several processes share the gradients.
    """

    def __init__(self, model: nn.Module, epochs: int, distributed: bool) -> None:
        self.trunk: Any = model.nodes['trunk']  # type: ignore[index]
        self.epochs = epochs
        self.distributed = distributed
        self.frozen = False

    def apply(self, epoch: int) -> None:
        """Freeze or free the trunk; call it at the start of each epoch (from 0), after `model.train()`."""
        self.frozen = epoch < self.epochs
        if self.epochs and not self.distributed:
            self.trunk.requires_grad_(not self.frozen)
        if self.frozen:
            # Only these: a trunk in eval mode as a whole would lose its dropout and could compute something else.
            for module in self.trunk.modules():
                if getattr(module, 'track_running_stats', False):
                    module.eval()

    def drop_gradients(self) -> None:
        """Forget the gradients of a frozen trunk; call it before gradients are clipped and the optimizer steps."""
        if self.frozen:
            for parameter in self.trunk.parameters():
                parameter.grad = None
