from __future__ import annotations

import dataclasses
import socket

import datasets
import numpy as np
import pytest
from PIL import Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.sources import load_source, load_split
from timm_collab.train.errors import TrainError


def test_builtin_digits_need_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError('the network was used')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    source = load_source(DataConfig(path='builtin:digits', in_chans=1))
    assert (len(source.train), len(source.test), source.val) == (1297, 500, None)
    assert source.label_names == list('0123456789')
    assert np.array_equal(np.bincount(source.test.labels), [50] * 10)
    assert source.train.image(0).mode == 'L' and source.train.image(0).size == (8, 8)


def test_parquet_folder(parquet_folder):
    source = load_source(DataConfig(path=str(parquet_folder)))
    assert (len(source.train), len(source.test)) == (40, 10)
    assert source.label_names == ['dark', 'bright']
    assert source.train.image(3).mode == 'RGB'
    assert source.train.labels[:4].tolist() == [0, 1, 0, 1]


def test_image_folder_with_splits(image_folder):
    source = load_source(DataConfig(path=str(image_folder(train=6, val=3, test=2))))
    assert (len(source.train), len(source.val), len(source.test)) == (12, 6, 4)
    assert source.label_names == ['cat', 'dog']
    # Class 1 was drawn brighter than class 0.
    assert np.mean(source.val.image(0)) < np.mean(source.val.image(5))


def test_image_folder_of_classes_only(image_folder):
    source = load_source(DataConfig(path=str(image_folder())))
    assert (len(source.train), source.val, source.test) == (24, None, None)
    assert np.bincount(source.train.labels).tolist() == [12, 12]


def test_splits_by_name(image_folder):
    folder = str(image_folder(train=4, val=3, test=2))
    source = load_source(DataConfig(path=folder, train_split='test', val_split='train', test_split=None))
    assert (len(source.train), len(source.val), source.test) == (4, 8, None)


def write(folder, splits, **features):
    folder.mkdir()
    for split, columns in splits.items():
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(**features) if features else None)
        rows.to_parquet(str(folder / f'{split}.parquet'))
    return DataConfig(path=str(folder))


def test_labels_as_text_and_images_as_bytes(tmp_path, images):
    png = []
    for image in images([0, 1, 1]):
        image.save(tmp_path / 'x.png')
        png.append((tmp_path / 'x.png').read_bytes())
    config = write(tmp_path / 'data', {'train': {'image': png, 'label': ['wolf', 'elk', 'elk']}})
    source = load_source(config)
    assert source.label_names == ['elk', 'wolf']
    assert source.train.labels.tolist() == [1, 0, 0]
    assert source.train.image(2).size == (8, 8)


def test_text_label_unknown_to_training(tmp_path, images):
    config = write(tmp_path / 'data', {
        'train': {'image': images([0, 1]), 'label': ['wolf', 'elk']},
        'test': {'image': images([0, 1]), 'label': ['wolf', 'elf']},
    })
    with pytest.raises(TrainError, match="label 'elf' in row 1 of split 'test' is none of the 2 classes"):
        load_source(config)


@pytest.mark.parametrize(('label', 'message'), [
    (None, "no row of split 'train' has a label in data.label_column 'label'$"),
    (0.5, "label 0.5 in row 0 of split 'train': it is neither a class index nor a name, so data.label_column 'label' "),
    (-2, "label -2 in row 0 of split 'train': it is neither"),
    (b'\xff', "in row 0 of split 'train': its bytes are no text in UTF-8"),
])
def test_invalid_labels(tmp_path, images, label, message):
    config = write(tmp_path / 'data', {'train': {'image': images([0, 1]), 'label': [label, label]}})
    with pytest.raises(TrainError, match=message):
        load_source(config)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / 'images' / 'a').mkdir(parents=True)
    (tmp_path / 'images' / 'b').mkdir()
    Image.fromarray(ramp).save(tmp_path / 'images' / 'a' / '0.png')
    Image.fromarray(ramp).save(tmp_path / 'images' / 'b' / '0.png')
    image = load_source(DataConfig(path=str(tmp_path / 'images'), in_chans=1)).train.image(0)
    assert np.array_equal(np.asarray(image), (ramp >> 8).astype(np.uint8))


