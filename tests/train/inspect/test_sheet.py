"""The contact sheet shows what the network sees, draw by draw."""
from __future__ import annotations

import numpy as np
import pytest
import timm
from PIL import Image

from timm_collab.train import TrainError
from timm_collab.train.config import AugmentConfig, DataConfig, ModelConfig
from timm_collab.train.data.augment.preprocess import make_preprocessing
from timm_collab.train.data.loading.images import make_dataset
from timm_collab.train.data.sources import load_source
from timm_collab.train.data.splits import make_splits
from timm_collab.train.inspect import draw_sheet
from timm_collab.train.inspect.sheet import DRAWS, MAX_CLASSES

CELL, GAP, TEXT = 128, 8, 16


def cell(sheet: Image.Image, row: int, column: int, size: tuple[int, int]) -> np.ndarray:
    """A picture of the sheet at its own size."""
    left, top = GAP + column * (CELL + GAP), TEXT + GAP + row * (CELL + TEXT + GAP)
    factor = CELL // max(size)
    box = (left, top, left + factor * size[0], top + factor * size[1])
    return np.asarray(sheet.crop(box))[::factor, ::factor]


@pytest.mark.parametrize('augment', [
    AugmentConfig(crop='pad', color_jitter=0.4), AugmentConfig(auto_augment='rand-m9-mstd0.5-inc1')],
    ids=['in batches', 'one by one'])
def test_cells_are_the_tensors_of_a_run(tmp_path, recipe, augment):
    data = DataConfig(path='builtin:digits', img_size=16, mean=[0.3], std=[0.2])
    model = ModelConfig(name='collab_test_resnet', heads=2)
    shown = draw_sheet(tmp_path / 'sheet.png', data, augment, model, seed=3, per_class=1)
    sheet = Image.open(tmp_path / 'sheet.png')
    assert (shown.images, shown.num_classes, len(shown.classes)) == (10, 10, 10)

    config = recipe('--seed=3', '--data.max_train_samples=null', '--data.in_chans=3')
    splits = make_splits(load_source(data), config)
    preprocessing = make_preprocessing(timm.create_model('test_resnet'), data, augment)
    training = make_dataset(splits.train, preprocessing, True, 3, data)
    evaluation = make_dataset(splits.train, preprocessing, False, 3, data)
    for label in range(10):
        index = int(np.flatnonzero(splits.train.labels == label)[0])
        assert (cell(sheet, label, 0, (8, 8)) == np.asarray(splits.train.image(index))).all()
        for epoch in range(DRAWS):
            seen = training[(epoch, index)][0] * 0.2 + 0.3
            expected = (seen * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
            assert np.abs(cell(sheet, label, 1 + epoch, (16, 16)).astype(int) - expected.numpy()).max() <= 1
        expected = ((evaluation[index][0] * 0.2 + 0.3) * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
        assert np.abs(cell(sheet, label, 1 + DRAWS, (16, 16)).astype(int) - expected.numpy()).max() <= 1


def test_without_a_model_the_input_has_the_size_of_the_images(tmp_path, image_folder):
    path = str(image_folder())
    shown = draw_sheet(tmp_path / 'a.png', DataConfig(path=path), AugmentConfig(), ModelConfig())
    assert "the images' own size, 8x8" in shown.notes[0] and shown.images == 4
    shown = draw_sheet(tmp_path / 'b.png', DataConfig(path=path, img_size=24), AugmentConfig(mixup=0.2), ModelConfig())
    assert 'data.img_size' in shown.notes[0] and shown.notes[-1] == 'mixup and cutmix are not shown'


def test_of_many_classes_some_are_shown(tmp_path, images):
    for number in range(30):
        folder = tmp_path / 'many' / f'c{number}'
        folder.mkdir(parents=True)
        for place, image in enumerate(images([number % 5] * 3)):
            image.save(folder / f'{place}.png')
    shown = draw_sheet(tmp_path / 'sheet.png', DataConfig(path=str(tmp_path / 'many')), AugmentConfig(), ModelConfig(),
                       per_class=1)
    assert len(shown.classes) == shown.images == MAX_CLASSES and shown.num_classes == 30
    assert {'c0', 'c29'} <= set(shown.classes)


def test_grey_and_broken_images(tmp_path, image_folder):
    folder = image_folder()
    (folder / 'cat' / '0.png').write_bytes(b'no image')
    shown = draw_sheet(
        tmp_path / 'sheet.png', DataConfig(path=str(folder), in_chans=1), AugmentConfig(repeats=2), ModelConfig())
    assert shown.images == 4


@pytest.mark.parametrize(('name', 'keys', 'message'), [
    ('sheet', {}, r'write the name of a picture file, such as sheet\.png'),
    ('sheet.png', {'streaming': True}, 'leave out data.streaming'),
    ('no/such\0folder/sheet.png', {}, "can't be written"),
])
def test_mistakes(tmp_path, parquet_folder, name, keys, message):
    with pytest.raises(TrainError, match=message):
        draw_sheet(tmp_path / name, DataConfig(path=str(parquet_folder), **keys), AugmentConfig(), ModelConfig())


def test_images_that_cannot_be_decoded_are_left_out(tmp_path, image_folder):
    root = image_folder()
    for file in sorted(root.glob('*/*'))[::2]:
        file.write_bytes(b'')
    shown = draw_sheet(tmp_path / 'a.png', DataConfig(path=str(root)), AugmentConfig(), ModelConfig())
    assert "the images' own size, 8x8" in shown.notes[0] and shown.images == 4
