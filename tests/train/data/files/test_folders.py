"""Folders of images: a tree goes in; splits, classes, counts and what was left out come out."""
from __future__ import annotations

import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.folders import canonical_split
from timm_collab.train.data.files.readers import open_splits
from timm_collab.train.data.sources import load_source
from timm_collab.train.errors import TrainError


def encoded(format: str = 'png', size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 7, np.uint8)).save(buffer, format)
    return buffer.getvalue()


PNG = encoded()


def write(root: Path, *names: str, data: bytes = PNG) -> Path:
    """Write files; `a/3` stands for `a/0.png`, `a/1.png`, `a/2.png`."""
    for name in names:
        folder, _, last = name.rpartition('/')
        for file in [f'{number}.png' for number in range(int(last))] if last.isdigit() else [last]:
            path = root / folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def found(root: Path | str, **keys: Any) -> dict[str, dict[str, int]]:
    """Number of images of each class in each split."""
    return per_class(open_splits(DataConfig(path=str(root), **keys)).splits)


def per_class(splits: dict[str, datasets.Dataset]) -> dict[str, dict[str, int]]:
    counts = {}
    for split, rows in splits.items():
        names = rows.features['label'].names
        counts[split] = {name: Counter(rows['label'])[index] for index, name in enumerate(names)}
    return counts


def opened(root: Path) -> Any:
    return open_splits(DataConfig(path=str(root)))


TRICKY = ['train', 'bullet_train', 'train_station', 'test tube', 'val', 'dev_board', 'evaluation', 'training', 'eval']


@pytest.mark.parametrize(('files', 'expected'), [
    # The whole name of a folder under the root, in any case.
    (['train/a/3', 'train/b/2', 'val/a/1', 'val/b/1', 'test/b/2'],
     {'train': {'a': 3, 'b': 2}, 'validation': {'a': 1, 'b': 1}, 'test': {'b': 2}}),
    (['Train/a/3', 'Train/b/2', 'Val/a/1'], {'train': {'a': 3, 'b': 2}, 'validation': {'a': 1}}),
    (['TRAINING/a/3', 'TRAINING/b/2', 'dev/a/1', 'Eval/b/1'],
     {'train': {'a': 3, 'b': 2}, 'validation': {'a': 1}, 'test': {'b': 1}}),
    (['training/a/1', 'training/b/1', 'valid/a/2', 'testing/a/3'],
     {'train': {'a': 1, 'b': 1}, 'validation': {'a': 2}, 'test': {'a': 3}}),
    # Words inside the names of classes and files.
    ([f'{split}/{name}/2' for split in ('train', 'val', 'test') for name in TRICKY],
     {split: dict.fromkeys(TRICKY, 2) for split in ('train', 'validation', 'test')}),
    (['train/a/train_0.png', 'train/a/test_1.png', 'train/b/val_0.png', 'val/a/train_0.png', 'val/b/x.png'],
     {'train': {'a': 2, 'b': 1}, 'validation': {'a': 1, 'b': 1}}),
    # Without a training split, the folders are the classes.
    (['a/3', 'b/2'], {'train': {'a': 3, 'b': 2}}),
    (['val/3', 'test/2'], {'train': {'val': 3, 'test': 2}}),
    (['train/3', 'bus/2'], {'train': {'train': 3, 'bus': 2}}),
    ([f'{name}/2' for name in TRICKY], {'train': dict.fromkeys(TRICKY, 2)}),
    (['train_set/a/1', 'val_set/b/2'], {'train': {'train_set': 1, 'val_set': 2}}),
    # Names that patterns and archives would take for something else.
    (['a[0-9]/2', 'b*/1', 'c?/1', '__x__/2', 'e::f/1', 'zip::g/1', 'h i/1', 'größe/1', '#j%20/1', '~/1', 'data/1'],
     {'train': {'a[0-9]': 2, 'b*': 1, 'c?': 1, '__x__': 2, 'e::f': 1, 'zip::g': 1, 'h i': 1, 'größe': 1, '#j%20': 1,
                '~': 1, 'data': 1}}),
    (['train/__x__/1', 'train/b::c/1', 'val/b::c/2'], {'train': {'__x__': 1, 'b::c': 1}, 'validation': {'b::c': 2}}),
    # Folders below a class folder belong to it.
    (['a/x/2', 'a/y/z/1', 'a/1', 'b/x/2'], {'train': {'a': 4, 'b': 2}}),
    (['train/a/train/2', 'train/a/test/1', 'train/b/val/2'], {'train': {'a': 3, 'b': 2}}),
    # Sidecars in some class folders.
    (['train/a/2', 'train/b/2', 'train/b/metadata.csv', 'train/a/0.png.json', 'train/a/Thumbs.db'],
     {'train': {'a': 2, 'b': 2}}),
    (['a/2', 'b/2', 'b/metadata.jsonl', 'a/train.parquet', 'metadata.csv'], {'train': {'a': 2, 'b': 2}}),
])
def test_splits_and_classes(tmp_path: Path, files: list[str], expected: dict[str, dict[str, int]]) -> None:
    for name in files:
        write(tmp_path / 'data', name, data=PNG if name.rpartition('.')[2] in (name, 'png') else b'text')
    assert found(tmp_path / 'data') == expected


