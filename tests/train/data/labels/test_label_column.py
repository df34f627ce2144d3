from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from timm_collab.train.config import DataConfig, ModelConfig, NoiseConfig, ObjectiveConfig, TrainConfig
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.labels.label_column import as_target, read_labels, strata
from timm_collab.train.data.labels.label_form import find_form
from timm_collab.train.data.sources import Source
from timm_collab.train.data.splits import make_splits
from timm_collab.train.errors import TrainError

NAMES = ['cat', 'dog', 'owl']
CONFIG = DataConfig(path='here', multi_label=True)


def rows(labels, feature=None) -> datasets.Dataset:
    features = None if feature is None else datasets.Features(label=feature)
    return datasets.Dataset.from_dict({'label': labels}, features=features)


def read(labels, feature=None, config=CONFIG) -> tuple[list[str] | None, list[list[int]]]:
    data = rows(labels, feature)
    form = find_form(data, config)
    found, missing_N = read_labels(data, 'train', config, form)
    assert missing_N.tolist() == [label is None for label in labels]
    return form.names, found.tolist()


@pytest.mark.parametrize(('labels', 'feature', 'names'), [
    ([[0, 2], [], [1]], datasets.Sequence(datasets.ClassLabel(names=NAMES)), NAMES),
    ([[0, 2], [], [1]], None, None),
    ([[2, 0, 2], [], [1]], datasets.Sequence(datasets.Value('int32')), None),
    ([['owl', 'cat'], [], ['dog']], None, NAMES),
    ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], None, None),
    ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], datasets.Sequence(datasets.Value('uint8'), length=3), None),
    ([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], None, None),
    ([[True, False, True], [False, False, False], [False, True, False]], None, None),
])
def test_every_format_of_several_labels(labels, feature, names):
    assert read(labels, feature) == (names, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])


