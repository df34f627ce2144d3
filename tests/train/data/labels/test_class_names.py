"""Classes are joined by name, whatever numbers a split, a file or a column gives them."""
from __future__ import annotations

import dataclasses

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.data.labels.toys import CONFIG, NFC, NFD, classes, named, refuses, save, table
from timm_collab.train.config import DataConfig
from timm_collab.train.data.labels.class_names import lookalikes, read_class_names
from timm_collab.train.data.labels.label_column import read_labels
from timm_collab.train.data.labels.label_form import find_form
from timm_collab.train.data.sources import load_source


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
