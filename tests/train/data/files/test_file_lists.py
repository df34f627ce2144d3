"""CSV files and JSON lines as `data.path`: which column holds the images, which the labels, which the split."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from timm_collab.train.config import DataConfig
from timm_collab.train.data.files.readers import open_splits
from timm_collab.train.data.sources import Source, load_source
from timm_collab.train.errors import TrainError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images, `images/0.png` to `images/5.png`, whose brightness is their number."""
    (tmp_path / 'data' / 'images').mkdir(parents=True)
    for number in range(6):
        image = Image.fromarray(np.full((4, 4, 3), number, np.uint8))
        image.save(tmp_path / 'data' / 'images' / f'{number}.png')
    return tmp_path / 'data'


def read(path: Path | str, **keys: Any) -> dict[str, list[tuple[int, Any]]]:
    """Number and label of each image of each split."""
    config = DataConfig(path=str(path), **keys)
    return {split: [(int(np.asarray(image)[0, 0, 0]), label)
                    for image, label in zip(rows[config.image_column], rows[config.label_column], strict=True)]
            for split, rows in open_splits(config).splits.items()}


@pytest.mark.parametrize('ending', ['\n', '\r\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize(('name', 'separator'), [('a.csv', ','), ('a.csv', ', '), ('a.csv', ';'), ('a.tsv', '\t')])
def test_separators_line_ends_and_byte_order_marks(
        root: Path, name: str, separator: str, encoding: str, ending: str) -> None:
    lines = ['file_name,label', 'images/0.png,"größe"', '../data/images/1.png,b', '', f'{root}/images/2.png,b']
    (root / name).write_bytes((ending.join(lines) + ending).replace(',', separator).encode(encoding))
    assert read(root / name) == {'train': [(0, 'größe'), (1, 'b'), (2, 'b')]}


def test_json_lines(root: Path) -> None:
    rows = [{'path': 'images/0.png', 'label': [0, 2]}, {'path': 'images/1.png', 'label': []}]
    (root / 'a.jsonl').write_text('\n\n'.join(map(json.dumps, rows)))
    assert read(root / 'a.jsonl') == {'train': [(0, [0, 2]), (1, [])]}


@pytest.mark.parametrize(('labels', 'expected'), [
    (['3', '0', '-1'], [3, 0, -1]), (['3', '', '1'], [3, None, 1]), (['3', 'a', ''], ['3', 'a', None]),
    (['007', '7', '8'], ['007', '7', '8']), (['1' * 21, '7', '8'], ['1' * 21, '7', '8']),
    (['9' * 18, '-' + '9' * 18, '8'], [10 ** 18 - 1, 1 - 10 ** 18, 8]), (['1.0', '2.0', '1.0'], [1, 2, 1]),
    (['0.0', '', '12'], [0, None, 12]), (['0.5', '1.0', '2'], ['0.5', '1.0', '2']),
    (['1.', '2', '3'], ['1.', '2', '3']),
    (['-1.0', '01.0', '2'], ['-1.0', '01.0', '2']), (['1.0', '9' * 16, '2'], ['1.0', '9' * 16, '2']),
    (['3', 'NaN', '1'], [3, None, 1]), (['3.0', 'N/A', '<NA>'], [3, None, None]),
    (['a', 'NaN', ''], ['a', 'NaN', None]),
])
def test_labels_are_integers_only_if_all_are(root: Path, labels: list[str], expected: list[Any]) -> None:
    lines = [f'images/{number}.png,{label}' for number, label in enumerate(labels)]
    (root / 'a.csv').write_text('\n'.join(['image,label', *lines]))
    assert [label for _, label in read(root / 'a.csv')['train']] == expected
    # Over all splits alike.
    lines = [f'{line},{split}' for line, split in zip(lines, ('train', 'val', 'val'), strict=True)]
    (root / 'a.csv').write_text('\n'.join(['image,label,split', *lines]))
    found = read(root / 'a.csv')
    assert [label for split in ('train', 'validation') for _, label in found[split]] == expected


def test_whole_decimals_and_markers_of_missing_labels_are_said(root: Path) -> None:
    def source(*labels: str) -> Source:
        lines = [f'images/{number}.png,{label}' for number, label in enumerate(labels)]
        (root / 'a.csv').write_text('\n'.join(['image,label', *lines]))
        return load_source(DataConfig(path=str(root / 'a.csv'), on_missing_label='skip'))

    found = source('0.0', '1.0', '', '1.0', 'NaN')
    assert found.train.labels.tolist() == [0, 1, 1] and found.label_names is None
    [note] = found.notes
    assert note == "data.label_column 'label' contains decimal numbers, all of them whole: they were read as integers"
    assert found.left_out == {'no label': 2}
    found = source('ship', 'None', 'None')
    assert found.label_names == ['None', 'ship']
    assert found.notes[0] == ("data.label_column 'label' has 2 cells 'None', which is read as the name of a class:"
                              ' leave the cell empty where there is no label')


def test_a_missing_label_column_is_told_with_the_names_of_the_file(root: Path) -> None:
    (root / 'a.csv').write_text('file,class\nimages/0.png,a\n')
    with pytest.raises(TrainError, match=r"no column 'label', '.*a.csv' has file, class: write --data.label_column "):
        load_source(DataConfig(path=str(root / 'a.csv')))


def test_a_class_that_only_another_split_has_is_told_with_a_file(root: Path) -> None:
    lines = ['image,label,split', 'images/0.png,a,train', 'images/1.png,b,train', 'images/2.png,zoo,val']
    (root / 'a.csv').write_text('\n'.join(lines))
    message = (r"label 'zoo' in row 0 of split 'validation' \(.*/images/2.png\) is none of the 2 classes of split"
               r" 'train' \('a', 'b'\): remove such images, or list all classes in a file for --data.classes")
    with pytest.raises(TrainError, match=message):
        load_source(DataConfig(path=str(root / 'a.csv')))


def test_nan_in_json_lines_is_no_label(root: Path) -> None:
    for labels, names in ((['ship', 'car', float('nan')], ['car', 'ship']), ([1, 0, float('nan')], None)):
        rows = [{'image': f'images/{number}.png', 'label': label} for number, label in enumerate(labels)]
        (root / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        found = load_source(DataConfig(path=str(root / 'a.jsonl'), on_missing_label='skip'))
        assert (found.train.labels.tolist(), found.label_names) == ([1, 0], names)
        assert found.left_out == {'no label': 1}


@pytest.mark.parametrize('column', ['image', 'file_name', 'filename', 'path', 'file', 'picture'])
def test_the_column_of_the_images(root: Path, column: str) -> None:
    (root / 'a.csv').write_text(f'id,{column},kind\n9,images/0.png,a\n8,images/1.png,b\n')
    keys = dict(image_column='picture') if column == 'picture' else {}
    assert read(root / 'a.csv', label_column='kind', **keys) == {'train': [(0, 'a'), (1, 'b')]}
    source = load_source(DataConfig(path=str(root / 'a.csv'), label_column='kind', **keys))  # type: ignore[arg-type]
    assert source.label_names == ['a', 'b'] and source.train.labels.tolist() == [0, 1]


def test_splits_by_column(root: Path) -> None:
    parts = ['train ', 'Train', 'dev', ' test', 'extra', '']
    lines = [f'images/{number}.png,{number % 2},{split}' for number, split in enumerate(parts)]
    (root / 'a.csv').write_text('\n'.join(['path,label,split', *lines]))
    assert read(root / 'a.csv') == {'train': [(0, 0), (1, 1)], 'validation': [(2, 0)], 'test': [(3, 1)],
                                    'extra': [(4, 0)]}
    assert open_splits(DataConfig(path=str(root / 'a.csv'))).left_out == {'a row without a split': 1}
    source = load_source(DataConfig(path=str(root / 'a.csv'), train_split='train'))
    assert source.left_out == {'a row without a split': 1, "a row of split 'extra', which is not used": 1}
    (root / 'a.csv').write_text('\n'.join(['path,label,split', *lines, 'images/5.png,1,val']))
    with pytest.raises(TrainError, match=r"the values 'dev' and 'val' of column 'split' both mean the split 'valid"):
        read(root / 'a.csv')


def test_splits_by_file(root: Path) -> None:
    (root / 'train.csv').write_text('path,label\nimages/0.png,a\nimages/1.png,b\n')
    (root / 'test.csv').write_text('path,label\nimages/2.png,a\n')
    expected = {'train': [(0, 'a'), (1, 'b')], 'test': [(2, 'a')]}
    assert read(root) == read(root / '*.csv') == expected
    (root / 'sample_submission.csv').write_text('path,label\nimages/3.png,a\n')
    assert read(root) == expected
    assert open_splits(DataConfig(path=str(root))).left_out['a table without the name of a split'] == 1


def test_lists_beside_folders_of_unsorted_images(root: Path) -> None:
    (root / 'images').rename(root / 'train')
    (root / 'test').mkdir()
    (root / 'train' / '5.png').rename(root / 'test' / '5.png')
    (root / 'train.csv').write_text('path,label\ntrain/0.png,a\ntrain/1.png,b\n')
    (root / 'test.csv').write_text('path,label\ntest/5.png,b\n')
    assert read(root) == {'train': [(0, 'a'), (1, 'b')], 'test': [(5, 'b')]}


@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet'])
@pytest.mark.parametrize('splits', [('',), ('train', 'val')])
def test_metadata_beside_images(root: Path, kind: str, splits: tuple[str, ...]) -> None:
    for number, split in enumerate(splits):
        folder = root / 'images' if not split else root / split
        if split:
            folder.mkdir()
            (root / 'images' / f'{number}.png').rename(folder / f'{number}.png')
        rows = [{'file_name': f'{number}.png', 'label': 'cat', 'age': 3}]
        if kind == 'parquet':
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'metadata.parquet')
        else:
            text = json.dumps(rows[0]) if kind == 'jsonl' else f'file_name,label,age\n{number}.png,cat,3'
            (folder / f'metadata.{kind}').write_text(text)
    expected = {'train': [(0, 'cat')], 'validation': [(1, 'cat')]}
    if splits == ('',):
        assert read(root / 'images') == {'train': expected['train']}
        return
    (root / 'images').rename(root.parent / 'elsewhere')
    assert read(root) == expected


def write(root: Path, *names: str) -> Path:
    """Write images whose brightness is their place among the names."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(root / name)
    return root


@pytest.mark.parametrize(('images', 'lists', 'expected'), [
    # The folders store images and are no classes.
    (['train_images/a.png', 'train_images/b.png', 'test_images/c.png'],
     {'train.csv': 'file_name,label\ntrain_images/a.png,x\ntrain_images/b.png,y'}, {'train': [(0, 'x'), (1, 'y')]}),
    (['images/a.png', 'masks/a.png'], {'labels.csv': 'file_name,label\nimages/a.png,x'}, {'train': [(0, 'x')]}),
    (['train/part1/a.png', 'train/part2/b.png', 'test/part1/c.png'],
     {'train/metadata.csv': 'file_name,label\npart1/a.png,x\npart2/b.png,y',
      'test/metadata.csv': 'file_name,label\npart1/c.png,y'}, {'train': [(0, 'x'), (1, 'y')], 'test': [(2, 'y')]}),
    (['train/images/a.png', 'train/images/b.png'],
     {'train/metadata.jsonl': '{"file_name": "images/a.png", "label": "x"}\n'}, {'train': [(0, 'x')]}),
    # Other lists say nothing of the images.
    (['images/a.png', 'masks/a.png'],
     {'labels.csv': 'file_name,label\nimages/a.png,x', 'colours.csv': 'name,value\nx,7'}, {'train': [(0, 'x')]}),
    (['cat/0.png', 'dog/1.png'], {'classes.csv': 'number,name\n0,cat\n1,dog', 'old.csv': 'caf\udce9'},
     {'train': [(0, 0), (1, 1)]}),
])
def test_a_list_beside_folders_says_what_its_images_are(
        tmp_path: Path, images: list[str], lists: dict[str, str], expected: dict[str, Any]) -> None:
    root = write(tmp_path / 'data', *images)
    for name, text in lists.items():
        (root / name).write_bytes(text.encode('utf-8', 'surrogateescape'))
    assert read(root) == expected
    assert not open_splits(DataConfig(path=str(root))).notes


def test_a_list_beside_folders_that_is_not_understood(tmp_path: Path) -> None:
    root = write(tmp_path / 'data', 'images/a.png', 'masks/a.png')
    (root / 'labels.csv').write_text('file_name,breed\nimages/a.png,x')
    with pytest.raises(TrainError, match=r"list of them, 'labels.csv', without a column 'label', it has file_name, "
                                         r'breed: name its labels as data\.label_column, or if the folders are'):
        read(root)
    assert read(root, label_column='breed') == {'train': [(0, 'x')]}
    (root / 'labels.csv').write_text('file_name,label\na.png,x')
    with pytest.raises(TrainError, match=r"labels.csv': 1 of 1 images don't exist: 'a.png' in line 2; write paths"):
        read(root)
    for name in ('a', 'a.png', 'else/a.png'):
        (root / 'labels.csv').write_text(f'id,label\n{name},x')
        assert read(root) == {'train': [(0, 0), (1, 1)]}
        assert "'labels.csv' isn't read, though its column 'id'" in open_splits(DataConfig(path=str(root))).notes[0]


def test_a_column_of_images_that_is_named_and_missing_is_an_error(root: Path) -> None:
    (root / 'a.csv').write_text('file_name,crop_path,label\nimages/0.png,images/1.png,x\n')
    assert read(root / 'a.csv', image_column='crop_path') == {'train': [(1, 'x')]}
    with pytest.raises(TrainError, match=r"data\.image_column 'crop-path': '.*a.csv' has no such column, it has"
                                         r" file_name, crop_path, label; did you mean 'crop_path'\?"):
        read(root / 'a.csv', image_column='crop-path')


def test_paths_as_windows_writes_them(root: Path) -> None:
    (root / 'a.csv').write_text('file_name,label\nimages\\0.png,x\n.\\images\\1.png,y\n')
    assert read(root / 'a.csv') == {'train': [(0, 'x'), (1, 'y')]}
    write(root, 'images\\0.png', 'images\\1.png', 'images\\7.png')  # the name of a file here
    (root / 'a.csv').write_text('file_name,label\nimages\\7.png,x\n')
    assert read(root / 'a.csv') == {'train': [(2, 'x')]}


@pytest.mark.parametrize('values', [[1, 'a'], [10 ** 21, 1], [{'a': 1}, [2]], [True, 'a']])
def test_columns_of_json_lines_that_are_no_column_of_a_table(root: Path, values: list[Any]) -> None:
    rows = [{'path': f'images/{number}.png', 'label': number, 'id': value} for number, value in enumerate(values)]
    (root / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert read(root / 'a.jsonl') == {'train': [(0, 0), (1, 1)]}
    opened = open_splits(DataConfig(path=str(root / 'a.jsonl')))
    assert opened.notes == ("column 'id' has values of several types, or too large for 64 bits, and isn't read",)
    with pytest.raises(TrainError, match=r"data.label_column 'id' of '.*' has values of several types, or too large"):
        read(root / 'a.jsonl', label_column='id')


@pytest.mark.parametrize(('text', 'message'), [
    ('path,label\n', 'has no rows'),
    ('', 'has no rows'),
    ('picture,label\nimages/0.png,1\n', r'has no column with the paths of images, it has picture, label: name one of'),
    ('images/0.png,1\nimages/1.png,2\n', 'no column with the paths of images, it has images/0.png, 1'),
    ('path,label\nimages/0.png,1\nimages/7.png,1\n\nx.png,2\n,2\n',
     r"3 of 4 images don't exist: 'images/7.png' in line 3, 'x.png' in line 5, None in line 6; write paths"),
    ('path,label\n' + 'x.png,2\n' * 5, r"5 of 5 images .* in line 2, 'x.png' in line 3, 'x.png' in line 4, \.\.\.;"),
    ('path,label\nimages/0.png,1,2\n', r'line 2: 3 cells, and the first line names 2 columns'),
    ('path,label,label\nimages/0.png,1,2\n', 'has two columns of one name'),
    ('path,label\nimages/0.png,caf\udce9\n', r'is not UTF-8 \(invalid .* at byte 27\): save it as UTF-8'),
])
def test_faults_of_a_csv_file(root: Path, text: str, message: str) -> None:
    (root / 'a.csv').write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(TrainError, match=message) as raised:
        open_splits(DataConfig(path=str(root / 'a.csv')))
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize(('text', 'message'), [
    ('{"path": "images/0.png"}\n[1]\n', 'line 2: not a JSON object: write one object per line'),
    ('[\n{"path": "images/0.png"}]\n', 'line 1: not a JSON object'),
])
def test_faults_of_json_lines(root: Path, text: str, message: str) -> None:
    (root / 'a.jsonl').write_text(text)
    with pytest.raises(TrainError, match=message):
        open_splits(DataConfig(path=str(root / 'a.jsonl')))


def test_a_list_is_not_streamed(root: Path) -> None:
    (root / 'a.csv').write_text('path,label\nimages/0.png,1\n')
    with pytest.raises(TrainError, match=r'is a list of images, .*: leave out data\.streaming'):
        load_source(DataConfig(path=str(root / 'a.csv'), streaming=True))