@pytest.mark.parametrize(('files', 'left_out', 'notes'), [
    (['a/1', 'b/1'], {}, []),
    (['train/a/1', 'train/b/1', 'test/4'], {'an image in a folder beside train/ that is no split': 4},
     ["folder 'test' beside train/ has no class folders: its 4 images are left out"]),
    (['train/a/1', 'train/b/1', 'extra/c/4'], {'an image in a folder beside train/ that is no split': 4},
     ["folder 'extra' beside train/ is no split: its 4 images are left out"]),
    (['train/a/1', 'train/b/1', 'x.png', 'train/y.png'], {'an image outside the class folders': 2}, []),
    (['a/1', 'b/1', '.DS_Store', 'a/.DS_Store', 'a/._0.png', '.git/objects/x', '.hidden/3', '__MACOSX/a/2'],
     {'hidden': 3, 'hidden (.git/)': 1, 'hidden (.hidden/)': 3, 'hidden (__MACOSX/)': 2}, []),
    (['a/1', 'b/1', 'val/1'], {}, ["folders 'val' are read as classes and not as splits"]),
    (['10/1', '9/1'], {}, ['classes are in natural order (2 before 10)']),
    (['a/x/2', 'b/1'], {}, ["2 images are in folders below a class folder and belong to its class, such as 'a/x/0"]),
])
def test_what_is_left_out_is_counted(
        tmp_path: Path, files: list[str], left_out: dict[str, int], notes: list[str]) -> None:
    source = opened(write(tmp_path / 'data', *files))
    assert source.left_out == left_out
    assert len(source.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, source.notes, strict=True))


def test_file_types(tmp_path: Path) -> None:
    root = tmp_path / 'data'
    for name in ('a/1.JPG', 'a/2.jpeg', 'b/3', 'b/4.jpg_large'):
        write(root, name + ('' if '.' in name else '_no_extension'), data=encoded('jpeg'))
    write(root, 'a/5.tif', 'b/6_no_extension', data=encoded('tiff'))
    write(root, 'b/7.webp', data=encoded('webp'))
    if features.check('avif'):
        write(root, 'b/8.avif', data=encoded('avif'))
    write(root, 'a/broken.png', 'a/empty.jpg', data=b'')  # named when they are decoded
    # A camera's file looks like TIFF, and its image would be the thumbnail.
    write(root, 'a/9.dng', data=encoded('tiff'))
    write(root, 'a/x.txt', 'b/y.txt', 'b/video.mpg', 'b/archive.zip', 'b/x.heic', 'b/README', 'b/scores.h5', data=b'P3')
    source = opened(root)
    assert per_class(source.splits) == {'train': {'a': 5, 'b': 4 + features.check('avif')}}
    assert source.left_out == {
        'not an image (.txt)': 2, 'not an image (.mpg)': 1, 'not an image (.zip)': 1, 'not an image (.h5)': 1,
        'not an image (no extension)': 1, 'Pillow cannot read .heic: convert it to JPEG or PNG': 1,
        'Pillow cannot read .dng: convert it to JPEG or PNG': 1}


