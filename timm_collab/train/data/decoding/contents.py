"""What the images of a split hold: digests, duplicates, and what their decoding did to them.

All of it comes from one pass that decodes each image once, in parallel.

Array names end in their shape: N examples, M some of them.
"""
from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ...errors import TrainError, require
from ..labels.label_column import Labels, hard_labels, padded
from .image_split import BadImage, BadImageError, Encoded, Found, ImageSplit, Rows

DIGEST_SIZE = 16
"""Bytes of the digest of an image."""

_CHUNK = 64
_EXAMPLES = 3
Digests = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Contents:
    """What was found in the files of images.

    Args:
        digest_N: Digest of the encoded bytes of each image, [N, 16].
        num_turned: Number of images that their EXIF orientation turned or mirrored.
        num_sixteen_bit: Number of grey images with 16 bits per value, which Pillow's conversion would clip to white.
        num_animated: Number of files with further frames or pages, which are ignored.
        largest: Largest value of images with 16 bits per value; None without any.
        sizes: Number of images by width and height, upright.
        modes: Number of images by Pillow's mode in the file; `;16` marks colour that Pillow reduced to 8 bits.
    """

    digest_N: Digests
    num_turned: int = 0
    num_sixteen_bit: int = 0
    num_animated: int = 0
    largest: int | None = None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.digest_N)

    @classmethod
    def of(cls, images: Sequence[Found], digests: bytes) -> Contents:
        """Contents of a few images.

        Args:
            images: What was found in each.
            digests: Their digests, one after the other.
        """
        return cls(
            digest_N=np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_SIZE),
            num_turned=sum(image.is_turned for image in images),
            num_sixteen_bit=sum(image.largest is not None and image.mode.startswith('I') for image in images),
            num_animated=sum(image.is_animated for image in images),
            largest=max((image.largest for image in images if image.largest is not None), default=None),
            sizes=Counter(image.size for image in images),
            modes=Counter(image.mode for image in images),
        )

    @classmethod
    def joined(cls, parts: Sequence[Contents]) -> Contents:
        """Contents of several parts together."""
        return cls(
            digest_N=np.concatenate([part.digest_N for part in parts]),
            num_turned=sum(part.num_turned for part in parts),
            num_sixteen_bit=sum(part.num_sixteen_bit for part in parts),
            num_animated=sum(part.num_animated for part in parts),
            largest=max((part.largest for part in parts if part.largest is not None), default=None),
            sizes=sum((part.sizes for part in parts), Counter()),
            modes=sum((part.modes for part in parts), Counter()),
        )

    def facts(self) -> dict[str, Any]:
        """All but the digests as plain data, as in JSON."""
        plain = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != 'digest_N'}
        return {**plain, 'sizes': [[*size, count] for size, count in self.sizes.items()]}

    @classmethod
    def from_facts(cls, digest_N: Digests, facts: dict[str, Any]) -> Contents:
        """Contents from digests and the result of `facts`."""
        sizes = Counter({(width, height): count for width, height, count in facts['sizes']})
        return cls(digest_N, **{**facts, 'sizes': sizes, 'modes': Counter(facts['modes'])})

    def check_depth(self, bit_depth: int, split: str) -> None:
        """Refuse images of 16 bits that use so few of them that they would be nearly black.

        Args:
            bit_depth: Number of bits that they should use.
            split: Name of their split.

        Raises:
            TrainError: Their common largest value has at least two bits less.
        """
        if self.largest is None or self.largest >= 2**(bit_depth - 2):
            return
        found = (f"the images of split '{split}' that have 16 bits per value use few of them, their largest value is"
                 f' {self.largest}: read as data.bit_depth {bit_depth} they are nearly black')
        require(self.num_sixteen_bit > 0, f'{found}. Pillow reads only the upper 8 bits of colours: convert them to'
                                          ' 8 bits first')
        bits = max(8, self.largest.bit_length())
        camera = ', or the 12 of the camera' if bits < 12 < bit_depth else ''
        raise TrainError(f'{found}. Write --data.bit_depth {bits}{camera}')