def test_lists_are_distinguished_from_rows_of_zeros_and_ones():
    assert read([[0], [1], [1]])[1] == [[1, 0], [0, 1], [0, 1]]
    assert read([[0, 1], [1, 0], [0, 0]])[1] == [[0, 1], [1, 0], [0, 0]]
    assert read([[0, 1], [1], [0]])[1] == [[1, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize(('labels', 'message'), [
    ([[0, 3], [-1]], "the list in row 1 of split 'train' has an empty label or -1: an image without labels has an"),
    ([[0], [None]], "the list in row 1 of split 'train' has an empty label"),
    ([[0], [-2]], "label -2 in row 1 of split 'train': it is neither a class index nor a name"),
    ([[0.0, 0.5], [1.0, 0.0]], "label 0.5 in row 0 of split 'train': it is neither a class index nor a name"),
    ([0, 1], r"data.label_column 'label' contains Value\(.int64.\), one label per image: leave out data.multi_label"),
])
def test_invalid_labels_are_refused(labels, message):
    with pytest.raises(TrainError, match=message):
        read(labels)


def test_other_splits_must_have_the_format_of_the_training_split():
    form = find_form(rows([[1, 0, 1], [0, 0, 1]]), CONFIG)
    with pytest.raises(TrainError, match=r"row 1 of split 'test' are not a row of 3 zeros and ones, .*: \[1, 0\]"):
        read_labels(rows([[1, 0, 1], [1, 0]]), 'test', CONFIG, form)
    form = find_form(rows([['cat'], ['owl']]), CONFIG)
    with pytest.raises(TrainError, match="label 'dog' in row 0 of split 'test' is none of the 2 classes of split 'tr"):
        read_labels(rows([['dog']]), 'test', CONFIG, form)


def test_an_image_without_labels_is_not_one_whose_labels_are_missing():
    assert read([[0, 1], [], None])[1] == [[1, 1], [0, 0], [0, 0]]
    assert read([[0, 1], [1, 0], None])[1] == [[0, 1], [1, 0], [0, 0]]


def test_numbers_of_several_labels_become_classes():
    names, labels = read([[150002, 150000], [], [150001]])
    assert names == ['150000', '150001', '150002'] and labels == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_lists_need_multi_label():
    with pytest.raises(TrainError, match=r'contains lists: .* write --data.multi_label true --objective.hard bce'):
        read([[0], [1]], config=DataConfig(path='here'))


def split(labels, name='train') -> ImageSplit:
    data = datasets.Dataset.from_dict({'image': list(range(len(labels)))})
    return ImageSplit(name, data, 'image', 'L', np.arange(len(labels)), np.asarray(labels, dtype=np.uint8))


def recipe(num_classes=None, batch_size=4, **data) -> TrainConfig:
    return TrainConfig(
        batch_size=batch_size, model=ModelConfig(name='collab_resnet18', num_classes=num_classes),
        data=DataConfig(path='here', multi_label=True, **data), objective=ObjectiveConfig(hard='bce'))


@pytest.fixture
def labels_NC() -> np.ndarray:
    """400 images: 0 is common, 1 on a fifth, 2 on every fortieth, some have none."""
    labels = np.zeros((400, 3), dtype=np.uint8)
    labels[:360, 0] = 1
    labels[::5, 1] = 1
    labels[::40, 2] = 1
    return labels


def test_hold_out_is_stratified_by_the_rarest_label(labels_NC):
    strata_N = strata(labels_NC)
    assert (strata_N[0], strata_N[5], strata_N[1], strata_N[399]) == (2, 1, 0, 3)
    made = make_splits(Source(split(labels_NC), None, None, None), recipe(val_fraction=0.1))
    assert sorted([*made.train.row_N, *made.val.row_N]) == list(range(400))
    assert np.array_equal(made.val.labels, labels_NC[made.val.row_N])
    assert made.val.labels.sum(axis=0)[1:].tolist() == [8, 1] and made.val.labels.sum(axis=0)[0] in range(34, 39)
    assert "held out by each image's rarest label" in made.val_origin
    again = make_splits(Source(split(labels_NC), None, None, None), recipe(val_fraction=0.1))
    assert made.fingerprint == again.fingerprint
    few = make_splits(Source(split(labels_NC), None, None, None), recipe(max_train_samples=40))
    assert len(few.train) == 40 and few.train.labels.sum(axis=0)[2] == 1


def test_missing_classes_get_a_column_and_unknown_ones_are_refused(labels_NC):
    source = Source(split(labels_NC), None, split([[1], [0]], 'test'), None)
    made = make_splits(source, recipe(num_classes=5))
    assert made.num_classes == 5 == made.train.labels.shape[1] == made.test.labels.shape[1]
    assert make_splits(source, recipe()).num_classes == 3
    with pytest.raises(TrainError, match=r"label 2 in row 0 of split 'train' is outside \[0, 2\): raise model.num_cl"):
        make_splits(source, recipe(num_classes=2))


def test_constant_or_empty_labels_are_refused(labels_NC):
    with pytest.raises(TrainError, match='have the same labels, there is nothing to learn'):
        make_splits(Source(split([[1, 0]] * 9), None, None, None), recipe())
    with pytest.raises(TrainError, match="no image of split 'test' has a label to evaluate with"):
        make_splits(Source(split(labels_NC), None, split(labels_NC * 0, 'test'), None), recipe())


def test_column_with_other_labels(labels_NC):
    source = Source(split(labels_NC), split(labels_NC, 'validation'), None, None, given=1 - labels_NC)
    config = recipe()
    config = TrainConfig(**{**vars(config), 'noise': NoiseConfig(kind='column', column='other')})
    made = make_splits(source, config)
    assert made.noise_rate == 1 and np.array_equal(made.train.labels, 1 - labels_NC)
    assert np.array_equal(made.clean, labels_NC) and np.array_equal(made.val.labels, labels_NC)


def test_targets():
    assert as_target(torch.tensor([3, 1])).tolist() == [3, 1]
    target_BC = as_target(torch.tensor([[0, 1]], dtype=torch.uint8))
    assert target_BC.dtype == torch.float32 and target_BC.tolist() == [[0.0, 1.0]]