def test_links_are_followed(tmp_path: Path) -> None:
    store = write(tmp_path / 'store', 'cats/2', 'x.png', 'y.png')
    root = write(tmp_path / 'data', 'train/dog/2')
    (root / 'train' / 'cat').symlink_to(store / 'cats')
    (root / 'train' / 'dog' / 'linked.png').symlink_to(store / 'x.png')
    (root / 'train' / 'dog' / 'gone.png').symlink_to(store / 'nowhere.png')
    (tmp_path / 'link').symlink_to(root)
    source = opened(tmp_path / 'link')
    assert per_class(source.splits) == {'train': {'cat': 2, 'dog': 3}}
    assert source.left_out == {'broken link': 1}

    (root / 'val' / 'dog').mkdir(parents=True)
    (root / 'val' / 'dog' / 'other.png').symlink_to(store / 'y.png')
    assert found(root)['validation'] == {'dog': 1}
    (root / 'val' / 'dog' / 'same.png').symlink_to(store / 'cats' / '1.png')
    with pytest.raises(TrainError, match=r"same.png' of split 'validation' is the same file as '.*cat/1.png' of split"):
        load_source(DataConfig(path=str(root)))


@pytest.mark.parametrize('target', ['..', '.', '../..', 'itself'])
def test_a_circle_of_links_is_named(tmp_path: Path, target: str) -> None:
    root = write(tmp_path / 'data', 'a/1', 'b/1')
    os.symlink(str(root / 'b' / 'itself') if target == 'itself' else target, root / 'b' / 'itself')
    with pytest.raises(TrainError, match=r"^link '.*itself'"):
        opened(root)


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD')]
    root = write(tmp_path / 'data', *(f'{name}/{count}' for name, count in zip(names, (2, 3), strict=True)), 'tea/1')
    assert len(os.listdir(root)) == 3
    assert found(root) == {'train': {names[0]: 5, 'tea': 1}}


def test_classes_are_in_natural_order_and_rows_sorted_by_path(tmp_path: Path) -> None:
    root = write(tmp_path / 'data', *(f'train/{number}/11' for number in range(12)), 'val/11/1', 'val/2/1')
    source = load_source(DataConfig(path=str(root), val_split='validation'))
    assert source.label_names == [str(number) for number in range(12)]
    rows = source.train.rows['image']
    assert [each['path'] for each in rows] == sorted(each['path'] for each in rows)
    for split in (source.train, source.val):
        for image, label in zip(split.rows['image'], split.labels, strict=True):
            if split is source.train:
                assert Path(image['path']).parent.name == source.label_names[label]
    assert opened(root).splits['train']._fingerprint == opened(root).splits['train']._fingerprint


def test_a_relative_path_and_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / 'data', 'a/1', 'b/1')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for path in ('data', './data/', '~/data'):
        assert found(path) == {'train': {'a': 1, 'b': 1}}
        assert load_source(DataConfig(path=path)).train.image(1).size == (4, 4)


