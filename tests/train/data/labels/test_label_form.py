"""What numbers and other values of a column of labels mean."""
from __future__ import annotations

import dataclasses
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.data.labels.toys import CELL, CONFIG, classes, named, refuses, save, table
from timm_collab.train.config import DataConfig
from timm_collab.train.data.labels.class_names import LabelForm
from timm_collab.train.data.labels.label_column import read_labels
from timm_collab.train.data.labels.label_form import find_form, given_form
from timm_collab.train.data.sources import load_source, load_split


@pytest.mark.parametrize(('numbers', 'names', 'labels'), [
    ([150002, 150000, 150001], ['150000', '150001', '150002'], [2, 0, 1]),
    ([3, 17, 90, 3], ['3', '17', '90'], [0, 1, 2, 0]),
    ([1, 2, 3], ['1', '2', '3'], [0, 1, 2]),
    ([2, 0, 1], None, [2, 0, 1]),
    ([2.0, 0.0, 1.0], None, [2, 0, 1]),
    ([7.0, 5.0], ['5', '7'], [1, 0]),
    ([True, False, True], ['False', 'True'], [1, 0, 1]),
    ([True, True], ['False', 'True'], [1, 1]),
])
def test_numbers_become_classes(numbers, names, labels):
    rows = table(numbers)
    form = find_form(rows, CONFIG)
    assert form.names == names and read_labels(rows, 'train', CONFIG, form)[0].tolist() == labels
    notes = ' '.join(form.notes)
    assert ('write --model.num_classes' in notes) == (names not in (None, ['False', 'True']))
    assert ('decimal numbers, all of them whole' in notes) == isinstance(numbers[0], float)


def test_numbers_of_another_split(tmp_path):
    config = save(tmp_path / 'a', train=table([3, 17, 90, 17]), test=table(['90', '3']))
    assert named(load_source(config)) == {'train': ['3', '17', '90', '17'], 'test': ['90', '3']}
    config = save(tmp_path / 'b', train=table([3, 17, 90]), test=table([17, 18, 120]))
    with refuses("label 18 in row 1 of split 'test' is none of the 3 classes of split 'train' ('3', '17', '90'), nor"
                 ' are 120: if these numbers are class indices write --model.num_classes 121'):
        load_source(config)
    source = load_source(config, num_classes=121)
    assert source.label_names is None and source.train.labels.tolist() == [3, 17, 90]
    assert source.test.labels.tolist() == [17, 18, 120]
    config = save(tmp_path / 'd', train=table([1, 2, 3, 4]), test=table([0, 1, 2, 3]))
    with refuses("label 0 in row 0 of split 'test' is none of the 4 classes of split 'train' ('1', '2', '3', '4'): the"
                 " classes of split"
                 " 'train' are numbered from 1, and those of this split from 0; number them alike, or if these numbers"
                 ' are class indices write --model.num_classes 5 or more'):
        load_source(config)
    config = save(tmp_path / 'c', train=table([0, 1, 2]), test=table([1, 3]))
    with refuses('label 3 in row 1', 'is none of the 3 classes', 'write --model.num_classes 4 or more'):
        load_source(config)


def test_names_beside_numbers_need_a_file(tmp_path):
    config = save(tmp_path / 'a', train=table([0, 1, 2]), test=table(['cat', 'owl'], classes('owl', 'cat')))
    with refuses("label 'cat' in row 0 of split 'test' is none", 'numbered from 0: write --data.classes'):
        load_source(config)
    (tmp_path / 'names.txt').write_text('cat\ndog\nowl\n')
    source = load_source(dataclasses.replace(config, classes=str(tmp_path / 'names.txt')))
    assert named(source) == {'train': ['cat', 'dog', 'owl'], 'test': ['cat', 'owl']}
    config = save(tmp_path / 'c', train=table(['cat', 'owl', 'dog']), test=table([1, 0]))
    with refuses("label 1 in row 0 of split 'test' is none of the 3", 'have names: write --data.classes with a file'):
        load_source(config)  # the order of sorted names is no order of numbers
    assert load_source(dataclasses.replace(config, classes=str(tmp_path / 'names.txt'))).test.labels.tolist() == [1, 0]
    config = save(tmp_path / 'b', train=table([0, 1, 2]), test=table(['2', '0'], classes('2', '1', '0')))
    assert load_source(config).test.labels.tolist() == [2, 0]


