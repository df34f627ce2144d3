"""A contact sheet: some images as they are decoded, as training augments them, and as evaluation sees them.

The pictures are those of a run: made by the datasets that its loaders read, with the keys of its first epochs.

Shapes: M images, C channels, H and W height and width.
"""
from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor, nn

from ..build import build_model
from ..config import AugmentConfig, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from ..data.augment.preprocess import make_preprocessing
from ..data.counts import class_names
from ..data.decoding.image_split import BadImageError, ImageSplit, Rows
from ..data.labels.label_column import Labels, hard_labels, padded
from ..data.loading.images import BatchedImages, make_dataset
from ..data.sources import load_source
from ..data.splits import make_splits
from ..errors import TrainError, require
from ..paths import atomic

MAX_CLASSES = 20
"""Of data with more classes, the sheet shows this many, evenly spaced."""
MAX_OWN_SIDE = 256
"""If no model is named, images are shown at their own size up to this side, larger ones at timm's default."""
DRAWS = 4
_CELL = 128
_GAP = 8
_PROBED = 8
_TEXT = 16  # height of a line
_PLACEHOLDER = 'resnet18'  # a recipe needs a model; this one is never built


@dataclass(frozen=True)
class Sheet:
    """What a contact sheet shows.

    Args:
        path: Its file.
        images: Number of images.
        classes: Names of the classes that it shows.
        num_classes: Number of classes of the data.
        notes: How the pictures were made, a sentence each.
    """

    path: Path
    images: int
    classes: list[str]
    num_classes: int
    notes: list[str]


def draw_sheet(
        path: Path,
        data: DataConfig,
        augment: AugmentConfig,
        model: ModelConfig,
        seed: int = 0,
        per_class: int = 2,
        progress: bool = False,
) -> Sheet:
    """Draw a contact sheet with a row per training image.

    A row has the image as decoded, as a run with these keys augments it in its first epochs, and as its evaluation
    would see it. Mixup and cutmix, which blend whole batches, are left out.

    Args:
        path: File to write, of any format that Pillow writes.
        data: Which images. A validation split is held out as in a run; images that can't be decoded are left out.
        augment: The augmentation.
        model: The model, for the size of its input and its normalisation. Without a name, the input has the size of
            the images, and the rest are timm's defaults.
        seed: Seed of the run.
        per_class: Number of images of each class, evenly spaced over those in the training data.
        progress: Whether to show a progress bar.

    Raises:
        TrainError: The data can't be trained on, or the file can't be written.
    """
    data = replace(data, on_bad_image='skip')
    require(not data.streaming, '--sheet: streamed images are not read by number, leave out data.streaming')
    require(path.suffix.lower() in Image.registered_extensions(),
            f"--sheet '{path}': write the name of a picture file, such as sheet.png")
    config = TrainConfig(
        seed=seed,
        batch_size=1,
        model=replace(model.single(), name=model.name or _PLACEHOLDER),
        data=data,
        augment=augment,
        objective=ObjectiveConfig(hard='bce' if data.multi_label else 'ce'),
    )
    splits = make_splits(load_source(data, None, model.num_classes), config)
    assert isinstance(splits.train, ImageSplit)
    notes = []
    if model.name is None:
        data, size = _with_size(data, splits.train)
        notes.append(f"no model is named: the input has {size}, mean, std, interpolation and crop_pct are timm's"
                     ' defaults where the recipe has none; --model.name shows those of a model')
        network: nn.Module = nn.Identity()
    else:
        network = build_model(
            replace(config.model, pretrained=False, checkpoint_path=None), data, splits.num_classes)
    preprocessing = make_preprocessing(network, data, augment)

    training = make_dataset(splits.train, preprocessing, True, seed, data, progress=progress)
    notes.append('training images are augmented ' + (
        'in whole batches' if isinstance(training, BatchedImages) else 'one by one'))
    notes += preprocessing.notes
    if training.sample is not None:
        notes += preprocessing.shape_notes(training.sample.sizes)
    if augment.mixes:
        notes.append('mixup and cutmix are not shown')
    shown, index_M = _choose(training.split.labels, splits.num_classes, per_class)
    evaluation = make_dataset(training.split.take(index_M), preprocessing, False, seed, replace(data, cache_dir=''))
    names = class_names(splits.label_names, splits.num_classes)
    titles = ['as decoded', *(f'training, epoch {epoch}' for epoch in range(DRAWS)), 'evaluation']
    repeat = () if augment.repeats == 1 else (0,)

    rows = []
    for place, index in enumerate(index_M.tolist()):
        tensors = [*(training[(epoch, index) + repeat][0] for epoch in range(DRAWS)), evaluation[place][0]]
        seen = [_picture(tensor_CHW, preprocessing.data_config) for tensor_CHW in tensors]
        rows.append((_caption(training.split, index, names), [training.split.image(index), *seen]))
    try:
        with atomic(path) as partial:
            _draw(titles, rows).save(partial, Image.registered_extensions()[path.suffix.lower()])
    except (OSError, ValueError) as error:
        raise TrainError(f"--sheet '{path}' can't be written: {error}") from error
    return Sheet(path, len(rows), [names[label] for label in shown], splits.num_classes, notes)