@pytest.mark.parametrize(('files', 'message'), [
    (['train/a/1', 'train/b/1', 'val/a/1', 'dev/a/1'], "folders 'dev' and 'val' are both the split 'validation'"),
    (['train/a/1', 'Train/a/1'], "folders 'Train' and 'train' are both the split 'train'"),
    ([], 'contains no data, it is an empty folder'),
    (['notes.txt'], r'contains no data \(1 not an image \(.txt\)\)'),
    (['train.zip'], 'holds zip files: unzip them first'),
    (['a/3', 'b.zip'], 'holds zip files: unzip them first'),
    (['3'], 'has 3 images and no class folders: make a folder for each class, or name a CSV file'),
    (['a/3'], "has one class folder, 'a', and classification needs at least 2"),
    (['images/a/1', 'images/b/1'], r"has the data in its folder 'images': write --data.path .*/data/images"),
    (['set/train/a/1', 'set/val/a/1', 'x.txt'], r"has the data in its folder 'set': write --data.path .*/data/set"),
    (['a/1', 'b/x.heic'], r"class folder '.*/b' has no image that can be read \(1 Pillow cannot read .heic: convert"),
    (['train/a/1', 'train/b/1', 'val/b/x.txt', 'val/a/1'], r"class folder '.*/val/b' has no image.*1 not an image"),
    (['a/1', 'b/1', 'train.parquet'], 'has both class folders and tables, such as train.parquet'),
])
def test_refused(tmp_path: Path, files: list[str], message: str) -> None:
    (tmp_path / 'data').mkdir()
    for name in files:
        write(tmp_path / 'data', name, data=PNG if name.rpartition('/')[2].isdigit() else b'text')
    with pytest.raises(TrainError, match=message) as raised:
        opened(tmp_path / 'data')
    assert '\n' not in str(raised.value)


def test_a_single_image_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"'0.png' is an image: name the folder that has a folder for each class"):
        opened(write(tmp_path / 'data', 'a/1') / 'a' / '0.png')


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    root = write(tmp_path / 'data', 'a/1', 'b/1')
    with open(os.fsencode(root) + b'/a/caf\xe9.png', 'wb') as file:
        file.write(PNG)
    with pytest.raises(TrainError, match=r"the name '.*/a/café.png' is not UTF-8: rename it"):
        opened(root)


def test_an_empty_class_folder_is_noted(tmp_path: Path) -> None:
    root = write(tmp_path / 'data', 'a/1', 'b/1')
    (root / 'c').mkdir()
    source = opened(root)
    assert per_class(source.splits) == {'train': {'a': 1, 'b': 1}}
    assert len(source.notes) == 1 and "data/c' is empty and no class" in source.notes[0]


def test_a_broken_image_stays_in_and_is_named_by_decoding(tmp_path: Path) -> None:
    root = write(write(tmp_path / 'data', 'a/1', 'b/1'), 'b/zero.png', data=b'')
    source = load_source(DataConfig(path=str(root)))
    assert len(source.train) == 3
    with pytest.raises(TrainError, match="can't be decoded"):
        source.train.image(2)


@pytest.mark.parametrize(('name', 'split'), [
    ('train', 'train'), ('Training', 'train'), ('val', 'validation'), ('VALID', 'validation'), ('dev', 'validation'),
    ('validation', 'validation'), ('eval', 'test'), ('Testing', 'test'), ('test', 'test'),
    ('train_station', None), ('trains', None), ('evaluation', None), ('dev_board', None), ('', None),
])
def test_whole_names_of_splits(name: str, split: str | None) -> None:
    assert canonical_split(name) == split


PARTS = st.sampled_from(['train', 'val', 'test', 'dev', 'Train', 'eval', 'station', 'tube', '1', '10', '_', '-', ' x'])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(''.join)


