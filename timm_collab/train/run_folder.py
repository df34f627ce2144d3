"""The folder of a run, never written over another run.

It holds `config.yaml`, `metrics.jsonl`, `summary.json`, `pruned/`, `tree.safetensors` and, of labels with noise,
`train_labels.csv`.
"""
from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from .config import TrainConfig
from .data.splits import Splits
from .errors import TrainError, require

CONFIG, METRICS, SUMMARY, PRUNED, SINGLE = 'config.yaml', 'metrics.jsonl', 'summary.json', 'pruned', 'single'
LABELS = 'train_labels.csv'
TREE = 'tree.safetensors'


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


def check_folder(folder: Path) -> None:
    """See whether a run can be written to a folder, without creating anything.

    Raises:
        TrainError: It holds a run already, or it can't be created or written to.
    """
    for name in (CONFIG, METRICS, SUMMARY, PRUNED, SINGLE, LABELS, TREE):
        require(not (folder / name).exists(), f"output '{folder}' already holds a run ({name}): choose another folder")
    ancestor = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    require(ancestor.is_dir(), f"output '{folder}' can't be created: '{ancestor}' is a file")
    require(os.access(ancestor, os.W_OK | os.X_OK), f"output '{folder}' can't be written: no permission to write to"
                                                    f" '{ancestor}'")


class RunFolder:
    """A run's folder, claimed by this run.

    Args:
        path: The folder; it and its parents are created.
        config: What is about to run; saved as a recipe that runs it again.

    Raises:
        TrainError: Another run holds the folder, or it can't be written to.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Exclusive creation: of two runs that start at once in one folder, the second is refused.
            with open(path / CONFIG, 'x', encoding='utf-8') as file:
                yaml.safe_dump(config.to_dict(), file, sort_keys=False)
        except FileExistsError:
            raise TrainError(f"output '{path}' already holds a run ({CONFIG}): choose another folder") from None
        except OSError as error:
            raise TrainError(f"output '{path}' can't be written: {error}") from error

    @property
    def pruned(self) -> Path:
        """Where the kept head is saved."""
        return self.path / PRUNED

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with open(self.path / METRICS, 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')

    def write_labels(self, splits: Splits) -> None:
        """Write what was trained on, where noise changed labels: row in the training split, clean and noisy label."""
        if not splits.noise_rate:
            return
        columns = (splits.train.row_N, splits.clean_N, splits.train.labels_N)
        with open(self.path / LABELS, 'w', encoding='utf-8', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(('row', 'clean', 'noisy'))
            writer.writerows(zip(*(column.tolist() for column in columns), strict=True))

    def write_tree(self, model: Any) -> None:
        """Write the weights of all heads, as validated, whole or not at all; the metadata names the kept one."""
        partial = self.path / f'.{TREE}.partial'
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, partial, {'kept_head': str(model.kept_head)})
        # safetensors makes a file that only its owner can read.
        shutil.copymode(self.path / CONFIG, partial)
        os.replace(partial, self.path / TREE)

    @staticmethod
    def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` of a run's folder, whole or not at all."""
        partial = folder / f'.{SUMMARY}.partial'
        partial.write_text(json.dumps(summary, indent=2) + '\n', encoding='utf-8')
        os.replace(partial, folder / SUMMARY)