def test_a_split_for_a_model_that_has_classes(tmp_path):
    config = save(tmp_path / 'a', bonus=table(['dog', 'owl'], classes('owl', 'dog')))
    split, names = load_split(config, 'bonus', 3, ['cat', 'dog', 'owl'])
    assert split.labels.tolist() == [1, 2] and names == ['cat', 'dog', 'owl']
    with refuses("label 'dog' in row 0 of split 'bonus' is none of the 2 classes of the run"):
        load_split(config, 'bonus', 2, ['cat', 'owl'])
    assert given_form(config, 3) == LabelForm(None, 3, 'model.num_classes')


def test_numbers_of_a_split_for_a_model_need_a_file(tmp_path):
    """The file says what the numbers of the data mean, and the model what its outputs mean."""
    (tmp_path / 'names.txt').write_text('owl\ndog\ncat\n')
    known = ['cat', 'dog', 'owl']
    config = save(tmp_path / 'a', test=table([0, 1, 2, 0]))
    with refuses("label 0 in row 0 of split 'test' is none of the 3 classes of the run ('cat', 'dog', 'owl'), nor are"
                 ' 1, 2, which have names: write --data.classes with a file of them in the order of these numbers'):
        load_split(config, 'test', 3, known)
    with_file = dataclasses.replace(config, classes=str(tmp_path / 'names.txt'))
    assert load_split(with_file, 'test', 3, known)[0].labels.tolist() == [2, 1, 0, 2]
    assert load_split(config, 'test', 3, ['0', '1', '2'])[0].labels.tolist() == [0, 1, 2, 0]
    with refuses('label 2 in row 2', "none of the 2 classes of the run ('dog', 'owl'), data.classes has the"
                 " name 'cat' for it"):
        load_split(with_file, 'test', 2, ['dog', 'owl'])
    (tmp_path / 'names.txt').write_text('owl\ncat\n')
    with refuses('label 2 in row 2', 'data.classes has no name for it'):
        load_split(with_file, 'test', 3, known)
    (tmp_path / 'names.txt').write_text('2\n0\n1\n')  # numbers are joined by name, as in training
    assert load_split(with_file, 'test', 3, ['1', '2', '0'])[0].labels.tolist() == [2, 0, 1, 2]
    texts = save(tmp_path / 'b', test=table(['owl', 'cat'], classes('owl', 'cat')))
    (tmp_path / 'names.txt').write_text('owl\ndog\ncat\n')
    for each in (texts, dataclasses.replace(texts, classes=str(tmp_path / 'names.txt'))):
        assert load_split(each, 'test', 3, known)[0].labels.tolist() == [2, 0]


@pytest.mark.parametrize('key', ['multi_label', 'soft_labels'])
def test_rows_of_numbers_for_a_model_need_a_file(tmp_path, key):
    (tmp_path / 'names.txt').write_text('owl\ncat\n')
    config = dataclasses.replace(save(tmp_path / 'a', test=table([[1, 0], [1, 1], [0, 1]])), **{key: True})
    with refuses('has rows of 2 numbers, one per class, and the classes of the run have names: write --data.classes'):
        load_split(config, 'test', 2, ['owl', 'cat'])
    config = dataclasses.replace(config, classes=str(tmp_path / 'names.txt'))
    expected = {'multi_label': [[0, 0, 1], [1, 0, 1], [1, 0, 0]], 'soft_labels': [2, 0, 0]}
    assert load_split(config, 'test', 3, ['cat', 'dog', 'owl'])[0].labels.tolist() == expected[key]
    with refuses('data.classes has names that are none of the classes of the run: owl'):
        load_split(config, 'test', 2, ['cat', 'dog'])