@settings(max_examples=40, deadline=None)
@given(
    classes=st.lists(NAMES, min_size=2, max_size=5, unique_by=str.lower),
    splits=st.sampled_from([['train'], ['train', 'val'], ['Training', 'dev', 'eval'], ['train', 'valid', 'test']]),
    files=st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower),
)
def test_every_image_is_found_once_in_the_class_of_its_folder(
        tmp_path_factory: pytest.TempPathFactory, classes: list[str], splits: list[str], files: list[str]) -> None:
    def paths(names: Iterable[str]) -> list[str]:
        return [f'{name}/{file}.png' for name in names for file in files]

    root = write(tmp_path_factory.mktemp('tree') / 'data', *(f'{split}/{each}' for split in splits
                                                             for each in paths(classes)))
    source = opened(root)
    assert set(source.splits) == {canonical_split(split) for split in splits} and not source.left_out
    for split in splits:
        rows = source.splits[canonical_split(split)].cast_column('image', datasets.Image(decode=False))
        assert sorted(rows.features['label'].names) == sorted(classes)
        images = {image['path']: rows.features['label'].names[label]
                  for image, label in zip(rows['image'], rows['label'], strict=True)}
        assert images == {f'{root}/{split}/{each}': each.split('/')[0] for each in paths(classes)}
        assert len(rows) == len(images)
        # The same folder alone has the same classes.
        alone = open_splits(DataConfig(path=str(root / split)))
        if 'train' not in {canonical_split(name) for name in classes}:
            assert per_class(alone.splits) == {'train': dict.fromkeys(rows.features['label'].names, len(files))}


def card(root: Path, *splits: tuple[str, str], keys: str = '') -> Path:
    files = ''.join(f'  - split: {split}\n    path: {pattern}\n' for split, pattern in splits)
    (root / 'README.md').write_text(f'---\nconfigs:\n- config_name: default\n{keys}  data_files:\n{files}---\n')
    return root


def test_the_card_of_a_clone_says_which_images_are_which_split(tmp_path: Path) -> None:
    root = write(tmp_path / 'clone', *(f'{split}/{name}/{3 if split == "trn" else 2}' for split in ('trn', 'tst')
                                       for name in ('class 10', 'class 2')), 'old/bird/4')
    write(root, 'trn/notes.txt', data=b'text')
    card(root, ('train', 'trn/**'), ('test', 'tst/**'))
    assert found(root) == {'train': {'class 2': 3, 'class 10': 3}, 'test': {'class 2': 2, 'class 10': 2}}
    assert opened(root).left_out == {'not an image (.txt)': 1} and not opened(root).notes
    (root / 'trn' / 'class 2' / '3.png').write_bytes(PNG)  # what changes is read again
    assert found(root)['train'] == {'class 2': 4, 'class 10': 3}
    card(root, ('train', 'trn/class 2/*'), ('extra', 'old/bird/*'))
    assert found(root) == {'train': {'class 2': 4}, 'extra': {'bird': 4}}
    card(root, ('train', 'old/**'))
    with pytest.raises(TrainError, match=r"README.md names images in one folder, 'bird', and classification needs"):
        found(root)
    write(root, 'old/bird/big/1')
    assert found(root) == {'train': {'big': 1, 'bird': 4}}
    assert 'the folder that holds an image is its class' in opened(root).notes[0]
    # A list among the files says what the images are.
    (root / 'trn' / 'metadata.csv').write_text('file_name,label\nclass 2/0.png,a\nclass 10/0.png,b\n')
    card(root, ('train', 'trn/**'))
    assert opened(root).splits['train']['label'] == ['a', 'b']


def test_the_card_of_a_clone_with_configurations_of_images(tmp_path: Path) -> None:
    root = write(tmp_path / 'clone', 'pets/train/cat/2', 'pets/train/dog/2', 'birds/owl/3', 'birds/kite/3')
    (root / 'README.md').write_text('---\nconfigs:\n- config_name: pets\n  data_dir: pets\n'
                                    '- config_name: birds\n  data_dir: birds\n---\n')
    assert found(root, name='pets') == {'train': {'cat': 2, 'dog': 2}}
    assert found(root, name='birds') == {'train': {'kite': 3, 'owl': 3}}
    with pytest.raises(TrainError, match=r'several configurations: write --data.name with one of pets, birds'):
        found(root)


@pytest.mark.parametrize('name', ['a\nb/0.png', 'cat/0\r.png', 'dog/a\u2028b/0.png'])
def test_a_line_break_in_a_name(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / 'data', 'cat/1', 'dog/1', name)
    with pytest.raises(TrainError, match='has a line break: rename it') as raised:
        opened(root)
    assert len(str(raised.value).splitlines()) == 1
