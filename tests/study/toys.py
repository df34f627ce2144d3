"""A toy study of two methods in three settings, with invented results."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from timm_collab.study import Row, Study, read_study

GRID = {
    'about': 'A toy',
    'recipes': ['quickstart', 'methods/clean'],
    'keys': {'epochs': 10},
    'settings': {'labels': {
        'clean': {'noise.rate': 0},
        '40 %': {'noise': {'rate': 0.4}},
        'by people': {'noise.rate': 0, 'noise.kind': 'column', 'noise.column': 'worst'},
    }},
    'methods': {'single': {'recipes': ['methods/single']}, 'tree': {'recipes': ['methods/heads4']}},
    'baseline': 'single',
    'seeds': [0, 1, 2],
}


def study_in(folder: Path, **changes: Any) -> Study:
    """Write the toy study to a folder, with changes, and read it."""
    path = folder / 'toy.yaml'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
    return read_study(path)


def row(setting: str, method: str, seed: int, error: float, **changes: Any) -> Row:
    """A row with an error."""
    tree = method == 'tree'
    return Row(**{
        'setting': setting, 'method': method, 'seed': seed, 'metric': 'top1', 'error': error,
        'error_consensus': error - 0.5 * tree,
        'error_on': "split 'test'", 'error_last': error + 1, 'error_oracle': error - 1, 'kept_epoch': 7,
        'epochs': 10, 'train_images': 1000, 'noise_rate': 0.4 * (setting == '40 %'),
        'parameters_trained': 200 if tree else 100, 'parameters_kept': 100, 'kept_head': 0,
        'multiply_adds': 600 if tree else 300, 'train_seconds': 30.0 if tree else 10.0, 'device': 'cpu, 1 thread',
        'versions': 'timm 1, torch 2', 'commit': 'abc', 'recipe': f'recipes/{setting}/{method}/seed-{seed}.yaml',
        'fingerprint': '0123456789ab', **changes,
    })


def rows() -> list[Row]:
    """Rows for two of three settings: with noise the tree is better by 1, 2 and 3 points, without it has one seed."""
    errors = {
        ('clean', 'single'): {0: 5.0, 1: 5.5, 2: 6.0}, ('clean', 'tree'): {0: 5.25},
        ('40 %', 'single'): {0: 20.0, 1: 24.0, 2: 28.0}, ('40 %', 'tree'): {0: 19.0, 1: 22.0, 2: 25.0},
    }
    made = [row(*cell, seed, error) for cell, by_seed in errors.items() for seed, error in by_seed.items()]
    return sorted(made, key=lambda each: each.seed)
