"""The progress bar of an epoch."""
from __future__ import annotations

import sys

import torch
from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

GB = 2**30
BAR = '{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'


class Progress:
    """A bar with loss, score, images per second, memory, and the remaining time of the epoch.

    Shown by the main process on a terminal only: a log file gets a line per epoch instead.

    Args:
        images: Number of images of the epoch, of all processes together.
        epoch: The epoch, from 0.
        epochs: Number of epochs.
        device: Where the run computes.
        is_main: Whether this is the main process.
        done: Number of images of the epoch that were trained on before the run was resumed.
        score_name: Name of the score.
    """

    def __init__(
            self,
            images: int,
            epoch: int,
            epochs: int,
            device: torch.device,
            is_main: bool,
            done: int = 0,
            score_name: str = 'top-1',
    ) -> None:
        self.device = device
        self.score_name = score_name
        self.shown: dict[str, str] = {}
        self.bar = tqdm(
            total=images,
            initial=done,
            desc=f'epoch {epoch + 1}/{epochs}',
            unit=' images',
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            bar_format=BAR,
            disable=not (is_main and sys.stderr.isatty()),
        )

    def update(self, images: int, loss: float | None = None, score: float | None = None) -> None:
        """Advance the bar.

        Args:
            images: Number of images since the last call, of all processes together.
            loss: Mean loss of the epoch so far. When left out, the last one stays: reading it waits for the device.
            score: Score of the epoch so far, mean of the heads, in percent; left out likewise.
        """
        if self.bar.disable:
            return
        if loss is not None:
            self.shown['loss'] = f'{loss:.3f}'
        if score is not None:
            self.shown[self.score_name] = f'{score:.1f}%'
        if loss is not None or score is not None:
            self.shown['memory'] = f'{peak_memory(self.device) / GB:.1f}GB'
            self.bar.set_postfix(self.shown, refresh=False)
        self.bar.update(images)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def peak_memory(device: torch.device) -> int:
    """Peak memory so far in bytes: of tensors on a GPU, of the process on a CPU; 0 where it isn't known."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of a GPU; that of a process can't be reset."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
