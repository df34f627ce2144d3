from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import IterableDataset

from tests.hub_server.data_sets import DataSetServer
from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError


def png(value: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(encoded, 'png')
    return encoded.getvalue()


def tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, 'w') as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two WebDataset shards of three images each; the image's brightness is its number, its label odd or even."""
    (tmp_path / 'shards').mkdir()
    for shard in range(2):
        members = {}
        for number in range(3 * shard, 3 * shard + 3):
            members |= {f'{number:04}.png': png(number), f'{number:04}.cls': str(number % 2).encode()}
        tar(tmp_path / 'shards' / f'train-{shard}.tar', members)
    return tmp_path / 'shards'


def check(path: object, count: int = 6, **keys: Any) -> None:
    train = load_source(DataConfig(path=str(path), **keys)).train
    assert len(train) == count
    for index in range(count):
        brightness = np.asarray(train.image(index))
        assert brightness.min() == brightness.max() and brightness.max() % 2 == train.labels[index]
    assert len({np.asarray(train.image(index)).max() for index in range(count)}) == count


def test_webdataset_shards(shards: Path) -> None:
    columns = dict(image_column='png', label_column='cls')
    check(shards, **columns)
    check(shards / '*.tar', **columns)
    check(shards / 'train-1.tar', count=3, **columns)
    check(shards)


def test_files_written_by_datasets(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['even', 'odd']))
    cells = [{'bytes': png(number), 'path': None} for number in range(6)]
    rows = datasets.Dataset.from_dict({'image': cells, 'label': [0, 1] * 3}, features=features)
    rows.to_parquet(tmp_path / 'a.parquet')
    rows.save_to_disk(tmp_path / 'saved')
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / 'splits')
    for path in ('a.parquet', '*.parquet', 'saved', 'splits', 'saved/*.arrow'):
        check(tmp_path / path)
    source = load_source(DataConfig(path=str(tmp_path / 'splits')))
    assert source.label_names == ['even', 'odd'] and source.test is not None and len(source.test) == 1


def classes(folder: Path, *splits: str) -> Path:
    for split in splits:
        for label, name in enumerate(('even', 'odd')):
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                (folder / split / name / f'{number}.png').write_bytes(png(2 * number + label))
    return folder


