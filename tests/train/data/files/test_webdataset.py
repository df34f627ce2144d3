"""Images and labels in WebDataset shards."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.train.data.files.toys import numbers, numbers_per_split, png, shard, tar
from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits, open_streams
from timm_collab.train.data.loading.streaming import StreamSplit
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError


@pytest.mark.parametrize('label', ['json', 'cls'])
@pytest.mark.parametrize('streaming', [False, True])
def test_labels_of_webdataset_shards(tmp_path: Path, label: str, streaming: bool) -> None:
    root = tar(tmp_path / 'data', 'train-0.tar', shard(0, 1, 2, 3, label=label))
    tar(tar(root, 'train-1.tar', shard(5, 4, label=label)), 'val-0.tar', shard(7, 8, label=label))
    assert numbers(root) == {'train': [0, 1, 2, 3, 5, 4], 'validation': [7, 8]}
    keys: dict[str, Any] = dict(streaming=True, num_train_samples=6) if streaming else {}
    source = load_source(DataConfig(path=str(root), val_split='validation', **keys))
    assert source.val is not None and source.val.labels.tolist() == [1, 0]
    if isinstance(source.train, StreamSplit):
        stream = source.train.read(0, 1, 1, seed=0, epoch=0)
        examples = [next(stream) for _ in range(6)]
        found = [int(np.asarray(datasets.Image().decode_example(each[0]))[0, 0, 0]) for each in examples]
        assert sorted(found) == [0, 1, 2, 3, 4, 5] and [each[1] for each in examples] == [each % 2 for each in found]
    else:
        assert source.train.labels.tolist() == [0, 1, 0, 1, 1, 0]


def test_a_key_of_the_json_files_as_label_column(tmp_path: Path) -> None:
    root = tar(tmp_path / 'data', 'train-0.tar', shard(0, 1, 2, 3))
    assert load_source(DataConfig(path=str(root), label_column='number')).train.labels.tolist() == [0, 1, 2, 3]
    streams = open_streams(DataConfig(path=str(root), label_column='number', streaming=True))
    assert [row['number'] for row in streams.splits['train']] == [0, 1, 2, 3]
    with pytest.raises(TrainError, match=r"no column 'nubmer', the data has png, json, .*label, number; did you mean"):
        load_source(DataConfig(path=str(root), label_column='nubmer'))


@pytest.mark.parametrize('streaming', [False, True])
def test_the_label_of_a_sample_with_several(tmp_path: Path, streaming: bool) -> None:
    members = {}
    for number in range(6):
        members |= {f'{number}.png': png(number), f'{number}.cls': str(number % 2).encode(),
                    f'{number}.json': json.dumps({'label': 1 - number % 2, 'other': number}).encode(),
                    f'{number}.txt': ('even\n', 'odd\r\n', 'even')[number % 3].encode()}
    root = tar(tmp_path / 'data', 'train-0.tar', members)

    def labels(column: str) -> list[Any]:
        config = DataConfig(path=str(root), label_column=column, streaming=streaming)
        rows = (open_streams if streaming else open_splits)(config).splits['train']
        assert [row['png'] is not None for row in rows] == [True] * 6
        return [row[column] for row in rows]

    assert labels('label') == [0, 1, 0, 1, 0, 1]  # .cls counts
    assert labels('other') == [0, 1, 2, 3, 4, 5]
    assert labels('txt') == ['even', 'odd', 'even'] * 2


@pytest.mark.parametrize(('extension', 'first', 'message'), [
    ('jpeg', 6, r"train-0.tar': the image of sample '6' is .jpeg, and those of the first samples are .png, which 1 of 7"
                ' samples lack: write all with one extension'),
    ('PNG', 6, r"sample '6' is .PNG, and those of the first samples are .png"),
    ('jpeg', 2, 'the first samples of a shard differ in their members, write all with the same extensions'),
])
def test_images_of_several_extensions_in_shards(tmp_path: Path, extension: str, first: int, message: str) -> None:
    last = {f'6.{extension}': png(6), '6.cls': b'0'}
    root = tar(tmp_path / 'data', 'train-0.tar', {
        **{f'{name}.{kind}': data for name in range(first) for kind, data in (('png', png(name)), ('cls', b'0'))},
        **last})
    with pytest.raises(TrainError, match=message) as raised:
        open_splits(DataConfig(path=str(root)))
    assert '\n' not in str(raised.value)
    # So do shards that differ.
    tar(tar(root, 'train-0.tar', shard(*range(6), label='cls')), 'train-1.tar', last)
    with pytest.raises(TrainError, match=f"train-1.tar': the image of sample '6' is .{extension}, and those"):
        open_splits(DataConfig(path=str(root)))
    # A sample without any image is one to skip.
    tar(root, 'train-1.tar', {'6.cls': b'0'})
    assert numbers_per_split(root) == {'train': 7}


def test_words_in_cls_members(tmp_path: Path) -> None:
    members = {f'{name}.{kind}': data for name in range(6) for kind, data in (('png', png(name)), ('cls', b'dog'))}
    with pytest.raises(TrainError, match=r'a member \.cls holds an integer, store words as \.txt and write'):
        open_splits(DataConfig(path=str(tar(tmp_path / 'data', 'train-0.tar', members))))