def test_broken_image_names_split_and_row(image_folder):
    folder = image_folder(train=4)
    (folder / 'train' / 'dog' / '2.png').write_bytes(b'no image at all')
    source = load_source(DataConfig(path=str(folder)))
    source.train.image(5)
    with pytest.raises(TrainError, match=r"^the image '.*/train/dog/2.png' in row 6 of split 'train' can't be decoded"
                                         r" \(Pillow doesn't know its format, it begins with b'no image at all'\)"):
        source.train.image(6)
    # A part of a split still names the row of the whole.
    with pytest.raises(TrainError, match='row 6'):
        source.train.take(np.array([0, 6])).image(1)


def test_the_only_column_of_a_type_is_found_by_default(tmp_path, parquet_folder):
    rows = datasets.Dataset.from_parquet(str(parquet_folder / 'train.parquet'))
    renamed = rows.rename_columns({'image': 'img', 'label': 'labels'})
    expected = load_source(DataConfig(path=str(parquet_folder), test_split=None)).train

    def save(table: datasets.Dataset, name: str) -> DataConfig:
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / 'train.parquet')
        return DataConfig(path=str(tmp_path / name))

    config = save(renamed, 'renamed')
    for found in (load_source(config).train, load_split(config, 'train')[0]):
        assert found.image_column == 'img'
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(np.asarray(found.image(0)), np.asarray(expected.image(0)))

    two = renamed.map(lambda row: {'thumbnail': row['img']}, features=datasets.Features(
        {**renamed.features, 'thumbnail': datasets.Image()}))
    with pytest.raises(TrainError, match="no column 'image', the data has img, labels, thumbnail"):
        load_source(save(two, 'two of a kind'))


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(image_column='img'), "no column 'img', the data has image, label"),
    (dict(label_column='lable'), "no column 'lable', the data has image, label; did you mean 'label'"),
    (dict(image_column='label'), "column 'label' of split 'train' contains .*, not images"),
    (dict(train_split='base'), "it has 'train', 'test': write --data.train_split with one of them"),
    (dict(train_split='trian'), "has no split 'trian', it has 'train', 'test'; did you mean 'train'"),
    (dict(val_split='val'), "data.val_split: .* has no split 'val'"),
    (dict(val_split='test'), "twice: 'test' would be both val and test split; write --data.test_split null to do"),
    (dict(val_split='train'), "twice: 'train' would be both train and val split; write --data.val_split null to hold"),
])
def test_refused_keys(parquet_folder, keys, message):
    with pytest.raises(TrainError, match=message):
        load_source(DataConfig(path=str(parquet_folder), **keys))


@pytest.mark.parametrize(('path', 'message'), [
    ('./nowhere', "'./nowhere' does not exist"),
    ('/no/where', "'/no/where' does not exist"),
    ('a/b/c', "'a/b/c' does not exist"),
    ('cifar10', "'cifar10' does not exist.*Hub as user/name"),
    ('builtin:digit', 'shipped with the package is builtin:digits'),
])
def test_refused_paths(path, message):
    with pytest.raises(TrainError, match=message):
        load_source(DataConfig(path=path))


def test_failure_of_the_hub_is_one_error(monkeypatch):
    def fail(path, *args, **kwargs):
        raise ConnectionError(f"Couldn't reach '{path}'\non the Hub")

    monkeypatch.setattr(datasets, 'load_dataset', fail)
    with pytest.raises(TrainError, match=r"'user/name' can't be loaded from the Hub.*Couldn't reach") as caught:
        load_source(DataConfig(path='user/name'))
    assert '\n' not in str(caught.value)