def test_numbers_beside_names_are_said(tmp_path):
    config = save(tmp_path / 'a', train=table(['cat', 'dog'], classes('dog', 'cat')), test=table([0, 1, 1]))
    source = load_source(config)
    assert named(source)['test'] == ['dog', 'cat', 'cat']
    assert source.notes == ("split 'test' has numbers without names: they are taken for indices of the classes of split"
                            " 'train', 0 for 'dog'",)
    config = save(tmp_path / 'd', train=table(['cat', 'dog'], classes('dog', 'cat')), test=table([0, 5]))
    with refuses("label 5 in row 1 of split 'test' is none of the 2 classes of split 'train' ('dog', 'cat'): if these"
                 ' numbers are class indices write --model.num_classes 6 or more'):
        load_source(config)
    train = table(['0', '1', '2', '3'], classes('3', '1', '2', '0')).add_column('guess', [3, 2, 1, 0])
    source = load_source(save(tmp_path / 'b', train=train, test=table([3, 1, 2, 0])), 'guess')
    assert source.test.labels.tolist() == [0, 1, 2, 3] and source.given.tolist() == [0, 2, 1, 3]
    assert source.notes == tuple(
        f"{where} has numbers without names: they are taken for names of classes of split 'train', so that 3 is the"
        " class '3' with the index 0" for where in ("split 'test'", "noise.column 'guess'"))
    (tmp_path / 'names.txt').write_text('1\n0\n')
    config = save(tmp_path / 'c', train=table([0, 1]), test=table([1, 0]))
    assert load_source(config).notes == ()
    assert len(load_source(dataclasses.replace(config, classes=str(tmp_path / 'names.txt'))).notes) == 2
    (tmp_path / 'names.txt').write_text('dog\ncat\n')
    assert load_source(dataclasses.replace(config, classes=str(tmp_path / 'names.txt'))).notes == ()


@pytest.mark.parametrize(('labels', 'kind', 'names', 'found'), [
    ([1, 0, 1], pa.decimal128(20, 0), None, [1, 0, 1]),
    ([Decimal('7.00'), Decimal('5.00'), Decimal('5.00')], pa.decimal128(5, 2), ['5', '7'], [1, 0, 0]),
    ([b'dog', b'cat', 'café'.encode()], pa.binary(), ['café', 'cat', 'dog'], [2, 1, 0]),
    ([b'dog', b'cat', b'dog'], pa.large_binary(), ['cat', 'dog'], [1, 0, 1]),
], ids=['decimal', 'decimal with places', 'bytes', 'large bytes'])
def test_labels_of_other_types(tmp_path, labels, kind, names, found):
    pq.write_table(pa.table({'image': [CELL] * 3, 'label': pa.array(labels, kind)}), tmp_path / 'train.parquet')
    source = load_source(DataConfig(path=str(tmp_path)))
    assert (source.label_names, source.train.labels.tolist()) == (names, found)


@pytest.mark.parametrize(('labels', 'message'), [
    ([{'id': 0}, {'id': 1}], "contains {'id': Value('int64')} in split 'train', which is neither a class index nor a"
                             ' name: name another column'),
    ([b'\xff', b'cat'], "label b'\\xff' in row 0 of split 'train': its bytes are no text in UTF-8"),
    ([Decimal('0.5'), Decimal('1.0')], "label Decimal('0.5') in row 0 of split 'train': it is neither a class index"),
])
def test_labels_of_types_that_are_none(tmp_path, labels, message):
    pq.write_table(pa.table({'image': [CELL] * 2, 'label': labels}), tmp_path / 'train.parquet')
    with refuses(message):
        load_source(DataConfig(path=str(tmp_path)))


def test_lists_of_records_are_no_labels(tmp_path):
    pq.write_table(pa.table({'image': [CELL] * 2, 'label': [[{'id': 0}], [{'id': 1}]]}), tmp_path / 'train.parquet')
    with refuses("data.label_column 'label' contains List(", 'which is neither a class index nor a name'):
        load_source(DataConfig(path=str(tmp_path), multi_label=True))
