"""What the network sees when it is judged: ours, plain timm's and transformers' tensors are equal bit for bit.

The files are of every kind that Pillow opens otherwise. timm and transformers get them as the card's lines open them.

Array names end in their shape: H and W height and width.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from tests.runs import finished_run
from timm_collab import CollabModel, load_run
from timm_collab.hub import ExportOptions
from timm_collab.hub.card import opening
from timm_collab.hub.export import write_folder
from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.augment.preprocess import Preprocessing, make_preprocessing
from timm_collab.train.data.decoding.image_split import ImageSplit
from timm_collab.train.data.loading.images import BatchedImages, TransformedImages, make_dataset
from timm_collab.train.data.sources import load_split
from timm_collab.train.record.save import save_pruned
from timm_collab.train.record.summary_parts import DataSummary

ORIENTATION = 0x0112  # of EXIF


def write_images(folder: Path) -> None:
    """A file of each kind, none of them symmetric."""
    rng = np.random.default_rng(0)

    def noise(height: int, width: int) -> Image.Image:
        coarse = Image.fromarray(rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8))
        return coarse.resize((width, height), Image.Resampling.BICUBIC)

    for name, kind in (('one', 'png'), ('two', 'jpg')):
        (folder / name).mkdir(parents=True)
        noise(41, 60).save(folder / name / f'rgb.{kind}')
    files, picture = folder / 'one', noise(53, 37)
    for mode in ('L', 'LA', 'RGBA', '1'):
        picture.convert(mode).save(files / f'{mode.lower()}.png')
    half = Image.fromarray(rng.integers(0, 256, (53, 37), dtype=np.uint8))
    Image.merge('LA', (picture.convert('L'), half)).save(files / 'transparent_la.png')
    Image.merge('RGBA', (*picture.split(), half)).save(files / 'transparent_rgba.png')
    palette = picture.quantize(17)
    palette.save(files / 'palette.png')
    palette.save(files / 'palette_with_transparency.png', transparency=bytes(range(17)))
    picture.save(files / 'animated.gif', save_all=True, append_images=[noise(53, 37)])
    picture.convert('CMYK').save(files / 'cmyk.jpg')
    deep = Image.fromarray(np.asarray(picture.convert('L')).astype(np.uint16) * 250 + 3)
    deep.save(files / 'deep.png')
    deep.save(files / 'deep.tif')
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        noise(31, 45).save(files / f'orientation_{orientation}.jpg', exif=exif)
    for height, width in ((1, 9), (7, 3), (32, 32), (33, 31), (96, 96), (97, 224), (300, 225)):
        noise(height, width).save(files / f'size_{height}x{width}.png')


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('images')
    write_images(folder)
    return folder


@pytest.fixture(scope='module')
def models() -> dict[int, CollabModel]:
    return {in_chans: CollabModel('test_resnet', heads=2, num_classes=2, in_chans=in_chans) for in_chans in (1, 3)}


def read(folder: Path, **data: Any) -> tuple[ImageSplit, list[Path]]:
    """The images as a split, and the file of each."""
    split = load_split(DataConfig(path=str(folder), **data), 'train')
    return split[0], [Path(each['path']) for each in split[0].encoded(np.arange(len(split[0])))]


def ours(split: ImageSplit, preprocessing: Preprocessing, in_memory: bool) -> torch.Tensor:
    """The input of the network in evaluation."""
    config = DataConfig(path='-', cache_mb=1024 if in_memory else 0, cache_dir='')
    dataset = make_dataset(split, preprocessing, False, 0, config)
    assert isinstance(dataset, BatchedImages if in_memory else TransformedImages)
    return torch.stack([dataset[index][0] for index in range(len(dataset))])


def opened(file: Path, in_chans: int, bit_depth: int = 16) -> Image.Image:
    """A file as the card opens it."""
    data = DataSummary('-', 2, None, {'input_size': [in_chans, 8, 8]}, 1, 1, '-', None, turned=1, sixteen_bit=1)
    names: dict[str, Any] = {}
    lines = '\n'.join(opening(data, bit_depth)).replace('image.jpg', str(file))
    exec(f'import numpy\nfrom PIL import Image, ImageOps\n{lines}', names)
    return names['image']


SIZES = [dict(img_size=size, crop_pct=crop_pct) for size in (32, 96, 224) for crop_pct in (0.8, 0.95, 1.0)]


@pytest.mark.filterwarnings('ignore:Palette images with Transparency')
@pytest.mark.parametrize('in_chans', [3, 1])
@pytest.mark.parametrize(('data', 'augment'), [
    *((size, {}) for size in SIZES),
    (dict(img_size=[24, 40]), {}),
    (dict(img_size=[64, 48], crop_pct=0.8, interpolation='bicubic'), {}),
    (dict(img_size=32), dict(crop='pad')),
    (dict(img_size=[48, 24]), dict(no_aug=True)),
], ids=str)
def test_ours_plain_timm_and_transformers_see_the_same(images, models, tmp_path, data, augment, in_chans) -> None:
    transformers = pytest.importorskip('transformers')
    model = models[in_chans]
    preprocessing = make_preprocessing(
        model, DataConfig(path='-', in_chans=in_chans, **data), AugmentConfig(**augment))
    size = preprocessing.data_config['input_size']
    save_pruned(model, tmp_path / 'pruned', torch.randn(2, *size), preprocessing.data_config, {'in_chans': in_chans})
    saved = timm.create_model(f'local-dir:{tmp_path}/pruned', pretrained=True)
    plain = timm.data.create_transform(**timm.data.resolve_model_data_config(saved))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'pruned')

    split, files = read(images, in_chans=in_chans)
    assert len(files) == 29
    batched, one_by_one = (ours(split, preprocessing, in_memory) for in_memory in (True, False))
    assert batched.shape == (len(files), *size) and batched.dtype == torch.float32
    for index, file in enumerate(files):
        image = opened(file, in_chans)
        expected = plain(image)
        assert torch.equal(batched[index], expected), file.name
        assert torch.equal(one_by_one[index], expected), file.name
        assert torch.equal(processor(image)['pixel_values'][0], expected), file.name


def test_the_lines_on_the_card_open_a_file_and_give_the_probabilities_of_the_run(images, tmp_path) -> None:
    run = load_run(finished_run(tmp_path / 'run', in_chans=1, size=32))
    write_folder(run, tmp_path / 'out', ExportOptions(license='mit'))
    code = (tmp_path / 'out' / 'README.md').read_text().split('```python\n')[1].split('```')[0]
    code = code.replace('hf-hub:user/name', f'local-dir:{tmp_path}/out')
    model = run.load_pruned()
    for file in (images / 'two' / 'rgb.jpg', images / 'one' / 'orientation_6.jpg', images / 'one' / 'rgba.png'):
        names: dict[str, Any] = {}
        exec(code.replace('image.jpg', str(file)), names)
        split, files = read(images, in_chans=1)
        image = split.image(files.index(file))
        assert torch.equal(names['probabilities'], model(run.transform(image)[None]).softmax(dim=-1))


@pytest.mark.parametrize('bit_depth', [16, 12, 10])
@pytest.mark.parametrize('kind', ['png', 'tif'])
def test_the_lines_on_the_card_keep_the_upper_8_bits(tmp_path, bit_depth, kind) -> None:
    deep_HW = np.random.default_rng(0).integers(0, 2**bit_depth, (9, 7)).astype(np.uint16)
    Image.fromarray(deep_HW).save(tmp_path / f'deep.{kind}')
    grey = opened(tmp_path / f'deep.{kind}', 1, bit_depth)
    assert grey.mode == 'L' and np.array_equal(np.asarray(grey), deep_HW // 2**(bit_depth - 8))
