"""Whether images have changed is told by their digests, or by sizes and times, and no image is read for it."""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from timm_collab.train.config import DataConfig
from timm_collab.train.data.decoding import stored as module
from timm_collab.train.data.decoding.contents import examine
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.decoding.stored import change, is_copy, stored
from timm_collab.train.data.sources import load_source


@pytest.fixture
def folder(image_folder: Callable[..., Path]) -> Path:
    folder = image_folder(train=20)
    for number, path in enumerate(sorted(folder.rglob('*.png'))):
        path.write_bytes(path.read_bytes() + bytes(1000 - path.stat().st_size))  # of one size, as a decoder sees it
        os.utime(path, ns=(10**9 * number, 10**9 * number))
    return folder


def split_of(folder: Path) -> ImageSplit:
    return load_source(DataConfig(path=str(folder))).train


def exchange(folder: Path) -> None:
    one, other = folder / 'train' / 'cat' / '1.png', folder / 'train' / 'dog' / '3.png'
    one.rename(folder / 'aside')
    other.rename(one)
    (folder / 'aside').rename(other)


def test_exchanged_images_in_memory(folder: Path) -> None:
    split = split_of(folder)
    before = stored(split, examine(split).contents)
    assert change(before, stored(split, examine(split).contents)) is None
    exchange(folder)
    assert change(before, stored(split, examine(split).contents)) == 'images'
    assert change(before, stored(split, None)) == 'images'


def test_exchanged_files_of_one_size(folder: Path) -> None:
    split = split_of(folder)
    before = stored(split, None)
    assert change(before, stored(split, None)) is None
    exchange(folder)
    after = stored(split, None)
    assert before['sizes'] == after['sizes']
    assert change(before, after) == 'modification times of some images' and not is_copy(before, after)


def test_file_of_another_size(folder: Path) -> None:
    split = split_of(folder)
    before = stored(split, None)
    path = folder / 'train' / 'cat' / '1.png'
    path.write_bytes(path.read_bytes() + b'0')
    assert change(before, stored(split, None)) == 'sizes of images'
    path.unlink()
    assert change(before, stored(split, None)) == 'sizes of images'


@pytest.mark.parametrize('parts', [256, 4])
def test_copy_that_lost_the_times_is_a_copy(folder: Path, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    monkeypatch.setattr(module, '_PARTS', parts)
    split = split_of(folder)
    before = stored(split, None)
    assert len(before['times']) == min(parts, 40)
    for path in folder.rglob('*.png'):
        shutil.copyfile(path, folder / 'copy')
        (folder / 'copy').rename(path)
    after = stored(split, None)
    assert change(before, after) is None and is_copy(before, after) and not is_copy(after, after)


@pytest.mark.parametrize('kind', ['parquet', 'saved'])
def test_exchanged_images_in_a_table(tmp_path: Path, kind: str) -> None:
    """Of one length, in a table that is written again."""
    def write(*contents: bytes) -> None:
        features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value('int64'))
        cells = [{'bytes': content, 'path': None} for content in contents]
        table = datasets.Dataset.from_dict({'image': cells, 'label': [0, 1]}, features=features)
        if kind == 'parquet':
            (tmp_path / 'data').mkdir(exist_ok=True)
            table.to_parquet(str(tmp_path / 'data' / 'train.parquet'))
        else:
            table.save_to_disk(str(tmp_path / 'data'))

    write(b'one', b'two')
    before = stored(split_of(tmp_path / 'data'), None)
    after = stored(split_of(tmp_path / 'data'), None)
    assert before == after and not is_copy(before, after)
    write(b'two', b'one')
    after = stored(split_of(tmp_path / 'data'), None)
    assert change(before, after) is None and is_copy(before, after)
    older = {'sizes': before['sizes']}
    assert change(older, after) is None and not is_copy(older, after)


def test_images_in_tables(tmp_path: Path) -> None:
    """Lengths come from the offsets, in the order of a selection."""
    cells = [{'bytes': bytes(length), 'path': None} for length in (3, 1, 4, 1, 5)]
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value('int64'))
    table = datasets.Dataset.from_dict({'image': cells, 'label': [0, 1, 0, 1, 0]}, features=features)

    def split(rows: Any, *indices: int) -> ImageSplit:
        return ImageSplit('train', rows, 'image', 'RGB', np.array(indices), np.zeros(len(indices), np.int64))

    size_N, time_N = module._sizes_and_times(split(table.select([4, 2, 0]), 2, 0))
    assert size_N.tolist() == [3, 5] and not time_N.any()
    assert stored(split(table, 0, 4), None) == stored(split(table.select([4, 2, 0]), 2, 0), None)
    assert change(stored(split(table, 0, 4), None), stored(split(table, 4, 0), None)) == 'sizes of images'
    missing = datasets.Dataset.from_dict({'image': [None, cells[0]]}, features=datasets.Features(
        image=datasets.Image(decode=False)))
    assert module._sizes_and_times(split(missing, 0, 1))[0].tolist() == [-1, 3]
