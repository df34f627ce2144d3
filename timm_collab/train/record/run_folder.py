"""The folder of a run, new, unfinished or finished; a folder with the run of another recipe is refused.

It holds `config.yaml`, `metrics.jsonl`, `checkpoints/`, `summary.json`, `tree.safetensors`, `pruned/`; with label noise
`train_labels.csv`, and where images can't be decoded `bad_images.csv`.
"""
from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ..checkpoint import Checkpoints
from ..config import TrainConfig
from ..config.differences import differences
from ..data.decoding.image_split import BadImage
from ..data.labels.label_column import Labels
from ..data.splits import Splits
from ..errors import TrainError, one_line, require
from ..paths import (
    BAD_IMAGES,
    BATCH,
    CHECKPOINTS,
    CONFIG,
    LABELS,
    LOCK,
    METRICS,
    PLAIN,
    PRUNED,
    SINGLE,
    SUMMARY,
    TREE,
    write_text,
)
from .summary import RunSummary

LOCK_SECONDS = 10
"""How long to wait for a folder: the workers of a killed process keep its lock for some seconds."""


class RunState(Enum):
    """State of the run in a folder."""

    NEW = 'new'
    UNFINISHED = 'unfinished'
    FINISHED = 'finished'


def choose_folder(config: TrainConfig) -> Path:
    """The folder that the recipe names, or a new one under `runs/`, named after time and model."""
    if config.output is not None:
        return Path(config.output).expanduser()
    name = f'{time.strftime("%Y%m%d-%H%M%S")}-{config.model.name}'
    folder, count = Path('runs', name), 1
    while folder.exists():
        count += 1
        folder = Path('runs', f'{name}-{count}')
    return folder


def inspect_folder(folder: Path, config: TrainConfig) -> RunState:
    """Check what a folder holds and whether this recipe may write there, without creating anything.

    Raises:
        TrainError: The folder holds the run of another recipe, a run that may not be resumed, or a part of a run; or it
            can't be created or written to.
    """
    check_writable(folder)
    if not (folder / CONFIG).exists():
        for name in (METRICS, SUMMARY, PRUNED, SINGLE, PLAIN, LABELS, CHECKPOINTS, TREE):
            require(not (folder / name).exists(), f"output '{folder}' holds a part of a run ({name}) without its recipe"
                                                  f' ({CONFIG}): put that back to resume, or choose another folder')
        return RunState.NEW
    require(config.resume, f"output '{folder}' already holds a run ({CONFIG}) and resume is false: choose another"
                           ' folder')
    try:
        saved = yaml.safe_load((folder / CONFIG).read_text(encoding='utf-8'))
        require(isinstance(saved, dict), 'it holds no keys')
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise TrainError(f"'{folder / CONFIG}' can't be read ({reason}): bring it back from a copy, or choose another"
                         ' output') from error
    if changed := differences(saved, config):
        raise TrainError(f"output '{folder}' holds a run of another recipe; it was -> you asked: {'; '.join(changed)}."
                         ' Ask for what it was to resume, or choose another output')
    return RunState.UNFINISHED if read_summary(folder) is None else RunState.FINISHED


def check_writable(folder: Path) -> None:
    """Check that a folder can be created and written to, without doing either.

    Raises:
        TrainError: The folder can't be created or written to.
    """
    try:
        ancestor = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError as error:  # e.g. a name that is too long
        raise TrainError(f"output '{folder}' can't be created: {error.strerror}") from error
    require(ancestor.is_dir(), f"output '{folder}' can't be created: '{ancestor}' is a file")
    require(os.access(ancestor, os.W_OK | os.X_OK), f"output '{folder}' can't be written: no permission to write to"
                                                    f" '{ancestor}'")


def read_summary(folder: Path) -> RunSummary | None:
    """The summary of a finished run; None if the file is missing or can't be parsed.

    Raises:
        TrainError: The summary lacks keys, see `RunSummary.from_dict`.
    """
    try:
        values = json.loads((folder / SUMMARY).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return RunSummary.from_dict(values, str(folder / SUMMARY)) if isinstance(values, dict) else None


def is_in_use(folder: Path) -> bool:
    """Whether a process is training in a folder, as far as its lock shows."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # another user's folder
        return False


class RunLock:
    """A context in which no other process can train in a folder. However the process ends, the system unlocks it.

    Args:
        folder: The run's folder; created if it doesn't exist.

    Raises:
        TrainError: Another process has locked the folder, or it can't be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, timeout=LOCK_SECONDS)

    def __enter__(self) -> RunLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise TrainError(f"output '{self.folder}' is in use by another process: wait until it ends, or choose"
                             ' another folder') from None
        except OSError as error:
            raise TrainError(f"output '{self.folder}' can't be written: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class RunFolder:
    """The folder of a run, for the process that has locked it.

    Args:
        path: The folder; created with its parents.
        config: The recipe, which is saved in the folder.

    Raises:
        TrainError: As `inspect_folder`.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self.state = inspect_folder(path, config)
        if self.state is RunState.NEW:
            self._write(CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
        self.checkpoints.clear_partial()

    @property
    def pruned(self) -> Path:
        """Folder of the pruned model."""
        return self.path / PRUNED

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`.

        Raises:
            TrainError: The file can't be written, e.g. as the disk is full.
        """
        try:
            with open(self.path / METRICS, 'a', encoding='utf-8') as file:
                file.write(json.dumps(row) + '\n')
        except OSError as error:
            raise TrainError(f"'{self.path / METRICS}' can't be written ({error}): free disk space, then run the same"
                             ' command to resume') from error

    def write_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace `metrics.jsonl` by the rows of a checkpoint."""
        self._write(METRICS, ''.join(json.dumps(row) + '\n' for row in rows))

    def write_labels(self, splits: Splits) -> None:
        """Write `train_labels.csv` if labels have noise: row in the training split, clean and noisy labels."""
        if splits.labels is None or not splits.noise_rate:
            return
        rows = splits.train.located(range(len(splits.train)))[1]
        columns = (rows, *map(_as_text, splits.labels))
        self._write_table(LABELS, [('row', 'clean', 'noisy'), *zip(*columns, strict=True)])

    def write_bad_images(self, bad: Iterable[BadImage]) -> None:
        """Add images that can't be decoded to `bad_images.csv`, which before a resume may have listed others."""
        path, listed = self.path / BAD_IMAGES, dict.fromkeys(tuple(map(str, each)) for each in bad)
        if not listed:
            return
        before = []
        if path.is_file():
            with open(path, newline='', encoding='utf-8') as file:
                before = [tuple(row) for row in csv.reader(file)][1:]
        self._write_table(BAD_IMAGES, [BadImage._fields, *dict.fromkeys([*before, *listed])])

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Write the batch at which the loss exploded."""
        self._write(BATCH, json.dumps(batch, indent=2) + '\n')

    def write_summary(self, summary: RunSummary) -> None:
        """Write `summary.json`, the last file of a run: where it exists, the run is finished."""
        summary.write(self.path / SUMMARY)

    def _write_table(self, name: str, rows: Iterable[Iterable[Any]]) -> None:
        text = io.StringIO(newline='')
        csv.writer(text).writerows(rows)
        self._write(name, text.getvalue())

    def _write(self, name: str, text: str) -> None:
        write_text(self.path / name, text)


def _as_text(labels: Labels) -> list[Any]:
    """Class indices as they are; multi-label rows as the indices of their labels: `0 3 7`."""
    if labels.ndim == 1:
        return list(labels.tolist())
    return [' '.join(map(str, row_C.nonzero()[0].tolist())) for row_C in labels]
