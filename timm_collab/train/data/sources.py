"""From tables to labelled images: which split plays which part, which columns hold images and labels.

Array names end in their shape: N examples, M some of them.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..config import DataConfig
from ..errors import TrainError, nearest, require
from .labels import Labels, check_column, find_form, read_labels
from .readers import open_splits

_FORMAT = datasets.Image()
_AUTO_SPLITS = {'val': ('validation', 'val'), 'test': ('test',)}

Rows = npt.NDArray[np.int64]
Encoded = dict[str, Any]
"""An image as it is stored: its bytes, or the path of the file that holds them."""


@dataclass(frozen=True)
class ImageSplit:
    """Rows of one split of a data set, and the label to learn for each.

    Args:
        name: The split the rows come from, for messages.
        rows: The whole split, images not decoded.
        image_column: Column of `rows` with the images.
        mode: PIL mode that images are converted to, 'L' or 'RGB'.
        row_N: Which rows of `rows` these are.
        labels: Label of each: its class index, or of several labels a row of zeros and ones.
    """

    name: str
    rows: datasets.Dataset
    image_column: str
    mode: str
    row_N: Rows
    labels: Labels

    def __len__(self) -> int:
        return len(self.row_N)

    def take(self, index_M: Rows) -> ImageSplit:
        """Some of the examples, in the order given."""
        return replace(self, row_N=self.row_N[index_M], labels=self.labels[index_M])

    def with_labels(self, labels: Labels) -> ImageSplit:
        """The same examples with other labels."""
        return replace(self, labels=labels)

    def encoded(self, index_M: Rows) -> list[Encoded]:
        """Some of the images as they are stored."""
        return self.rows[self.row_N[index_M].tolist()][self.image_column]

    def image(self, index: int, encoded: Encoded | None = None) -> Image.Image:
        """Decode an image.

        Args:
            index: Which of the examples.
            encoded: What `encoded` gives for it, where that is at hand.

        Raises:
            TrainError: It doesn't decode; the message names split and row.
        """
        try:
            if encoded is None:
                encoded = self.encoded(np.array([index]))[0]
            image = _FORMAT.decode_example(encoded)
            if image.mode.startswith('I;16'):
                # PIL would clip 16-bit values to 255, which turns most of such an image white.
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert(self.mode)
        except Exception as error:  # whatever a decoder raises on bytes that are no image
            reason = ' '.join(str(error).split())
            raise TrainError(f"the image in row {self.row_N[index]} of split '{self.name}' can't be decoded"
                             f' ({type(error).__name__}: {reason}): repair or remove it, or write --data.on_bad_image'
                             ' skip') from error


@dataclass(frozen=True)
class Source:
    """A data set as it was found: its splits, and the names of its classes if it has any.

    Args:
        train: The training split.
        val: The validation split.
        test: The test split.
        label_names: Names of the classes.
        given: Other labels of the whole training split, from a column of their own.
    """

    train: ImageSplit
    val: ImageSplit | None
    test: ImageSplit | None
    label_names: list[str] | None
    given: Labels | None = None


def load_source(config: DataConfig, noise_column: str | None = None) -> Source:
    """Open the data set of a recipe and check splits, columns and the kind of its labels.

    Images are not decoded yet, and class indices not yet compared with a number of classes.

    Args:
        config: The data keys of the recipe.
        noise_column: Another column with labels of the training split.

    Raises:
        TrainError: Whatever of this doesn't exist or isn't what its key says.
    """
    found = open_splits(config)
    names = {
        'train': config.train_split,
        'val': _split_name(config.val_split, 'val', found),
        'test': _split_name(config.test_split, 'test', found),
    }
    chosen = {role: name for role, name in names.items() if name is not None}
    for role, name in chosen.items():
        require(name in found, f"data.{role}_split: '{config.path}' has no split '{name}', it has"
                               f' {", ".join(found)}{nearest(name, found)}')
        require(len(found[name]) > 0, f"split '{name}' of data.path '{config.path}' is empty")
    require(len(set(chosen.values())) == len(chosen), f'the same split is used twice: {chosen}')

    form = find_form(found[config.train_split], config)
    mode = 'L' if config.in_chans == 1 else 'RGB'
    splits = {
        role: ImageSplit(
            name=name,
            rows=_images_only(found[name], name, config),
            image_column=config.image_column,
            mode=mode,
            row_N=np.arange(len(found[name])),
            labels=read_labels(found[name], name, config, form),
        )
        for role, name in chosen.items()
    }
    given = None
    if noise_column is not None:
        train = found[config.train_split]
        check_column(train, noise_column, 'noise.column')
        given = read_labels(train, config.train_split, replace(config, label_column=noise_column), form)
    return Source(splits['train'], splits.get('val'), splits.get('test'), form.names, given)


def _split_name(asked: str | None, role: str, found: Mapping[str, datasets.Dataset]) -> str | None:
    if asked != 'auto':
        return asked
    return next((name for name in _AUTO_SPLITS[role] if name in found), None)


def _images_only(rows: datasets.Dataset, split: str, config: DataConfig) -> datasets.Dataset:
    check_column(rows, config.image_column, 'data.image_column')
    rows = rows.select_columns([config.image_column])
    if not isinstance(rows.features[config.image_column], datasets.Image):
        try:
            rows = rows.cast_column(config.image_column, datasets.Image())
        except Exception as error:  # pyarrow's, of several types
            raise TrainError(f"data.image_column: column '{config.image_column}' of split '{split}' holds"
                             f' {rows.features[config.image_column]}, not images') from error
    return rows.cast_column(config.image_column, datasets.Image(decode=False))