@dataclass(frozen=True)
class Examined:
    """A split that was read once.

    Args:
        contents: What its images hold.
        kept_N: Indices of the examples that could be decoded, in order.
        bad: The others.
    """

    contents: Contents
    kept_N: Rows
    bad: list[BadImage]


def examine(
        split: ImageSplit,
        skip: bool = False,
        progress: bool = False,
        keep: Callable[[int, Image.Image], None] | None = None,
        digest_N: Digests | None = None,
) -> Examined:
    """Decode every image of a split once. Decoders release the GIL, so threads suffice.

    Args:
        split: The examples.
        skip: Leave out images that can't be decoded.
        progress: Show a progress bar if it takes longer than a second.
        keep: Called with the index of each example and its image, in any order; images are dropped by default.
        digest_N: Digests of all images, if they are known.

    Raises:
        TrainError: An image can't be decoded, and `skip` isn't set; or none can be.
    """
    def read(chunk_M: Rows) -> tuple[Contents, list[tuple[int, BadImage]]]:
        found, digests, bad = [], [], []
        encoded: list[Encoded | None]
        try:
            encoded = [*split.encoded(chunk_M)]
        except Exception:  # one of them breaks the reader: read them one by one to find it
            encoded = [None] * len(chunk_M)
        for index, each in zip(chunk_M.tolist(), encoded, strict=True):
            try:
                image = split.decoded(index, each)
            except BadImageError as error:
                if not skip:
                    raise
                bad.append((index, split.bad(index, error)))
                continue
            if keep is not None:
                keep(index, image.image)
            found.append(image.found)
            digests.append(digest(image.content) if digest_N is None else digest_N[index].tobytes())
        return Contents.of(found, b''.join(digests)), bad

    chunks = [np.arange(start, min(start + _CHUNK, len(split))) for start in range(0, len(split), _CHUNK)]
    parts: list[Contents] = []
    bad: dict[int, BadImage] = {}
    bar = tqdm(total=len(split), desc=f'decoding {split.name}', unit='img', delay=1, leave=False, disable=not progress)
    pool = ThreadPoolExecutor(num_cores())
    try:
        with bar:
            for chunk_M, (part, bad_here) in zip(chunks, pool.map(read, chunks), strict=True):
                parts.append(part)
                bad.update(bad_here)
                bar.update(len(chunk_M))
    finally:
        pool.shutdown(cancel_futures=True)
    require(len(bad) < len(split), f"none of the images of split '{split.name}' can be decoded")
    return Examined(Contents.joined(parts), np.setdiff1d(np.arange(len(split)), list(bad)), list(bad.values()))


def digest(content: bytes) -> bytes:
    """Digest of the encoded bytes of an image, 16 bytes."""
    return hashlib.blake2b(content, digest_size=DIGEST_SIZE).digest()


@dataclass(frozen=True)
class Duplicates:
    """Images whose encoded bytes are equal.

    Args:
        within: Number of images that occurred before in the same split, over all splits.
        across: Number of images of the splits to evaluate on that are also in another split. Images that were held out
            of the training split count as well, where a copy of them stayed there.
        contradicting: Number of images that have a copy with another label, in any split.
        across_contradicting: Number of those of `across` that have another label in another split.
        examples: Files of a few pairs across splits: the image, and its copy in the other split.
        contradictions: A few pairs with two labels: the file of each, with its row, split and label.
    """

    within: int
    across: int
    contradicting: int = 0
    across_contradicting: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    contradictions: list[tuple[str, str]] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        notes = []
        if self.across:
            image, copy = self.examples[0]
            effect = 'scores on them are too good'
            if self.across_contradicting == self.across:
                effect = 'they have another label there, so scores on them mean nothing'
            elif self.across_contradicting:
                effect += f', except for {self.across_contradicting:,} with another label there'
            notes.append('warning: images to evaluate on that are byte for byte in another split, too:'
                         f" {self.across:,}, such as '{image}' and '{copy}'; {effect}")
        if self.contradicting:
            image, copy = self.contradictions[0]
            notes.append(f'warning: images that have a copy with another label: {self.contradicting:,}, such as'
                         f' {image} and {copy}; at least one label of each pair is wrong')
        return notes