def _with_size(data: DataConfig, train: ImageSplit) -> tuple[DataConfig, str]:
    """The data keys with the size of the images, if they have one, and a name for it."""
    if data.img_size is not None:
        return data, 'data.img_size'
    sizes = set()
    for index in np.linspace(0, len(train) - 1, _PROBED, dtype=int).tolist():
        with contextlib.suppress(BadImageError):
            sizes.add(train.image(index).size)
    width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    if not 0 < max(width, height) <= MAX_OWN_SIDE:
        return data, "timm's default size"
    size = height if width == height else [height, width]
    return replace(data, img_size=size), f"the images' own size, {height}x{width}"


def _choose(labels: Labels, num_classes: int, per_class: int) -> tuple[list[int], Rows]:
    """Classes to show, and evenly spaced images of each."""
    members = [np.flatnonzero(has_N) for has_N in _classes(labels, num_classes).T]
    present = [label for label in range(num_classes) if len(members[label])]
    if len(present) > MAX_CLASSES:
        present = [present[place] for place in np.linspace(0, len(present) - 1, MAX_CLASSES, dtype=int)]
    chosen = []
    for label in present:
        member_M = members[label]
        chosen.append(member_M[np.unique(np.linspace(0, len(member_M) - 1, per_class, dtype=int))])
    return present, np.concatenate(chosen)


def _classes(labels: Labels, num_classes: int) -> np.ndarray:
    """Whether each image has each class [N, C]; of probabilities, the largest."""
    labels = hard_labels(labels)
    return padded(labels, num_classes) > 0 if labels.ndim == 2 else labels[:, None] == np.arange(num_classes)


def _caption(split: ImageSplit, index: int, names: list[str]) -> str:
    has_C = _classes(split.labels[index:index + 1], len(names))[0]
    held = ', '.join(names[label] for label in np.flatnonzero(has_C))
    file = Path(split.file(index)).name  # the whole path doesn't fit
    return f"{held or 'no label'}   {file} (row {split.row_N[index]} of split '{split.name}')"


def _picture(tensor_CHW: Tensor, data_config: dict[str, Any]) -> Image.Image:
    """An input of the model as an image again."""
    mean_C11, std_C11 = (torch.tensor(data_config[name])[:, None, None] for name in ('mean', 'std'))
    image_CHW = (tensor_CHW.cpu() * std_C11 + mean_C11).mul(255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(image_CHW.permute(1, 2, 0).squeeze(-1).numpy())


def _draw(titles: Sequence[str], rows: Sequence[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Lay out rows of pictures under titles, each with its caption below."""
    step, height = _CELL + _GAP, _CELL + _TEXT + _GAP
    sheet = Image.new('RGB', (_GAP + len(titles) * step, _TEXT + _GAP + len(rows) * height), 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, title in enumerate(titles):
        draw.text((_GAP + column * step, _GAP // 2), title, 'black', font)
    for number, (caption, pictures) in enumerate(rows):
        top = _TEXT + _GAP + number * height
        for column, picture in enumerate(pictures):
            sheet.paste(_fitted(picture), (_GAP + column * step, top))
        draw.text((_GAP, top + _CELL + 2), caption, 'black', font)
    return sheet


def _fitted(picture: Image.Image) -> Image.Image:
    """Fit a picture into a cell; small ones are enlarged by a whole factor, so that their pixels show."""
    factor = _CELL // max(picture.size)
    return ImageOps.scale(picture, factor, Image.Resampling.NEAREST) if factor else ImageOps.contain(
        picture, (_CELL, _CELL), Image.Resampling.BICUBIC)