def test_empty_folder(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(TrainError, match="empty' contains no data, it is an empty folder"):
        load_source(DataConfig(path=str(tmp_path / 'empty')))


def test_empty_split(tmp_path, images):
    features = dict(image=datasets.Image(), label=datasets.Value('int64'))
    config = write(tmp_path / 'data', {
        'train': {'image': images([0, 1]), 'label': [0, 1]},
        'test': {'image': [], 'label': []},
    }, **features)
    with pytest.raises(TrainError, match=r"data/test.*\.parquet' has no rows: remove it"):
        load_source(config)


def test_noise_column_is_read_for_training_only(tmp_path, images):
    config = write(tmp_path / 'data', {
        'train': {'image': images([0, 1, 1]), 'label': ['elk', 'wolf', 'wolf'], 'guess': ['elk', 'elk', 'wolf']},
        'test': {'image': images([0, 1]), 'label': ['elk', 'wolf'], 'guess': [None, None]},
    })
    source = load_source(config, noise_column='guess')
    assert source.given.tolist() == [0, 0, 1] and source.train.labels.tolist() == [0, 1, 1]
    assert load_source(config).given is None
    with pytest.raises(TrainError, match=r"noise.column: .* no column 'gues', the data has .*did you mean 'guess'"):
        load_source(config, noise_column='gues')


def test_a_file_in_two_splits_is_refused_through_any_link(tmp_path, image_folder):
    folder = image_folder(train=4, test=2)
    (folder / 'test' / 'dog' / 'seen.png').symlink_to(folder / 'train' / 'dog' / '1.png')
    config = DataConfig(path='timm:folder', root=str(folder), train_split='train', test_split='test')
    with pytest.raises(TrainError, match=r"seen\.png' of split 'test' is the same file as '.*dog/1\.png'"):
        load_source(config)
    (folder / 'test' / 'dog' / 'seen.png').unlink()
    assert load_source(config).notes == ()
    (folder / 'linked').symlink_to(folder / 'train')
    with pytest.raises(TrainError, match=r"of split 'linked' is the same file"):
        load_source(dataclasses.replace(config, test_split='linked'))


def test_a_file_in_two_splits_of_tables_of_paths_is_refused(tmp_path, image_folder):
    folder = image_folder(train=4)
    paths = [str(folder / 'train' / name / f'{number}.png') for name in ('cat', 'dog') for number in range(4)]

    def save(**rows: list[str]) -> DataConfig:
        for split, files in rows.items():
            table = datasets.Dataset.from_dict({'image': files, 'label': [0, 1] * (len(files) // 2)})
            table.to_parquet(str(tmp_path / 'tables' / f'{split}.parquet'))
        return DataConfig(path=str(tmp_path / 'tables'))

    (tmp_path / 'tables').mkdir()
    assert len(load_source(save(train=paths[:6], test=paths[6:])).train) == 6
    with pytest.raises(TrainError, match=r"dog/1\.png' of split 'test' is the same file"):
        load_source(save(train=paths[:6], test=paths[5:7]))
    notes = load_source(save(train=[*paths[:6], paths[0], paths[1]], test=paths[6:])).notes
    assert [note for note in notes if "images of split 'train' repeating a file: 2, such as" in note]


def test_two_splits_for_one_purpose_and_splits_without_one(tmp_path):
    image = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    rows = datasets.Dataset.from_dict({'image': [image] * 4, 'label': [0, 1, 0, 1]},
                                      features=datasets.Features(image=datasets.Image(), label=datasets.Value('int64')))
    splits = {'train': rows, 'val': rows.select([1]), 'validation': rows.select([0, 2, 3]), 'extra': rows.select([0])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / 'data')
    with pytest.raises(TrainError, match=r'has 2 splits for one purpose, val and validation: write --data.val_split'):
        load_source(DataConfig(path=str(tmp_path / 'data')))
    source = load_source(DataConfig(path=str(tmp_path / 'data'), val_split='val'))
    assert source.val.labels.tolist() == [1]
    assert source.left_out == {"a row of split 'validation', which is not used": 3,
                               "a row of split 'extra', which is not used": 1}
    # What the recipe does without is not left out by mistake.
    source = load_source(DataConfig(path=str(tmp_path / 'data'), val_split=None))
    assert source.left_out == {"a row of split 'extra', which is not used": 1}


def test_a_test_set_of_its_own_needs_no_name_of_a_split(image_folder):
    root = image_folder(train=6)
    for path, split in ((root / 'train', 'test'), (root / 'train', 'train')):
        found, names = load_split(DataConfig(path=str(path)), split)
        assert (found.name, len(found)) == ('train', 6 * len(names))
    with pytest.raises(TrainError, match="has no split 'bonus'"):
        load_split(DataConfig(path=str(root / 'train')), 'bonus')
