"""The folder of a run: new, unfinished or finished, and never that of another recipe.

It holds `config.yaml`, `metrics.jsonl`, `checkpoints/`, `summary.json`, `tree.safetensors`, `pruned/` and, of labels
with noise, `train_labels.csv`.
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
from ..data.labels import Labels
from ..data.splits import Splits
from ..errors import TrainError, require
from ..paths import BATCH, CHECKPOINTS, CONFIG, LABELS, LOCK, METRICS, PRUNED, SINGLE, SUMMARY, TREE, write_text
from .summary import RunSummary

LOCK_SECONDS = 10
"""How long to wait for a folder: the workers of a killed process hold its lock for some seconds more."""


class RunState(Enum):
    """How far the run of a folder has come."""

    NEW = 'new'
    UNFINISHED = 'unfinished'
    FINISHED = 'finished'


def choose_folder(config: TrainConfig) -> Path:
    """The folder asked for, or a fresh one under `runs/`, named after the moment and the model."""
    if config.output is not None:
        return Path(config.output).expanduser()
    name = f'{time.strftime("%Y%m%d-%H%M%S")}-{config.model.name}'
    folder, count = Path('runs', name), 1
    while folder.exists():
        count += 1
        folder = Path('runs', f'{name}-{count}')
    return folder


def inspect_folder(folder: Path, config: TrainConfig) -> RunState:
    """See what a folder holds and whether this recipe may write there, without creating anything.

    Raises:
        TrainError: It holds the run of another recipe, or one that isn't to be resumed, or something that isn't a run;
            it can't be created or written to.
    """
    check_writable(folder)
    if not (folder / CONFIG).exists():
        for name in (METRICS, SUMMARY, PRUNED, SINGLE, LABELS, CHECKPOINTS, TREE):
            require(not (folder / name).exists(), f"output '{folder}' holds a part of a run ({name}) without its recipe"
                                                  f' ({CONFIG}): put that back to resume, or choose another folder')
        return RunState.NEW
    require(config.resume, f"output '{folder}' already holds a run ({CONFIG}) and resume is false: choose another"
                           ' folder')
    try:
        saved = yaml.safe_load((folder / CONFIG).read_text(encoding='utf-8'))
        require(isinstance(saved, dict), 'it holds no keys')
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise TrainError(f"'{folder / CONFIG}' can't be read ({reason}): bring it back from a copy, or choose another"
                         ' output') from error
    if changed := differences(saved, config):
        raise TrainError(f"output '{folder}' holds a run of another recipe; it was -> you asked: {'; '.join(changed)}."
                         ' Ask for what it was to resume, or choose another output')
    return RunState.UNFINISHED if read_summary(folder) is None else RunState.FINISHED


def check_writable(folder: Path) -> None:
    """See whether a folder can be created or written to, without doing either.

    Raises:
        TrainError: It can't.
    """
    try:
        ancestor = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError as error:  # a name that is too long, for one
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
    """Whether a process trains in a folder just now, as far as one can see that."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # somebody else's folder
        return False


class RunLock:
    """While open, no other process trains in the folder; it is freed by the system however the process ends.

    Args:
        folder: The run's folder, created if need be.

    Raises:
        TrainError: Another process holds it, or it can't be created.
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
    """The folder of one run, for the process that holds its lock.

    Args:
        path: The folder; created with its parents.
        config: What runs in it; saved as a recipe that runs it again.

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
        """Where the kept head is saved."""
        return self.path / PRUNED

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`.

        Raises:
            TrainError: The disk is full, say.
        """
        try:
            with open(self.path / METRICS, 'a', encoding='utf-8') as file:
                file.write(json.dumps(row) + '\n')
        except OSError as error:
            raise TrainError(f"'{self.path / METRICS}' can't be written ({error}): make room, then run the same command"
                             ' to go on') from error

    def write_log(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write `metrics.jsonl` anew with the rows of a checkpoint, whatever became of it since."""
        self._write(METRICS, ''.join(json.dumps(row) + '\n' for row in rows))

    def write_labels(self, splits: Splits) -> None:
        """Write what was trained on, where noise changed labels: row in the training split, clean and noisy labels."""
        if splits.labels is None or not splits.noise_rate:
            return
        rows = splits.train.located(range(len(splits.train)))[1]
        columns = (rows, *map(_in_words, splits.labels))
        text = io.StringIO(newline='')
        writer = csv.writer(text)
        writer.writerow(('row', 'clean', 'noisy'))
        writer.writerows(zip(*columns, strict=True))
        self._write(LABELS, text.getvalue())

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Write which batch made the loss explode."""
        self._write(BATCH, json.dumps(batch, indent=2) + '\n')

    def write_summary(self, summary: RunSummary) -> None:
        """Write `summary.json`, the last file of a run: where it exists, the run is finished."""
        summary.write(self.path / SUMMARY)

    def _write(self, name: str, text: str) -> None:
        write_text(self.path / name, text)


def _in_words(labels: Labels) -> list[Any]:
    """Class indices as they are, several labels as the indices of those that are there: `0 3 7`."""
    if labels.ndim == 1:
        return list(labels.tolist())
    return [' '.join(map(str, row_C.nonzero()[0].tolist())) for row_C in labels]
