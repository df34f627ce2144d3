"""Some of the images of a split, each with the label to learn.

Array names end in their shape: N examples, M some of them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import TrainError, one_line
from .labels import Labels

_FORMAT = datasets.Image()

Rows = npt.NDArray[np.int64]
Encoded = dict[str, Any]
"""An image as it is stored: its bytes, or the path of the file that holds them."""


def decode(encoded: Callable[[], Encoded], mode: str, where: str) -> Image.Image:
    """Decode an image.

    Args:
        encoded: Called for the image as it is stored.
        mode: PIL mode to convert it to, 'L' or 'RGB'.
        where: What the image is, for the message.

    Raises:
        TrainError: It doesn't decode.
    """
    try:
        content = encoded()
        if content is None:
            raise ValueError('there is none')
        return _eight_bits(_FORMAT.decode_example(content)).convert(mode)
    except Exception as error:  # whatever a decoder raises on bytes that are no image
        reason = one_line(error)
        raise TrainError(f"{where} can't be decoded ({type(error).__name__}: {reason}): repair or remove it, or write"
                         ' --data.on_bad_image skip') from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with values that PIL converts as they are: it clips what is larger than 255, and most turns white."""
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG'):  # as older PIL has 16-bit PNG
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        array = np.asarray(image)
        if not ((array >= 0) & (array <= 255) & (array == np.floor(array))).all():
            raise ValueError(f'its values, 32 bits each from {array.min():g} to {array.max():g}, are no whole numbers'
                             ' from 0 to 255: store it with 8 or 16')
    return image


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

    def located(self, index_M: Sequence[int]) -> tuple[str, list[int]]:
        """What some of the examples are known by, in the data set that they come from."""
        return 'rows', self.row_N[list(index_M)].tolist()

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
        where = f"the image in row {self.row_N[index]} of split '{self.name}'"
        return decode(lambda: self.encoded(np.array([index]))[0] if encoded is None else encoded, self.mode, where)
