"""Small datasets in every supported format, in temporary folders."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from tests.train.killed import kill_before
from timm_collab.train import TrainConfig
from timm_collab.train.config.parse import parse_config

MakeImages = Callable[..., list[Image.Image]]
Recipe = Callable[..., TrainConfig]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Use a temporary cache for `datasets`, and reset the state of Accelerate after each test."""
    cache = tmp_path_factory.getbasetemp() / 'datasets-cache'
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', cache)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def images() -> MakeImages:
    """Make images whose brightness depends on their label."""

    def make(labels: list[int], size: int = 8, mode: str = 'RGB') -> list[Image.Image]:
        rng = np.random.default_rng(0)
        return [
            Image.fromarray((20 + 40 * label + rng.integers(0, 20, (size, size))).astype(np.uint8)).convert(mode)
            for label in labels
        ]

    return make


@pytest.fixture
def parquet_folder(tmp_path, images) -> Path:
    """40 training and 10 test images of two classes, as parquet files."""
    folder = tmp_path / 'parquet'
    folder.mkdir()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['dark', 'bright']))
    for split, count in (('train', 40), ('test', 10)):
        labels = [index % 2 for index in range(count)]
        rows = datasets.Dataset.from_dict({'image': images(labels), 'label': labels}, features=features)
        rows.to_parquet(str(folder / f'{split}.parquet'))
    return folder


@pytest.fixture
def image_folder(tmp_path, images) -> Callable[..., Path]:
    """Write images as `<split>/<class>/<number>.png`, or without a split folder if it is ''."""

    def make(**counts: int) -> Path:
        folder = tmp_path / 'images'
        for split, count in (counts or {'': 12}).items():
            for label, name in enumerate(('cat', 'dog')):
                (folder / split / name).mkdir(parents=True)
                for number, image in enumerate(images([label] * count)):
                    image.save(folder / split / name / f'{number}.png')
        return folder

    return make


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """A recipe on the shipped digits that takes seconds, with further options of the command line."""

    def make(*argv: str) -> TrainConfig:
        return parse_config([
            '--model.name=collab_test_resnet', '--model.heads=2', '--data.path=builtin:digits', '--data.img_size=16',
            '--data.in_chans=1', '--data.max_train_samples=128', '--augment.no_aug=true', '--optim.lr=0.02',
            '--epochs=1', '--batch_size=32', '--plots=false', f'--output={tmp_path / "run"}', *argv,
        ])

    return make


@pytest.fixture(scope='session')
def digit_shards(tmp_path_factory) -> Path:
    """The shipped digits as shards: 4 files of 32 training images, 40 validation images and 40 test images."""
    folder = tmp_path_factory.mktemp('digit-shards')
    digits = files('timm_collab') / 'data' / 'digits'
    cache = tmp_path_factory.mktemp('digit-shards-cache')
    train = datasets.Dataset.from_parquet(str(digits / 'train.parquet'), cache_dir=str(cache))
    for file in range(4):
        name = folder / f'train-{file:05d}-of-00004.parquet'
        train.select(range(32 * file, 32 * file + 32)).to_parquet(str(name))
    train.select(range(200, 240)).to_parquet(str(folder / 'validation.parquet'))
    train.select(range(300, 340)).to_parquet(str(folder / 'test.parquet'))
    return folder


LABELS = [*map(str, range(10)), 'even', 'large']


@pytest.fixture(scope='session')
def several_labels(tmp_path_factory) -> Path:
    """Digits with several labels (the digit, `even` and `large`) in three formats."""
    folder = tmp_path_factory.mktemp('several-labels')
    digits = files('timm_collab') / 'data' / 'digits'
    for split, count in (('train', 160), ('test', 60)):
        rows = datasets.Dataset.from_parquet(str(digits / f'{split}.parquet'), cache_dir=str(folder / 'cache'))
        rows = rows.select(range(count))
        listed = [[d] + [10] * (d % 2 == 0) + [11] * (d >= 5) for d in rows['label']]
        table = {
            'image': rows['image'],
            'label': listed,
            'names': [[LABELS[each] for each in one] for one in listed],
            'vector': [[int(each in one) for each in range(12)] for one in listed],
            'other': [[(each + 1) % 12 for each in one] for one in listed],
        }
        features = datasets.Features(
            image=datasets.Image(),
            label=datasets.Sequence(datasets.ClassLabel(names=LABELS)),
            names=datasets.Sequence(datasets.Value('string')),
            vector=datasets.Sequence(datasets.Value('int8'), length=12),
            other=datasets.Sequence(datasets.Value('int64')),
        )
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(folder / f'{split}.parquet'))
    shutil.rmtree(folder / 'cache')
    return folder


@pytest.fixture
def kill_at(monkeypatch):
    """Make the process die when it has made a number of updates."""
    return lambda count: kill_before(monkeypatch, count)
