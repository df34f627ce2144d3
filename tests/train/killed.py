"""Runs that are killed at an update, and whether they end as one that was not."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from timm_collab.train.loop.step import TrainState

KEYS = ['--epochs=3', '--max_loss=1e6']  # 4 updates each, 12 in all


class KilledError(BaseException):
    """Nothing that any code of ours catches."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / 'tree.safetensors')


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    timed = ('images_per_second', 'wait_seconds')
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert log(one) == log(other)
    summaries = [json.loads((folder / 'summary.json').read_text()) for folder in (one, other)]
    for summary in summaries:
        del summary['train_seconds'], summary['load'], summary['peak_memory_mb']
    assert summaries[0] == summaries[1]


TRAIN_STEP = TrainState.train_step


def kill_before(patch: pytest.MonkeyPatch, count: int) -> None:
    """Make the process die when it has made a number of updates."""
    left = [count]

    def dying(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise KilledError
        return TRAIN_STEP(self, *args)

    patch.setattr(TrainState, 'train_step', dying)
