"""How many worker processes load images."""
from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..decoding.contents import num_cores

Workers = int | Literal['auto']
"""Number of worker processes, or `auto`."""

MAX_WORKERS = 16
WORTH_SECONDS = 2.0
"""Time to load the images of a split once from which `auto` starts workers, each of which takes 0.1 s to start."""
WORTH_STREAMED = 5000
"""Images per epoch of a stream from which it does, as measuring a stream would start to read it."""
CPU_QUOTA = Path('/sys/fs/cgroup/cpu.max')
"""Where Linux says how many cores a container may use."""
_TIMED = 8


def num_workers(dataset: Any, asked: Workers) -> int:
    """Number of workers for a dataset: for `auto` one for each spare core, or none if they would save little.

    Args:
        dataset: Images that are loaded one by one.
        asked: `data.workers` of the recipe.
    """
    if asked != 'auto':
        return asked
    spare = spare_cores()
    if spare == 0:
        return 0
    seconds = []
    for index in np.linspace(0, len(dataset) - 1, _TIMED + 1).astype(int).tolist():
        start = time.perf_counter()
        dataset[index]
        seconds.append(time.perf_counter() - start)
    processes = int(os.environ.get('WORLD_SIZE', 1))
    # The first includes what is loaded once.
    return spare if statistics.median(seconds[1:]) * len(dataset) / processes >= WORTH_SECONDS else 0


def stream_workers(num_images: int, asked: Workers) -> int:
    """Number of workers for a stream with this many images per epoch."""
    if asked != 'auto':
        return asked
    return spare_cores() if num_images >= WORTH_STREAMED else 0


def spare_cores() -> int:
    """Cores that this process may use for workers: its share of the machine, less one for itself, at most 16."""
    cores: float = num_cores()
    if CPU_QUOTA.is_file():
        quota, period = CPU_QUOTA.read_text().split()
        cores = cores if quota == 'max' else min(cores, int(quota) / int(period))
    share = cores / int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    return min(max(int(share) - 1, 0), MAX_WORKERS)
