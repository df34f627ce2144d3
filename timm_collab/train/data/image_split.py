"""A subset of the images of a split, each with the label to learn.

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
        encoded: Returns the image as it is stored.
        mode: PIL mode to convert it to, 'L' or 'RGB'.
        where: Name of the image for the error message.

    Raises:
        TrainError: The image can't be decoded.
    """
    try:
        content = encoded()
        if content is None:
            raise ValueError('it is missing')
        return _eight_bits(_FORMAT.decode_example(content)).convert(mode)
    except Exception as error:  # decoders raise many types
        reason = one_line(error)
        raise TrainError(f"{where} can't be decoded ({type(error).__name__}: {reason}): repair or remove it, or write"
                         ' --data.on_bad_image skip') from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Reduce an image to 8 bits, because PIL clips values above 255 on conversion and makes most images white."""
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PNG'):  # 16-bit PNG in older PIL
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        array = np.asarray(image)
        if not ((array >= 0) & (array <= 255) & (array == np.floor(array))).all():
            raise ValueError(f'its values, 32 bits each from {array.min():g} to {array.max():g}, are not integers'
                             ' from 0 to 255: store it with 8 or 16 bits')
    return image


@dataclass(frozen=True)
class ImageSplit:
    """Rows of one split of a dataset, and the label to learn for each.

    Args:
        name: Name of the split, for messages.
        rows: All rows of the split, images not decoded.
        image_column: Column of `rows` with the images.
        mode: PIL mode that images are converted to, 'L' or 'RGB'.
        row_N: Indices into `rows`.
        labels: Class index of each example, or a row of zeros and ones or of probabilities.
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
        """A subset of the examples, in the given order."""
        return replace(self, row_N=self.row_N[index_M], labels=self.labels[index_M])

    def with_labels(self, labels: Labels) -> ImageSplit:
        """The same examples with other labels."""
        return replace(self, labels=labels)

    def located(self, index_M: Sequence[int]) -> tuple[str, list[int]]:
        """Where some of the examples come from: `rows`, and their indices in the dataset."""
        return 'rows', self.row_N[list(index_M)].tolist()

    def encoded(self, index_M: Rows) -> list[Encoded]:
        """Some of the images, as they are stored."""
        return self.rows[self.row_N[index_M].tolist()][self.image_column]

    def image(self, index: int, encoded: Encoded | None = None) -> Image.Image:
        """Decode an image.

        Args:
            index: Index of the example.
            encoded: The image as it is stored, if it has been read already.

        Raises:
            TrainError: The image can't be decoded; the message names split and row.
        """
        where = f"the image in row {self.row_N[index]} of split '{self.name}'"
        return decode(lambda: self.encoded(np.array([index]))[0] if encoded is None else encoded, self.mode, where)
