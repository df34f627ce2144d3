"""Tables of images: which file is which split, and what else a folder with tables may hold."""
from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.train.data.files.toys import numbers, numbers_per_split, parquet, png, rows, shard, tar
from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits, open_streams
from timm_collab.train.data.files.tables import split_of_files
from timm_collab.train.errors import TrainError


@pytest.mark.parametrize(('names', 'splits', 'unnamed'), [
    (['train.parquet', 'test.parquet'], {'train': [0], 'test': [1]}, []),
    (['train-00000-of-00002.parquet', 'train-00001-of-00002.parquet', 'Validation-00000-of-00001.parquet'],
     {'train': [0, 1], 'validation': [2]}, []),
    (['train_01.tar', 'train0.tar', 'val_01.tar', 'VAL.2.tar'], {'train': [1, 0], 'validation': [3, 2]}, []),
    (['train.0.parquet', 'testing 1.parquet'], {'train': [0], 'test': [1]}, []),
    (['train/0.tar', 'train/1.tar', 'val/0.tar'], {'train': [0, 1], 'validation': [2]}, []),
    (['data/train-00000-of-00001.parquet', 'data/test-00000-of-00001.parquet'], {'train': [0], 'test': [1]}, []),
    (['data/train-00000-of-00001-0a9f.parquet', 'data/extra-00000-of-00001.parquet', 'x.parquet'],
     {'train': [0], 'extra': [1]}, [2]),
    # What all names share may come first.
    (['cifar10_train.parquet', 'cifar10_test.parquet'], {'train': [0], 'test': [1]}, []),
    (['in1k-train-0.tar', 'in1k-train-1.tar', 'in1k-validation-0.tar'], {'train': [0, 1], 'validation': [2]}, []),
    # No file has the name of a split: all are training data.
    (['b.parquet', 'a.parquet'], {'train': [1, 0]}, []),
    (['trains.parquet', 'contest.parquet', 'devices.parquet'], {'train': [1, 2, 0]}, []),
    (['data-00000-of-00002.arrow', 'data-00001-of-00002.arrow'], {'train': [0, 1]}, []),
    (['train.parquet', 'labels.parquet'], {'train': [0]}, [1]),
    (['val.parquet'], {'validation': [0]}, []),
])
def test_whole_leading_words_name_the_split(names: list[str], splits: dict[str, list[int]], unnamed: list[int]) -> None:
    files = [f'/root/train set/{name}' for name in names]
    found, left = split_of_files(files, '/root/train set')
    assert found == {split: [files[index] for index in indices] for split, indices in splits.items()}
    assert left == [files[index] for index in unnamed]


@pytest.mark.parametrize(('names', 'message'), [
    (['train/test-0.tar', 'train/1.tar'], "in a folder of split 'train' and has the name 'test' of another: rename it"),
    (['train.parquet', 'test.parquet', 'eval.parquet'],
     "test.parquet' and '/root/eval.parquet' are both the split 'test', by the names 'test' and 'eval': rename one"),
    (['val/0.tar', 'dev/0.tar'], "both the split 'validation', by the names 'val' and 'dev'"),
    (['train/val/0.tar'], 'in folders of two splits, train and validation'),
    (['my_train.parquet', 'your_test.parquet'], "can't be told apart by their names"),
    (['my_train.parquet', 'other.parquet'], "can't be told apart by their names"),
])
def test_splits_that_cannot_be_told(names: list[str], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        split_of_files([f'/root/{name}' for name in names], '/root')


def test_folders_and_patterns_have_the_same_splits(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'train [1] data*', 'train.parquet', 0, 1, 2), 'test.parquet', 3, 4)
    expected = {'train': [0, 1, 2], 'test': [3, 4]}
    assert numbers(root) == expected
    parquet(parquet(tmp_path / 'plain', 'train.parquet', 0, 1, 2), 'test.parquet', 3, 4)
    assert numbers(tmp_path / 'plain' / '*.parquet') == expected
    assert numbers(tmp_path / 'plain' / 't*') == expected
    assert numbers(tmp_path / '**' / 't*n.parquet') == {'train': [0, 1, 2] * 2}
    assert numbers(tmp_path / 'plain' / 'train.parquet') == {'train': [0, 1, 2]}
    # Files in folders named after splits.
    parquet(parquet(tmp_path / 'nested', 'Train/0.parquet', 0, 1), 'Val/0.parquet', 2)
    for path in (tmp_path / 'nested', tmp_path / 'nested' / '*' / '*.parquet'):
        assert numbers(path) == {'train': [0, 1], 'validation': [2]}