def test_timms_readers(tmp_path: Path) -> None:
    folder = classes(tmp_path / 'folder', 'train', 'validation')
    check('timm:', root=str(folder))
    source = load_source(DataConfig(path='timm:', root=str(folder), val_split='validation'))
    assert source.label_names == ['even', 'odd'] and source.val is not None and source.test is None
    # A folder's images are read where they lie; those in a tar file are not files.
    assert source.train.encoded(np.array([0]))[0]['bytes'] is None
    tar(tmp_path / 'all.tar', {f'{("even", "odd")[number % 2]}/{number}.png': png(number) for number in range(6)})
    check('timm:', root=str(tmp_path / 'all.tar'))
    (tmp_path / 'all.tar').unlink()
    tar(tmp_path / 'all.tar', {f'{("even", "odd")[number % 2]}/{number}.png': png(number) for number in range(4)})
    check('timm:', root=str(tmp_path / 'all.tar'), count=4)


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(path='timm:', root='{}', val_split='val', test_split='validation'), "'val' and 'validation' from the same"),
    (dict(path='timm:torch/cifar10', root='{}'), "timm can't read split 'train' from data.root"),
    (dict(path='timm:', root='{}/nowhere'), "timm can't read split 'train'"),
    (dict(path='{}', root='{}'), "data.root is for timm's readers"),
    (dict(path='{}', name='plain'), 'data.name is for datasets with several configurations, and .* has none'),
    (dict(path='{}', revision='main'), 'data.revision is for datasets of the Hub'),
    (dict(path='{}/*.tar'), 'matches no file'),
    (dict(path='{}/notes.txt'), "'notes.txt' can't be read as data: name files of one type, .parquet, .arrow, .tar"),
    (dict(path='{}/notes.*'), 'files of several types, such as notes.parquet and notes.txt'),
])
def test_invalid_keys_for_timms_readers(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    folder = classes(tmp_path / 'folder', 'train', 'validation')
    for name in ('notes.txt', 'notes.parquet'):
        (folder / name).touch()
    with pytest.raises(TrainError, match=message):
        load_source(DataConfig(**{key: value.format(folder) for key, value in keys.items()}))  # type: ignore[arg-type]


def test_sequential_readers_of_timm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sequence(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    monkeypatch.setattr('timm.data.create_dataset', lambda *_, **__: Sequence())
    with pytest.raises(TrainError, match='is read sequentially, and training needs random access'):
        load_source(DataConfig(path='timm:wds/x', root='/data'))


def test_configuration_and_revision_reach_the_hub(monkeypatch: pytest.MonkeyPatch, parquet_folder: Path) -> None:
    load, asked = datasets.load_dataset_builder, []

    def from_hub(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return load(str(parquet_folder))

    monkeypatch.setattr(datasets, 'load_dataset_builder', from_hub)
    load_source(DataConfig(path='user/name', name='plain', revision='v1'))
    assert asked == [(('user/name', 'plain'), {'revision': 'v1'})]


def test_broken_image_in_an_archive_names_its_row(shards: Path, image_folder: Callable[..., Path]) -> None:
    tar(shards / 'train-2.tar', {'9.png': b'no image', '9.cls': b'1'})
    source = load_source(DataConfig(path=str(shards), image_column='png', label_column='cls'))
    with pytest.raises(TrainError, match="row 6 of split 'train' can't be decoded"):
        source.train.image(6)


def test_splits_of_timms_folders_are_separate(tmp_path: Path) -> None:
    root = classes(tmp_path / 'folder', 'train', 'val')
    for split in ('train', 'val'):
        (root / split / 'even').rename(root / split / 'train_station')
    source = load_source(DataConfig(path='timm:', root=str(root), val_split='val'))
    assert source.val is not None and (len(source.train), len(source.val)) == (6, 6)
    assert source.label_names == ['odd', 'train_station']
    # timm falls back to the whole root where it finds no folder of that name.
    (root / 'train').rename(root / 'Train')
    with pytest.raises(TrainError, match=r"data\.train_split: timm finds no folder 'train' in .* would read all of"
                                         ' Train, val together: write --data.train_split Train or val'):
        load_source(DataConfig(path='timm:', root=str(root)))
    assert len(load_source(DataConfig(path='timm:', root=str(root), train_split='Train')).train) == 6


def test_names_of_classes_come_with_each_split_of_timm(tmp_path: Path) -> None:
    root = classes(tmp_path / 'folder', 'train', 'val')
    shutil.rmtree(root / 'val' / 'even')
    opened = open_splits(DataConfig(path='timm:', root=str(root), val_split='val'))
    assert opened.splits['train'].features['label'].names == ['even', 'odd']
    assert opened.splits['val'].features['label'].names == ['odd'] and opened.splits['val']['label'] == [0, 0, 0]


@pytest.mark.parametrize('below', ['', 'data'])
def test_a_folder_of_images_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    root = classes(tmp_path / 'repository' / below, 'train', 'val')
    for split in ('train', 'val'):
        (root / split / 'even').rename(root / split / 'test tube')
    code = ('from timm_collab.train.config import DataConfig\n'
            'from timm_collab.train.data.files.readers import open_splits\n'
            "for split, rows in open_splits(DataConfig(path='user/images')).splits.items():\n"
            "    print(split, rows.features['label'].names, rows['label'][:])\n")
    with DataSetServer(tmp_path / 'repository', 'user/images') as server:
        environment = {**os.environ, 'HF_ENDPOINT': server.endpoint, 'HF_HOME': str(tmp_path / 'home'),
                       'HF_HUB_DISABLE_XET': '1', 'HF_HUB_OFFLINE': '0'}
        environment.pop('HF_DATASETS_CACHE', None)
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, env=environment, timeout=240)
    assert done.stdout.splitlines() == [f"{split} ['odd', 'test tube'] [0, 0, 0, 1, 1, 1]"
                                        for split in ('train', 'validation')], done.stderr[-2000:]