def duplicates(
        splits: Sequence[tuple[ImageSplit, Contents]], class_names: Sequence[str] | None = None) -> Duplicates:
    """Find images with equal encoded bytes.

    Args:
        splits: Splits with their true labels, and their contents; the first is the training split.
        class_names: Names of the classes, for examples; their numbers by default.
    """
    # From here on N counts the images of all splits. Equal images have equal numbers.
    digest_N = np.concatenate([contents.digest_N for _, contents in splits])
    different, number_N = np.unique(np.ascontiguousarray(digest_N).view(f'V{DIGEST_SIZE}').ravel(), return_inverse=True)
    if len(different) == len(number_N):
        return Duplicates(0, 0)
    starts = np.cumsum([0, *(len(contents) for _, contents in splits)])
    split_N = np.repeat(np.arange(len(splits)), np.diff(starts))
    in_split = [np.bincount(number_N[slice(*ends)], minlength=len(different)) > 0 for ends in pairwise(starts)]
    across_N = (np.sum(in_split, axis=0)[number_N] > 1) & (split_N > 0)
    labels = _together([split.labels for split, _ in splits])
    contradicts_N = _contradicting(number_N, labels)

    def name(place: int) -> str:
        split, index = splits[split_N[place]][0], int(place - starts[split_N[place]])
        return split.file(index) or f"row {split.row_N[index]} of split '{split.name}'"

    def described(place: int) -> str:
        split, index = splits[split_N[place]][0], int(place - starts[split_N[place]])
        row = f"row {split.row_N[index]} of split '{split.name}'"
        classes = np.flatnonzero(labels[place]).tolist() if labels.ndim == 2 else [int(labels[place])]
        label = ' + '.join(class_names[each] if class_names else str(each) for each in classes) or 'none'
        file = split.file(index)
        return f"'{file}' ({row}, label {label})" if file else f'{row} (label {label})'

    examples = []
    for place in np.flatnonzero(across_N)[:_EXAMPLES].tolist():
        copy = np.flatnonzero((number_N == number_N[place]) & (split_N != split_N[place]))[0]
        examples.append((name(place), name(int(copy))))
    contradictions = []
    for place in np.flatnonzero(contradicts_N)[:_EXAMPLES].tolist():
        copies = np.flatnonzero(number_N == number_N[place]).tolist()
        copy = next(each for each in copies if (labels[each] != labels[place]).any())
        contradictions.append((described(place), described(copy)))
    found: defaultdict[int, set[tuple[int, bytes]]] = defaultdict(set)  # splits and labels of contradicting images
    for place in np.flatnonzero(contradicts_N).tolist():
        found[number_N[place]].add((split_N[place], labels[place].tobytes()))
    return Duplicates(
        within=len(number_N) - int(np.sum(in_split)),
        across=int(across_N.sum()),
        contradicting=int(contradicts_N.sum()),
        across_contradicting=sum(
            any(other != split_N[place] and label != labels[place].tobytes() for other, label in found[number_N[place]])
            for place in np.flatnonzero(across_N & contradicts_N).tolist()),
        examples=examples,
        contradictions=contradictions,
    )


def _together(parts: Sequence[Labels]) -> Labels:
    """The labels of all splits, of soft ones the class, as evaluation takes them."""
    hard = [hard_labels(labels) for labels in parts]
    width = max((labels.shape[1] for labels in hard if labels.ndim == 2), default=0)
    return np.concatenate([padded(labels, width) for labels in hard])


def _contradicting(number_N: np.ndarray, labels: Labels) -> np.ndarray:
    """Mask [N] of the images that occur with two labels."""
    order_N = np.argsort(number_N, kind='stable')
    same = number_N[order_N][1:] == number_N[order_N][:-1]
    sorted_labels = labels[order_N].reshape(len(labels), -1)
    differs = (sorted_labels[1:] != sorted_labels[:-1]).any(axis=1)
    return np.isin(number_N, number_N[order_N][1:][same & differs])


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
