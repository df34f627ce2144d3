"""The names of the files in a run's folder, and writing them atomically."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..pretrained.download import TREE

__all__ = [
    'BATCH', 'CHECKPOINTS', 'CONFIG', 'LABELS', 'LOCK', 'METRICS', 'PLOTS', 'PRUNED', 'SINGLE', 'SUMMARY', 'TREE',
    'atomic',
]

CONFIG = 'config.yaml'
METRICS = 'metrics.jsonl'
SUMMARY = 'summary.json'
PRUNED = 'pruned'
SINGLE = 'single'
LABELS = 'train_labels.csv'
CHECKPOINTS = 'checkpoints'
PLOTS = 'plots'
BATCH = 'exploded_batch.json'
LOCK = '.lock'


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file or a folder completely or not at all.

    The context gives a partial path beside the final one, `.<name>.partial`. It is moved into place when the block ends
    without an error, and removed otherwise; what a killed process left there is removed first.

    Args:
        path: Final path; its folder is created. A file that is there is replaced, a folder only if it is empty.

    Raises:
        OSError: The path can't be written.
    """
    partial = path.with_name(f'.{path.name}.partial')
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
