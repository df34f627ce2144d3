"""Tables of images: which file is which split, shards that are damaged or differ, labels in WebDataset shards."""
from __future__ import annotations

import errno
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits, open_streams
from timm_collab.train.data.files.tables import split_of_files
from timm_collab.train.data.loading.streaming import StreamSplit
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError


def png(number: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(encoded, 'png')
    return encoded.getvalue()


def rows(*numbers: int, names: list[str] | None = None, **columns: list[Any]) -> datasets.Dataset:
    """Images that tell their number, whose label is the number modulo 2."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names or ['even', 'odd']))
    cells = {'image': [{'bytes': png(number), 'path': None} for number in numbers],
             'label': [features['label'].str2int(('even', 'odd')[number % 2]) for number in numbers], **columns}
    for name in columns:
        features[name] = datasets.Value('int64')
    return datasets.Dataset.from_dict(cells, features=features)


def parquet(root: Path, name: str, *numbers: int, **keys: Any) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    rows(*numbers, **keys).to_parquet(str(root / name))
    return root


def tar(root: Path, name: str, members: dict[str, bytes]) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, 'w') as file:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return root


def shard(*numbers: int, label: str = 'json') -> dict[str, bytes]:
    """Members of a shard, with the label as `.cls` or in `.json`."""
    members = {}
    for number in numbers:
        text = json.dumps({'label': number % 2, 'number': number}) if label == 'json' else str(number % 2)
        members |= {f'{number:03}.png': png(number), f'{number:03}.{label}': text.encode()}
    return members


def numbers(path: Path | str, **keys: Any) -> dict[str, list[int]]:
    """The numbers that the images of each split tell, after checking their labels."""
    found: dict[str, list[int]] = {}
    for split, table in open_splits(DataConfig(path=str(path), **keys)).splits.items():
        image = next(name for name, kind in table.features.items() if isinstance(kind, datasets.Image))
        found[split] = [int(np.asarray(each)[0, 0, 0]) for each in table[image]]
        feature = table.features['label']
        labels = feature.int2str(table['label']) if isinstance(feature, datasets.ClassLabel) else table['label']
        assert [{'even': 0, 'odd': 1}.get(each, each) for each in labels] == [number % 2 for number in found[split]]
    return found


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


@pytest.mark.parametrize('declared', [True, False])
def test_a_card_names_classes_that_files_do_not_name(tmp_path: Path, declared: bool) -> None:
    root = tmp_path / 'clone'
    for split, of_split in (('train', (0, 1, 3)), ('test', (2, 5))):
        table = rows(*of_split, names=['odd', 'even'])
        if not declared:
            table = table.cast_column('label', datasets.Value('int64'))
        root.mkdir(exist_ok=True)
        table.to_parquet(str(root / f'{split}.parquet'))
    names = ['even', 'odd'] if declared else ['odd', 'even']  # what the files declare counts
    names_yaml = ''.join(f"\n          '{index}': {name}" for index, name in enumerate(names))
    (root / 'README.md').write_text(f"""---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:{names_yaml}
configs:
- config_name: default
  data_files:
  - split: train
    path: train.parquet
  - split: test
    path: test.parquet
---
""")
    assert numbers(root) == {'train': [0, 1, 3], 'test': [2, 5]}
    assert open_splits(DataConfig(path=str(root))).splits['test'].features['label'].names == ['odd', 'even']


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


def test_the_number_of_streamed_images_is_needed_where_files_do_not_give_it(tmp_path: Path) -> None:
    root = tar(tar(tmp_path / 'data', 'train-0.tar', shard(0, 1)), 'val-0.tar', shard(2, 3))
    with pytest.raises(TrainError, match=r'the number of images .* write --data\.num_train_samples'):
        load_source(DataConfig(path=str(root), streaming=True, val_split='validation'))


CARD = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: first.parquet
  - split: test
    path: second.parquet
- config_name: large
  data_files:
  - split: train
    path: '*.parquet'
---
"""


def test_the_card_of_a_clone_says_which_file_is_which_split(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'clone', 'first.parquet', 0, 1), 'second.parquet', 2)
    (root / 'README.md').write_text(CARD)
    assert numbers(root, name='small') == {'train': [0, 1], 'test': [2]}
    assert numbers(root, name='large') == {'train': [0, 1, 2]}
    for name in (None, 'medium'):
        with pytest.raises(TrainError, match=r'several configurations: write --data.name with one of small, large'):
            numbers(root, name=name)
    streams = open_streams(DataConfig(path=str(root), name='small', streaming=True))
    assert [len(list(split)) for split in streams.splits.values()] == [2, 1]
    (root / 'README.md').write_text(CARD[:CARD.index('- config_name: large')] + '---\n')
    assert numbers(root) == {'train': [0, 1], 'test': [2]}
    # What changes is read again, and each file with its own names.
    parquet(root, 'second.parquet', 4, 5, names=['odd', 'even'])
    assert numbers(root) == {'train': [0, 1], 'test': [4, 5]}
    (root / 'README.md').write_text('---\nconfigs: [\n---\n')
    with pytest.raises(TrainError, match=r"the head of '.*README.md' can't be read"):
        numbers(root)


def test_the_card_of_a_clone_says_which_folder_is_which_configuration(tmp_path: Path) -> None:
    root = parquet(parquet(tmp_path / 'clone', 'a/train-0.parquet', 0, 1), 'a/test-0.parquet', 2)
    parquet(root, 'b/all.parquet', 3, 4)
    head = '---\nconfigs:\n- config_name: a\n  data_dir: a\n'
    (root / 'README.md').write_text(head + '---\n')
    assert numbers(root) == numbers(root, name='a') == {'train': [0, 1], 'test': [2]}
    (root / 'README.md').write_text(head + '- config_name: b\n  data_dir: b\n---\n')
    with pytest.raises(TrainError, match=r'several configurations: write --data.name with one of a, b'):
        numbers(root)
    assert numbers(root, name='a') == {'train': [0, 1], 'test': [2]}
    assert numbers(root, name='b') == {'train': [3, 4]}
    (root / 'README.md').write_text(head + '- config_name: b\n  data_dir: b\n  default: true\n---\n')
    assert numbers(root) == {'train': [3, 4]}
    (root / 'README.md').write_text(head.replace('data_dir: a', 'data_dir: c') + '---\n')
    with pytest.raises(TrainError, match=r"README.md': data_dir of configuration 'a' is no folder"):
        numbers(root)


def test_a_pattern_in_a_card_that_no_file_has(tmp_path: Path) -> None:
    root = parquet(tmp_path / 'clone', 'first.parquet', 0, 1)
    (root / 'README.md').write_text(CARD[:CARD.index('- config_name: large')] + '---\n')
    with pytest.raises(TrainError, match=r"configuration 'small' names 'second.parquet', and there is no such file"):
        numbers(root)


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


def numbers_per_split(root: Path, **keys: Any) -> dict[str, int]:
    return {split: len(table) for split, table in open_splits(DataConfig(path=str(root), **keys)).splits.items()}


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


def test_arrow_files_of_both_formats(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(
        {'image': [[[1, 2], [3, 4]]] * 2, 'label': ['cat', 'dog']}).with_format('arrow')[:]
    for name, new in (('train', pyarrow.ipc.new_file), ('test', pyarrow.ipc.new_stream)):
        with new(tmp_path / f'{name}.arrow', table.schema) as file:
            file.write_table(table)
    source = load_source(DataConfig(path=str(tmp_path)))
    assert source.train.labels.tolist() == [0, 1] and source.test is not None and source.test.labels.tolist() == [0, 1]
