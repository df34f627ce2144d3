"""How many predictions of training images change from epoch to epoch, which tells when wrong labels are memorized.

Shapes: N training images, H heads, B batch, C classes.
"""
from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather
from torch import Tensor


class PredictionChanges:
    """Number of training images whose predicted class is another than in the epoch before.

    Paper: `Early Stopping Against Label Noise Without Validation Data` (Label Wave) - https://arxiv.org/abs/2502.07551.
    Predictions are those of the training batches themselves, the mean of the heads' logits; an image that an epoch
    leaves out keeps its prediction.

    Args:
        num_images: Number of training images, N.
        smoothing_epochs: Number of epochs over which `smoothed` averages.
        accelerator: The processes. Each of them has all predictions, 8 bytes per image.

    Attributes:
        history: The number of changes after each epoch; None for the first, which has none before it.
    """

    def __init__(self, num_images: int, smoothing_epochs: int, accelerator: Accelerator) -> None:
        self.smoothing_epochs = smoothing_epochs
        self.accelerator = accelerator
        self.predicted_N = torch.full((num_images,), -1, dtype=torch.int32, device=accelerator.device)
        self.before_N = self.predicted_N.clone()
        self.history: list[int | None] = []

    def store(self, index_B: Tensor, logits_HBC: Tensor) -> None:
        """Store the predicted classes of this process's part of a batch, and of those of all other processes."""
        predicted_B = logits_HBC.detach().mean(dim=0).argmax(dim=-1).to(self.predicted_N.dtype)
        if self.accelerator.num_processes > 1:
            index_B, predicted_B = gather(index_B), gather(predicted_B)
        self.predicted_N[index_B] = predicted_B

    def end_epoch(self) -> int | None:
        """Compare with the epoch before. Returns the number of changes."""
        known_N = self.before_N >= 0
        changed = int((self.predicted_N != self.before_N)[known_N].sum()) if known_N.any() else None
        self.before_N = self.predicted_N.clone()
        self.history.append(changed)
        return changed

    @property
    def smoothed(self) -> float | None:
        """Mean number of changes of the last epochs; None after the first epoch."""
        known = [count for count in self.history[-self.smoothing_epochs:] if count is not None]
        return sum(known) / len(known) if known else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next epochs depend on."""
        return {'predicted': self.predicted_N, 'before': self.before_N, 'history': self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state of another run."""
        self.predicted_N.copy_(state['predicted'])
        self.before_N.copy_(state['before'])
        self.history = list(state['history'])