def test_left_out_files_of_a_folder(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'data', 'train.parquet', 0, 1), 'extra.parquet', 2)
    (root / 'preview.png').write_bytes(png(0))
    (root / 'labels.csv').write_text('a,b')
    (root / 'README.md').write_text('# Data')
    opened = open_splits(DataConfig(path=str(root)))
    assert list(opened.splits) == ['train']
    assert opened.left_out == {'a file beside the tables (.csv)': 1, 'an image beside the tables': 1,
                               'a table without the name of a split': 1}
    assert "such as 'extra.parquet'" in opened.notes[0]


def test_refused_folders(tmp_path: Path) -> None:
    root = parquet(tmp_path / 'data', 'train.parquet', 0, 1)
    tar(root, 'train.tar', shard(0, 1))
    for path in (root, root / '*'):
        with pytest.raises(TrainError, match=r'files of several types, such as train\.parquet and train\.tar'):
            open_splits(DataConfig(path=str(path)))
    (root / 'train.tar').unlink()
    with pytest.raises(TrainError, match="'::' in a path stands for a file in an archive: rename it"):
        open_splits(DataConfig(path=str(root.rename(tmp_path / 'a::b'))))


@pytest.mark.parametrize('table', ['0.parquet', 'data/0.parquet', 'train/0.parquet'])
def test_tables_beside_classes_are_never_ignored(tmp_path: Path, table: str) -> None:
    root = parquet(tmp_path / 'data', table, 0, 1)
    for name in ('cat', 'dog'):
        (root / 'train' / name).mkdir(parents=True)
        (root / 'train' / name / '0.png').write_bytes(png(0))
    with pytest.raises(TrainError, match=f'has both class folders and tables, such as {table}: move one of them'):
        open_splits(DataConfig(path=str(root)))
    (root / table).rename(root / 'train' / 'cat' / 'features.parquet')  # of a class
    assert numbers_per_split(root) == {'train': 2}


def test_tables_that_map_caches_are_no_data(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    for split, of_split in (('train', (0, 1, 2, 3)), ('test', (5, 4))):
        rows(*of_split).save_to_disk(root / split)
        saved = datasets.load_from_disk(root / split)
        saved.map(lambda row: {'label': 1 - row['label']})
        assert len(list((root / split).glob('cache-*.arrow'))) == 1
    expected = {'train': [0, 1, 2, 3], 'test': [5, 4]}
    for path in (root, root / '*' / '*.arrow'):
        assert numbers(path) == expected
    assert open_splits(DataConfig(path=str(root))).left_out == {
        'a file beside the tables (.json)': 4, 'a table that datasets cached beside those of save_to_disk': 2}
    streams = open_streams(DataConfig(path=str(root), streaming=True))
    assert [len(list(split)) for split in streams.splits.values()] == [4, 2]
    # A file that is named is read.
    assert numbers_per_split(root / 'train' / 'cache-*.arrow') == {'train': 4}


def test_the_cause_of_a_failed_copy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    root = parquet(tmp_path / 'data', 'train.parquet', 0, 1)
    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, 'write_table', full)
    with pytest.raises(TrainError, match=r'OSError: .*No space left on device\): free space on the disk of .* or set'
                                         ' HF_DATASETS_CACHE') as raised:
        open_splits(DataConfig(path=str(root)))
    assert 'DatasetGenerationError' not in str(raised.value)
