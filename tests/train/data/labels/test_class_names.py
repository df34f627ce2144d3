"""Classes joined by name, in every form that labels come in."""
from __future__ import annotations

import dataclasses
import re
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timm_collab.train.config import DataConfig, ModelConfig, NoiseConfig, TrainConfig
from timm_collab.train.data.labels.class_names import LabelForm, lookalikes, read_class_names
from timm_collab.train.data.labels.label_column import read_labels
from timm_collab.train.data.labels.label_form import find_form, given_form
from timm_collab.train.data.loading.streaming import StreamSampler, StreamSplit
from timm_collab.train.data.sources import Source, load_source, load_split
from timm_collab.train.data.splits import make_splits
from timm_collab.train.errors import TrainError

NFC, NFD = (unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD'))
CELL = {'bytes': b'not decoded here', 'path': None}
CONFIG = DataConfig(path='here')


def refuses(*parts: str) -> Any:
    """Expect an error with these parts in its message."""
    return pytest.raises(TrainError, match='.*'.join(map(re.escape, parts)))


def table(labels: list[Any], feature: Any = None, **others: list[Any]) -> datasets.Dataset:
    """Rows with labels; those of class labels are given by name."""
    features = None
    if feature is not None:
        inner = getattr(feature, 'feature', feature)
        if isinstance(inner, datasets.ClassLabel):
            place = {name: index for index, name in enumerate(inner.names)}
            labels = [[place[each] for each in label] if isinstance(label, list) else place.get(label, label)
                      for label in labels]
        features = datasets.Features(label=feature)
    rows = datasets.Dataset.from_dict({'label': labels}, features=features)
    rows = rows.add_column('image', [CELL] * len(rows), feature=datasets.Image())
    for name, column in others.items():
        rows = rows.add_column(name, column)
    return rows


def save(folder: Path, /, **splits: datasets.Dataset) -> DataConfig:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return DataConfig(path=str(folder))


def classes(*names: str) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=list(names))


def named(source: Source) -> dict[str, list[str]]:
    """The names of the labels in each split."""
    splits = {split.name: split for split in (source.train, source.val, source.test) if split is not None}
    return {name: [source.label_names[label] for label in split.labels] for name, split in splits.items()}


@given(data=st.data())
def test_the_class_of_a_label_is_that_of_its_name(data):
    """Splits name the same classes in any order, as text or as numbers of their own, and may lack some."""
    names = data.draw(st.lists(st.text('abcé01 ', min_size=1, max_size=3).filter(str.strip), min_size=2, max_size=6,
                               unique=True))
    order = data.draw(st.permutations(names))
    train = table([*order, names[0]], classes(*order) if data.draw(st.booleans()) else None)
    form = find_form(train, CONFIG)
    assert sorted(form.names) == sorted(names)
    own = data.draw(st.permutations(names))[:data.draw(st.integers(1, len(names)))]
    labels = data.draw(st.lists(st.sampled_from(own), min_size=1, max_size=8))
    other = table(labels, data.draw(st.sampled_from([None, classes(*own), classes(*own, 'not used')])))
    found, missing_N = read_labels(other, 'test', CONFIG, form)
    assert [form.names[label] for label in found] == labels and not missing_N.any()
    listed = table([labels, []], datasets.List(classes(*own)))
    several, _ = read_labels(listed, 'test', dataclasses.replace(CONFIG, multi_label=True), form)
    assert {form.names[label] for label in np.flatnonzero(several[0])} == set(labels) and not several[1].any()


@pytest.mark.parametrize('as_text', ['train', 'test', 'neither'])
def test_splits_and_noise_that_number_the_classes_differently(tmp_path, as_text):
    feature = {split: None if as_text == split else classes(*order)
               for split, order in (('train', ['cat', 'dog', 'owl']), ('test', ['owl', 'dog', 'cat']))}
    train = table(['cat', 'dog', 'owl', 'dog'], feature['train'])
    train = train.add_column('guess', [0, 1, 0, 1], feature=classes('dog', 'cat'))
    source = load_source(save(tmp_path / 'a', train=train, test=table(['cat', 'owl'], feature['test'])), 'guess')
    assert named(source) == {'train': ['cat', 'dog', 'owl', 'dog'], 'test': ['cat', 'owl']}
    assert [source.label_names[label] for label in source.given] == ['dog', 'cat', 'dog', 'cat']
    assert source.notes == ("split 'test' has no image of 1 of 3 classes: dog",)


def test_files_of_tables_declare_their_own_order(tmp_path):
    """`datasets` takes the names of all files of all splits from the first file."""
    for name, labels, order in (('train-00000-of-00002', ['cat', 'dog'], ['cat', 'dog']),
                                ('train-00001-of-00002', ['cat', 'owl'], ['owl', 'dog', 'cat']),
                                ('test-00000-of-00001', ['dog', 'owl', 'cat'], ['dog', 'owl', 'cat'])):
        table(labels, classes(*order)).to_parquet(str(tmp_path / f'{name}.parquet'))
    source = load_source(DataConfig(path=str(tmp_path)))
    assert named(source) == {'train': ['cat', 'dog', 'cat', 'owl'], 'test': ['dog', 'owl', 'cat']}
    with refuses('leave out data.streaming, then classes are joined by name'):
        load_source(DataConfig(path=str(tmp_path), streaming=True, val_split='test', num_train_samples=4))


