"""Rows without a label, in tables and in streams."""
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.train.data.labels.toys import classes, refuses, save, table
from timm_collab.train.config import DataConfig, ModelConfig, NoiseConfig, TrainConfig
from timm_collab.train.data.loading.streaming import StreamSampler, StreamSplit
from timm_collab.train.data.sources import Source, load_source
from timm_collab.train.data.splits import make_splits

MISSING = [
    (['cat', None, 'dog', ''], None),
    ([0, -1, 1, -1], None),
    (['cat', '-1', 'dog', ' -1 '], None),
    (['cat', -1, 'dog', None], classes('cat', 'dog')),
    ([0.0, float('nan'), 1.0, None], None),
]


@pytest.mark.parametrize(('labels', 'feature'), MISSING)
def test_rows_without_a_label(tmp_path, labels, feature):
    config = save(tmp_path / 'a', train=table(labels, feature), test=table(labels, feature))
    with refuses("2 of 4 rows of split 'train' have no label in data.label_column 'label' (rows 1, 3, counted"
                 ' from 0 within the split): write --data.on_missing_label skip to leave them out'):
        load_source(config)
    source = load_source(dataclasses.replace(config, on_missing_label='skip'))
    for split in (source.train, source.test):
        assert split.row_N.tolist() == [0, 2] and split.labels.tolist() == [0, 1]
    assert source.left_out == {'no label': 4}


def test_splits_without_any_label(tmp_path):
    for number, labels in enumerate(([None, None], [-1, -1])):
        config = save(tmp_path / str(number), train=table([0, 1]), test=table(labels, datasets.Value('int64')))
        for mode in ('fail', 'skip'):
            with refuses("no row of split 'test'", 'unlabelled, write --data.test_split null; or',
                         '--noise.kind column --noise.column label'):
                load_source(dataclasses.replace(config, on_missing_label=mode))
        assert load_source(dataclasses.replace(config, test_split=None)).train.labels.tolist() == [0, 1]
    with refuses("no row of split 'train' has a label in data.label_column 'label'"):
        load_source(save(tmp_path / 'c', train=table([None, None])))


def test_several_labels_that_are_missing(tmp_path):
    config = dataclasses.replace(save(tmp_path / 'a', train=table([[0, 1], [], None, [1]])), multi_label=True)
    with refuses("1 of 4 rows of split 'train' have no label", '(rows 2, counted from 0 within'):
        load_source(config)
    train = load_source(dataclasses.replace(config, on_missing_label='skip')).train
    assert train.row_N.tolist() == [0, 1, 3] and train.labels.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_a_noise_column_that_lacks_labels(tmp_path):
    train = table([0, 1] * 8, guess=[1, -1] + [1, 0] * 7)
    config = save(tmp_path / 'a', train=train, validation=table([0, 1]))
    with refuses("noise.column: label 9 in row 2 of split 'train' is none of the 2 classes"):
        load_source(save(tmp_path / 'b', train=table([0, 1, 0], guess=[0, 1, 9])), 'guess')
    with refuses("1 of 16 rows of split 'train' have no label in noise.column 'guess' (rows 1, counted"):
        load_source(config, 'guess')
    config = dataclasses.replace(config, on_missing_label='skip')
    recipe = TrainConfig(batch_size=4, model=ModelConfig(name='collab_resnet18'), data=config,
                         noise=NoiseConfig(kind='column', column='guess'))
    made = make_splits(load_source(config, 'guess'), recipe)
    assert made.left_out == {'no label': 1} and made.train.row_N.tolist() == [0, *range(2, 16)]
    assert made.train.labels.tolist() == [1, *[1, 0] * 7] and made.clean.tolist() == [0, *[0, 1] * 7]


def shards(folder: Path, train: list[datasets.Dataset], validation: datasets.Dataset) -> dict[str, Any]:
    for index, rows in enumerate(train):
        rows.to_parquet(str(folder / f'train-{index:05d}-of-{len(train):05d}.parquet'))
    validation.to_parquet(str(folder / 'validation.parquet'))
    return dict(path=str(folder), streaming=True, num_train_samples=8)


def streamed(source: Source, count: int = 8) -> set[int]:
    assert isinstance(source.train, StreamSplit)
    split = dataclasses.replace(source.train, length=count)
    return {example.label for example in StreamSampler(split, 2, 0) if example}


def test_texts_are_streamed_with_a_file_of_names(tmp_path):
    (tmp_path / 'names.txt').write_text('owl\ncat\ndog\n')
    keys = shards(tmp_path, [table(['cat', 'owl'] * 4), table(['cat', 'owl'] * 4)], table(['owl', 'dog']))
    with refuses('streaming needs class indices: write --data.classes with a file'):
        load_source(DataConfig(**keys))
    source = load_source(DataConfig(**keys, classes=str(tmp_path / 'names.txt')))
    assert streamed(source) == {0, 1} and source.val.labels.tolist() == [0, 2]
    (tmp_path / 'names.txt').write_text('owl\ndog\n')
    with refuses("label 'cat' of an image of split 'train'", 'none of the class names'):
        streamed(load_source(DataConfig(**keys, classes=str(tmp_path / 'names.txt'))))


def test_streamed_rows_without_a_label(tmp_path):
    keys = shards(tmp_path, [table(['a', 'b', -1, 'a'] * 2, classes('a', 'b'))] * 2, table(['b'], classes('a', 'b')))
    with refuses('label -1 of an image', 'write --data.on_missing_label skip to leave it out'):
        streamed(load_source(DataConfig(**keys)))
    assert streamed(load_source(DataConfig(**keys, on_missing_label='skip'))) == {0, 1}
