"""Files of a split: damaged ones, ones that differ, and the classes that each declares."""
from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data.files.toys import numbers, parquet, shard, tar
from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits, open_streams
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError


@pytest.mark.parametrize('streaming', [False, True])
def test_each_split_keeps_the_names_of_its_own_classes(tmp_path: Path, streaming: bool) -> None:
    root = parquet(tmp_path / 'data', 'train.parquet', 0, 1, 2)
    parquet(root, 'validation.parquet', 3, 4, names=['odd', 'even'])
    assert numbers(root) == {'train': [0, 1, 2], 'validation': [3, 4]}
    streams = open_streams(DataConfig(path=str(root), streaming=True))
    assert streams.splits['validation'].features['label'].names == ['odd', 'even']
    assert [row['label'] for row in streams.splits['validation']] == [0, 1]
    assert streams.lengths == {'train': 3, 'validation': 2}


def test_a_compressed_shard(tmp_path: Path) -> None:
    root = tar(tmp_path / 'data', 'train-0.tar', shard(*range(40), label='cls'))
    # `datasets` reads the first half of it without an error, with fewer examples.
    (root / 'train-0.tar').write_bytes(gzip.compress((root / 'train-0.tar').read_bytes()))
    with pytest.raises(TrainError, match=r"train-0.tar' is compressed, and where it ends can't be checked: unpack it"):
        open_splits(DataConfig(path=str(root)))
    (root / 'train-0.tar').rename(root / 'train-0.tar.gz')
    with pytest.raises(TrainError, match=r"unpack 'train-0.tar.gz' and name its folder"):
        open_splits(DataConfig(path=str(root / '*')))


def test_an_empty_shard_is_refused(tmp_path: Path) -> None:
    root = tar(tar(tmp_path / 'data', 'train-0.tar', shard(0, 1)), 'train-1.tar', {})
    with pytest.raises(TrainError, match=r"shard '.*train-1.tar' is empty"):
        open_splits(DataConfig(path=str(root)))


@pytest.mark.parametrize(('keys', 'column'), [(dict(names=['odd', 'even']), 'label'), (dict(other=[1]), 'other')])
def test_shards_of_a_split_must_agree(tmp_path: Path, keys: dict[str, Any], column: str) -> None:
    root = parquet(tmp_path / 'data', 'train-0.parquet', 0, 1)
    parquet(root, 'train-1.parquet', 2, **keys)
    with pytest.raises(TrainError, match=f"files of split 'train' differ in column '{column}'.*train-1.parquet"):
        open_streams(DataConfig(path=str(root), streaming=True))
    if column == 'label':  # joined by name
        assert numbers(root) == {'train': [0, 1, 2]}
        return
    with pytest.raises(TrainError, match=f"differ in column '{column}': missing in 'train-0.parquet'"):
        open_splits(DataConfig(path=str(root)))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'data', 'train-0.parquet', 0, 1), 'train-1.parquet', 2, 3)
    whole = (root / 'train-1.parquet').read_bytes()
    (root / 'train-1.parquet').write_bytes(whole[:-20])
    with pytest.raises(TrainError, match=r"train-1.parquet' can't be read .* it is damaged or no parquet file"):
        open_splits(DataConfig(path=str(root)))


@pytest.mark.parametrize('streaming', [False, True])
def test_tables_without_rows_or_with_two_columns_of_one_name(tmp_path: Path, streaming: bool) -> None:
    root = parquet(parquet(tmp_path / 'data', 'train-0.parquet', 0, 1), 'train-1.parquet')
    config = DataConfig(path=str(root), streaming=streaming)
    with pytest.raises(TrainError, match=r"^'.*train-1.parquet' has no rows: remove it"):
        (open_streams if streaming else open_splits)(config)
    table = pyarrow.parquet.read_table(root / 'train-0.parquet')
    pyarrow.parquet.write_table(table.append_column('label', table['label']), root / 'train-1.parquet')
    with pytest.raises(TrainError, match=r"^'.*train-1.parquet' has several columns of one name, label: rename all"):
        (open_streams if streaming else open_splits)(config)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_tar_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    root = tar(tmp_path_factory.mktemp('cut') / 'data', 'train-0.tar', shard(0, 1, 2, 3, 4, 5, label='cls'))
    whole = (root / 'train-0.tar').read_bytes()
    used = len(whole.rstrip(b'\0'))
    (root / 'train-1.tar').write_bytes(whole[:int(share * used)])
    for streaming in (False, True):
        with pytest.raises(TrainError, match=r"shard '.*train-1.tar' is truncated, .*: copy or download it again"):
            (open_streams if streaming else open_splits)(DataConfig(path=str(root), streaming=streaming))


def test_arrow_files_of_both_formats(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(
        {'image': [[[1, 2], [3, 4]]] * 2, 'label': ['cat', 'dog']}).with_format('arrow')[:]
    for name, new in (('train', pyarrow.ipc.new_file), ('test', pyarrow.ipc.new_stream)):
        with new(tmp_path / f'{name}.arrow', table.schema) as file:
            file.write_table(table)
    source = load_source(DataConfig(path=str(tmp_path)))
    assert source.train.labels.tolist() == [0, 1] and source.test is not None and source.test.labels.tolist() == [0, 1]


def test_the_number_of_streamed_images_is_needed_where_files_do_not_give_it(tmp_path: Path) -> None:
    root = tar(tar(tmp_path / 'data', 'train-0.tar', shard(0, 1)), 'val-0.tar', shard(2, 3))
    with pytest.raises(TrainError, match=r'the number of images .* write --data\.num_train_samples'):
        load_source(DataConfig(path=str(root), streaming=True, val_split='validation'))