def test_lists_in_files_of_tables(tmp_path):
    for name, labels, order in (('train', [['cat'], [], ['dog', 'cat']], ['cat', 'dog']),
                                ('test', [['cat'], ['dog']], ['dog', 'cat'])):
        table(labels, datasets.List(classes(*order))).to_parquet(str(tmp_path / f'{name}.parquet'))
    source = load_source(DataConfig(path=str(tmp_path), multi_label=True))
    assert source.label_names == ['cat', 'dog'] and source.test.labels.tolist() == [[1, 0], [0, 1]]
    assert source.train.labels.tolist() == [[1, 0], [0, 0], [1, 1]]


def test_a_name_that_only_another_split_has(tmp_path):
    train = table(['cat', 'dog'], classes('cat', 'dog'))
    config = save(tmp_path / 'a', train=train, test=table(['dog', 'elk', 'gnu'], classes('dog', 'elk', 'gnu')))
    with refuses("label 'elk' in row 1 of split 'test' is none of the 2 classes of split 'train' ('cat', 'dog'),"
                 " nor are 'gnu'"):
        load_source(config)
    config = save(tmp_path / 'b', train=train, test=table(['dog'], classes('elk', 'dog')))  # declared, not used
    assert named(load_source(config))['test'] == ['dog']
    config = save(tmp_path / 'c', train=table(['cat ', 'dog']), test=table(['cat']))
    with refuses("label 'cat' in row 0 of split 'test' is none", "did you mean 'cat '"):
        load_source(config)


def test_one_name_in_two_normal_forms(tmp_path):
    assert NFC != NFD
    test = table([NFC, NFD], classes(NFD, NFC))
    source = load_source(save(tmp_path / 'a', train=table([NFD, 'tea', NFC]), test=test))
    assert source.label_names == [NFC, 'tea']
    assert source.train.labels.tolist() == [0, 1, 0] and source.test.labels.tolist() == [0, 0]
    assert find_form(table([NFC, NFD], classes(NFD, 'tea', NFC)), CONFIG).names == [NFC, 'tea']


def test_names_that_are_easily_confused_are_said():
    assert lookalikes(['cat', 'cat ', 'Dog', 'dog', 'owl']) == (
        "classes that differ in case or blanks alone are different classes: 'cat' and 'cat ', 'Dog' and 'dog'")
    assert lookalikes(['cat', 'dog']) is None
    assert find_form(table(['cat', 'cat ']), CONFIG).notes[0].startswith('classes that differ in case')


def test_texts_are_in_natural_order():
    form = find_form(table(['c10', 'c2', 'c1']), CONFIG)
    assert form.names == ['c1', 'c2', 'c10']
    assert form.notes == ("classes are in natural order, 'c2' before 'c10': write --data.classes for another",)
    assert find_form(table(['b', 'a']), CONFIG).notes == ()


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


def test_a_file_of_class_names(tmp_path):
    path = tmp_path / 'names.txt'
    for content in ('owl\ncat\ndog\n', '\ufeffowl\r\ncat\r\ndog\r\n', 'owl\ncat\ndog'):
        path.write_bytes(content.encode())
        assert read_class_names(str(path)) == ['owl', 'cat', 'dog']
    config = dataclasses.replace(
        save(tmp_path / 'a', train=table(['cat', 'owl', 'cat']), test=table(['owl'], classes('cat', 'owl'))),
        classes=str(path))
    source = load_source(config)
    assert named(source) == {'train': ['cat', 'owl', 'cat'], 'test': ['owl']}
    assert source.label_names == ['owl', 'cat', 'dog'] and source.train.labels.tolist() == [1, 0, 1]
    assert source.notes == ("split 'train' has no image of 1 of 3 classes: dog",
                            "split 'test' has no image of 1 of 3 classes: cat")
    with refuses('names 3 classes, and model.num_classes is 4: leave one of them out'):
        load_source(config, num_classes=4)
    path.write_text('owl\ncats\n')
    with refuses("label 'cat' in row 0 of split 'train' is none of the 2 classes of data.cl", "did you mean 'cats'"):
        load_source(config)


@pytest.mark.parametrize(('content', 'message'), [
    (b'cat\n\ndog\n', 'line 2 is blank'),
    (b'cat\ndog\n \n', 'line 3 is blank'),
    (b'cat\ndog\ncat\n', "'cat' is in lines 1 and 3"),
    (f'{NFC}\n{NFD}\n'.encode(), 'is in lines 1 and 2'),
    (b'cat\n', 'names 1 class: classification needs at least 2'),
    (b'', 'line 1 is blank'),
    ('café\n'.encode('latin-1'), 'it is not UTF-8; write a text file'),
    (None, 'No such file'),
])
def test_files_that_are_no_class_names(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'names.txt').write_bytes(content)
    with refuses(message):
        read_class_names(str(tmp_path / 'names.txt'))


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


@pytest.mark.parametrize(('found', 'asked', 'chosen'), [
    (['train', 'dev'], {}, ('train', 'dev', None)),
    (['Training', 'VALID', 'eval'], {}, ('Training', 'VALID', 'eval')),
    (['train', 'validation'], {'val_split': 'val'}, ('train', 'validation', None)),
    (['train', 'val', 'validation'], {'val_split': 'val'}, ('train', 'val', None)),
    (['train', 'test'], {'val_split': 'testing', 'test_split': None}, ('train', 'test', None)),
    (['train', 'evaluate', 'bonus'], {}, ('train', None, None)),
])
def test_splits_by_another_name(tmp_path, found, asked, chosen):
    config = save(tmp_path / 'a', **{name: table(['a', 'b']) for name in found})
    source = load_source(dataclasses.replace(config, **asked))
    assert tuple(split and split.name for split in (source.train, source.val, source.test)) == chosen


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
