"""Everything in a dataset is counted, in the form that others rely on."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from timm_collab.train import TrainError
from timm_collab.train.config import DataConfig
from timm_collab.train.inspect import LabelColumn, inspect_data
from timm_collab.train.run import train


def noise(size: tuple[int, int] = (8, 8), seed: int = 0, mode: str = 'RGB') -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


@pytest.fixture
def pets(tmp_path) -> Path:
    """Two splits of two classes; every image is another one."""
    folder, seed = tmp_path / 'pets', 0
    for split, counts in {'train': {'cat': 3, 'dog': 9}, 'test': {'cat': 2, 'dog': 4}}.items():
        for name, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                seed += 1
                noise(seed=seed).save(folder / split / name / f'{number}.png')
    return folder


def counts(path: object, **keys) -> dict:
    """The keys that others rely on."""
    plain = json.loads(json.dumps(inspect_data(DataConfig(path=str(path), **keys)).to_dict()))
    duplicates = {name: plain['duplicates'][name] for name in ('within', 'across')}
    return {
        'classes': plain['classes'],
        'splits': {role: (each['name'], each['images'], each['per_class']) for role, each in plain['splits'].items()},
        'left_out': plain['left_out'],
        'duplicates': duplicates,
    }


def test_a_folder_of_images(pets):
    assert counts(pets) == {
        'classes': ['cat', 'dog'],
        'splits': {
            'train': ('train', 12, {'cat': 3, 'dog': 9}),
            'test': ('test', 6, {'cat': 2, 'dog': 4}),
        },
        'left_out': {},
        'duplicates': {'within': 0, 'across': 0},
    }


def test_duplicates_are_found_and_named(pets):
    shutil.copy(pets / 'train/cat/0.png', pets / 'train/cat/again.png')
    shutil.copy(pets / 'train/cat/1.png', pets / 'train/dog/cat.png')
    shutil.copy(pets / 'train/cat/2.png', pets / 'test/cat/seen.png')
    found = inspect_data(DataConfig(path=str(pets)))
    assert (found.duplicates.within, found.duplicates.across) == (2, 1)
    seen, contradicting = found.warnings
    assert 'in another split' in seen and 'test/cat/seen.png' in seen and 'train/cat/2.png' in seen
    assert 'another label' in contradicting and 'train/dog/cat.png' in contradicting


def test_broken_images_are_named_and_do_not_count(pets):
    (pets / 'train/dog/0.png').write_bytes(b'no image')
    found = inspect_data(DataConfig(path=str(pets)))
    assert found.splits['train'].per_class == {'cat': 3, 'dog': 8}
    assert found.left_out == {"can't be decoded": 1}
    assert [(each.split, Path(each.file).name) for each in found.bad] == [('train', '0.png')]
    assert len(found.warnings) == 1 and 'train/dog/0.png' in found.warnings[0]


def test_sizes_modes_orientation_and_depth(pets):
    noise((12, 6), 100, 'L').save(pets / 'train/cat/grey.png')
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(pets / 'train/cat/deep.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((10, 4), 101).save(pets / 'test/dog/turned.jpg', exif=exif)
    found = inspect_data(DataConfig(path=str(pets)))
    assert found.sizes == {(8, 8): 19, (12, 6): 1, (4, 10): 1}
    assert found.modes['RGB'] == 19 and found.modes['L'] == 1 and sum(found.modes.values()) == 21
    assert (found.turned, found.sixteen_bit) == (1, 1)


def test_images_that_a_run_would_refuse_as_nearly_black_are_a_warning(tmp_path):
    for number in range(4):
        deep = np.random.default_rng(number).integers(0, 4096, (8, 8)).astype(np.uint16)
        (tmp_path / 'dark' / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(deep).save(tmp_path / 'dark' / str(number % 2) / f'{number}.png')
    found = inspect_data(DataConfig(path=str(tmp_path / 'dark')))
    assert len(found.warnings) == 1 and 'data.bit_depth 12' in found.warnings[0]
    assert inspect_data(DataConfig(path=str(tmp_path / 'dark'), bit_depth=12)).warnings == []


def test_the_summary_of_a_run_has_the_same_counts(pets, recipe):
    shutil.copy(pets / 'train/cat/0.png', pets / 'train/dog/again.png')
    shutil.copy(pets / 'train/cat/2.png', pets / 'test/cat/seen.png')
    keys = [f'--data.path={pets}', '--data.val_split=test', '--data.test_split=null', '--data.max_train_samples=null',
            '--batch_size=4', '--noise.rate=0.2']
    data = train(recipe(*keys)).to_dict()['data']
    expected = inspect_data(DataConfig(path=str(pets), val_split='test', test_split=None)).to_dict()
    for key in ('classes', 'splits', 'left_out'):
        assert data[key] == expected[key]
    assert data['duplicates'] == {'within': 1, 'across': 1} == {
        name: expected['duplicates'][name] for name in ('within', 'across')}
    assert str(pets) not in json.dumps({key: data[key] for key in ('classes', 'splits', 'left_out', 'duplicates')})
    data = train(recipe(*keys, '--data.cache_mb=0', f'--output={pets.parent / "other"}')).to_dict()['data']
    assert data['duplicates'] is None and data['splits'] == expected['splits']


def table(path: Path, **columns) -> Path:
    """A parquet file with an image per row."""
    count = len(next(iter(columns.values())))
    rows = datasets.Dataset.from_dict({'image': [noise(seed=seed) for seed in range(count)], **columns})
    rows.cast_column('image', datasets.Image()).to_parquet(str(path))
    return path


def test_missing_labels_are_no_distinct_values(tmp_path):
    for number in range(4):
        noise(seed=number).save(tmp_path / f'{number}.png')
    for labels in ([0, 1, -1, None], [0.0, 1.0, float('nan'), -1.0], ['a', 'b', '', '-1']):
        rows = [{'image': f'{number}.png', 'label': label} for number, label in enumerate(labels)]
        (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        found = inspect_data(DataConfig(path=str(tmp_path / 'a.jsonl'), on_missing_label='skip'))
        kind = {int: 'whole numbers', float: 'numbers', str: 'text'}[type(labels[0])]
        assert found.label_columns == [LabelColumn('label', kind, 2, True)]


def test_label_columns_and_classes_without_names(tmp_path):
    path = table(tmp_path / 'train.parquet', label=[0, 1, 1, 2], fine=['a', 'b', 'c', None], score=[.5, .5, .1, .2],
                 tags=[[0, 5], [], [5], [7]])
    found = inspect_data(DataConfig(path=str(path)))
    assert found.classes == ['0', '1', '2'] and found.splits['train'].per_class == {'0': 1, '1': 2, '2': 1}
    assert found.label_columns == [
        LabelColumn('label', 'whole numbers', 3, True),
        LabelColumn('fine', 'text', 3, False),
        LabelColumn('tags', 'lists of whole numbers', 3, False),
    ]
    assert inspect_data(DataConfig(path=str(path), label_column='tags', multi_label=True)).splits[
        'train'].per_class['5'] == 2


def test_splits_that_a_run_would_not_use_are_counted_too(parquet_folder):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['dark', 'bright']))
    for split, labels in {'extra': [0, 1, 1], 'unlabelled': [-1, -1]}.items():
        images = [noise(seed=seed) for seed in range(len(labels))]
        rows = datasets.Dataset.from_dict({'image': images, 'label': labels}, features=features)
        rows.to_parquet(str(parquet_folder / f'{split}.parquet'))
    saved = datasets.DatasetDict({
        split: datasets.Dataset.from_parquet(str(parquet_folder / f'{split}.parquet'))
        for split in ('train', 'test', 'extra', 'unlabelled')})
    saved.save_to_disk(parquet_folder.parent / 'saved')
    found = inspect_data(DataConfig(path=str(parquet_folder.parent / 'saved')))
    assert list(found.splits) == ['train', 'test', 'extra']
    assert found.splits['extra'].to_dict() == {'name': 'extra', 'images': 3, 'per_class': {'dark': 1, 'bright': 2}}
    assert any(note.startswith("split 'unlabelled', which a run wouldn't use, isn't counted") for note in found.notes)


def test_shipped_data_and_timm_readers(pets):
    digits = counts('builtin:digits')
    assert digits['classes'] == [str(number) for number in range(10)]
    assert digits['splits']['test'] == ('test', 500, dict.fromkeys(digits['classes'], 50))
    assert digits['splits']['train'][1] == sum(digits['splits']['train'][2].values()) == 1297
    read = counts('timm:folder', root=str(pets), train_split='train', test_split='test')
    assert read['splits'] == counts(pets)['splits']


def test_a_stream_is_counted_by_reading_it(digit_shards):
    stored = inspect_data(DataConfig(path=str(digit_shards)))
    streamed = inspect_data(DataConfig(path=str(digit_shards), streaming=True))
    assert streamed.splits == stored.splits and streamed.splits['train'].images == 128
    assert (streamed.sizes, streamed.modes) == (stored.sizes, stored.modes)
    assert (streamed.duplicates.within, streamed.duplicates.across) == (
        stored.duplicates.within, stored.duplicates.across)


def test_broken_images_of_a_stream_are_named(digit_shards, tmp_path):
    shutil.copytree(digit_shards, tmp_path / 'shards')
    rows = datasets.Dataset.from_parquet(str(tmp_path / 'shards' / 'train-00001-of-00004.parquet'))
    rows = rows.cast_column('image', datasets.Image(decode=False))
    cells = rows['image'][:]
    cells[3] = {'bytes': b'no image', 'path': 'broken.png'}
    table = datasets.Dataset.from_dict({'image': cells, 'label': rows['label']}, features=rows.features)
    table.cast_column('image', datasets.Image()).to_parquet(
        str(tmp_path / 'shards' / 'train-00001-of-00004.parquet'))
    for streaming in (False, True):
        found = inspect_data(DataConfig(path=str(tmp_path / 'shards'), streaming=streaming))
        assert [(each.split, each.row, each.file) for each in found.bad] == [('train', 35, 'broken.png')]
        assert found.splits['train'].images == 127


def test_classes_are_joined_by_name_with_those_of_training(pets):
    shutil.rmtree(pets / 'test' / 'cat')
    found = inspect_data(DataConfig(path='timm:folder', root=str(pets), train_split='train', test_split='test'))
    assert found.splits['test'].per_class == {'cat': 0, 'dog': 4}


def test_rows_without_a_label_and_soft_labels(tmp_path):
    path = table(tmp_path / 'train.parquet', label=[0, -1, 1, None], votes=[[3, 1], [0, 2], [1, 5], [1, 0]])
    with pytest.raises(TrainError, match='on_missing_label skip'):
        inspect_data(DataConfig(path=str(path)))
    found = inspect_data(DataConfig(path=str(path), on_missing_label='skip'))
    assert found.left_out == {'no label': 2} and found.splits['train'].per_class == {'0': 1, '1': 1}
    votes = inspect_data(DataConfig(path=str(path), label_column='votes', soft_labels=True))
    assert votes.splits['train'].per_class == {'0': 2, '1': 2}


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(TrainError, match='does not exist'):
        inspect_data(DataConfig(path=str(tmp_path / 'nothing')))
