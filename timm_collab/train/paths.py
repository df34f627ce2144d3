"""Names of the files of a run and of a folder with a timm model, and atomic writes."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..pretrained.download import CONFIG as MODEL_CONFIG
from ..pretrained.download import TREE, WEIGHTS
from .errors import TrainError

__all__ = [
    'BAD_IMAGES', 'BATCH', 'CARD', 'CHECKPOINTS', 'CONFIG', 'FORMATS', 'LABELS', 'LOCK', 'METRICS', 'MODEL_CONFIG',
    'PLAIN', 'PLOTS', 'PRUNED', 'RECIPE', 'SINGLE', 'SUMMARY', 'TRACKING', 'TREE', 'VALIDATION', 'WEIGHTS', 'atomic',
    'write_text',
]

# A run.
CONFIG = 'config.yaml'  # the resolved recipe
METRICS = 'metrics.jsonl'
SUMMARY = 'summary.json'  # in an exported folder, too
PRUNED = 'pruned'  # holds MODEL_CONFIG and WEIGHTS
SINGLE = 'single'  # the run of the network alone
PLAIN = 'plain'  # the same by cross-entropy
LABELS = 'train_labels.csv'
BAD_IMAGES = 'bad_images.csv'  # left out, or replaced while training
CHECKPOINTS = 'checkpoints'
PLOTS = 'plots'  # in an exported folder, too
TRACKING = 'tracking'
VALIDATION = 'validation.json'
BATCH = 'exploded_batch.json'
LOCK = '.lock'

# An exported folder; beside it may lie a file for each of FORMATS, with that suffix.
RECIPE = 'recipe.yaml'
CARD = 'README.md'
FORMATS = ('pt2', 'onnx')


@contextmanager
def atomic(path: Path, sync: bool = True) -> Iterator[Path]:
    """Write a file or a folder completely or not at all.

    The context gives a partial path beside the final one, `.<name>.partial`. It is moved into place when the block ends
    without an error, and removed otherwise; what a killed process left there is removed first.

    Args:
        path: Final path; its folder is created. A file that is there is replaced, a folder only if it is empty.
        sync: Flush what was written to disk before it is moved, so that it is complete after a power failure, too.

    Raises:
        OSError: The path can't be written.
    """
    partial = path.with_name(f'.{path.name}.partial')
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(partial)
    try:
        yield partial
        if sync:
            for each in (partial, *partial.rglob('*')):
                _sync(each)
        os.replace(partial, path)
        if sync:
            _sync(path.parent)
    finally:
        _remove(partial)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, and create its folder.

    Raises:
        TrainError: The file can't be written.
    """
    try:
        with atomic(path) as partial:
            partial.write_text(text, encoding='utf-8')
    except OSError as error:
        raise TrainError(f"'{path}' can't be written: {error}") from error


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == 'nt':
        return  # Windows can't open folders
    descriptor = os.open(path, os.O_RDONLY if os.name != 'nt' else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
