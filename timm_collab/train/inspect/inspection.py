"""Read every image and every label of a dataset once, and count what there is."""
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm import tqdm

from ..config import DataConfig
from ..data.counts import ROLES, SplitCounts, all_left_out, class_names, count_labels
from ..data.decoding.contents import Contents, Duplicates, duplicates, examine
from ..data.decoding.image_split import BadImage, ImageSplit
from ..data.files.readers import BUILTIN, TIMM, Opened, Streams
from ..data.labels.class_names import label_of
from ..data.labels.label_column import Labels
from ..data.loading.streaming import StreamSplit
from ..data.sources import Source, load_source, load_split, open_data, with_columns
from ..errors import TrainError, one_line, require

_KINDS = {
    **dict.fromkeys(('string', 'large_string'), 'text'),
    **dict.fromkeys(('int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'), 'whole numbers'),
    'bool': 'true or false',
}
_FORMATS = {'parquet': 'parquet files', 'arrow': 'arrow files', 'webdataset': 'WebDataset shards'}  # by the builder
_EXAMPLES = 3  # bad images in the warning; the JSON has them all
_AT_ONCE = 1024  # images of a stream that are in memory together


@dataclass(frozen=True)
class LabelColumn:
    """A column that could be `data.label_column`.

    Args:
        name: Name of the column.
        kind: What it contains.
        distinct: Number of distinct values in the training split; None for a stream.
        used: Whether it is what this recipe learns.
    """

    name: str
    kind: str
    distinct: int | None
    used: bool


@dataclass(frozen=True)
class Inspection:
    """What there is in a dataset.

    Args:
        path: `data.path`.
        read_as: How it was read.
        classes: Names of the classes in order, or else their numbers.
        splits: Counts by role, `train`, `val` and `test`, and by name for splits that a run wouldn't use. Images that
            can't be decoded don't count.
        left_out: Number of files, rows and images that are in no split, by reason.
        duplicates: Images with exactly the same content.
        sizes: Number of images of each width and height.
        modes: Number of images of each of Pillow's modes.
        turned: Number of images that are turned by their EXIF orientation.
        sixteen_bit: Number of images with more than 8 bits per value.
        bad: Images that can't be decoded.
        label_columns: Columns with labels.
        notes: What the user should know about how the data was read, a sentence each.
        warnings: What is probably a mistake in the data, a sentence each.
    """

    path: str
    read_as: str
    classes: list[str]
    splits: dict[str, SplitCounts]
    left_out: dict[str, int]
    duplicates: Duplicates
    sizes: Counter[tuple[int, int]]
    modes: Counter[str]
    turned: int
    sixteen_bit: int
    bad: list[BadImage]
    label_columns: list[LabelColumn]
    notes: list[str]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, as in JSON."""
        return {
            'path': self.path,
            'read_as': self.read_as,
            'classes': self.classes,
            'splits': {role: counts.to_dict() for role, counts in self.splits.items()},
            'left_out': self.left_out,
            'duplicates': dataclasses.asdict(self.duplicates),
            'sizes': [{'width': width, 'height': height, 'images': count}
                      for (width, height), count in self.sizes.most_common()],
            'modes': dict(self.modes.most_common()),
            'turned': self.turned,
            'sixteen_bit': self.sixteen_bit,
            'bad': [each._asdict() for each in self.bad],
            'label_columns': [dataclasses.asdict(column) for column in self.label_columns],
            'notes': self.notes,
            'warnings': self.warnings,
        }


def inspect_data(config: DataConfig, num_classes: int | None = None, progress: bool = False) -> Inspection:
    """Read a whole dataset, whatever its size, and count what there is.

    The splits are those of the data: nothing is held out or drawn. A streamed split is read once from its start to its
    end, and isn't stored.

    Args:
        config: The data keys of a recipe.
        num_classes: Number of classes, if the recipe gives it.
        progress: Whether to show a progress bar.

    Raises:
        TrainError: There is no such data, or a split or a label of it can't be used.
    """
    if not progress:
        datasets.disable_progress_bars()
    opened = open_data(config)
    source = load_source(config, None, num_classes, opened=opened)
    read = {role: _read(split, progress) for role in ROLES if (split := getattr(source, role)) is not None}
    found = (_num_classes(each.split.labels) for each in read.values())
    classes = class_names(source.label_names, num_classes or max(found))
    further, notes = _read_further(config, opened, source, classes, progress)
    read |= further

    notes = [*source.notes, *notes]
    if source.val is None:
        notes.append(f"there is no validation split: a run holds out {config.val_fraction:g} of split"
                     f" '{source.train.name}' (data.val_fraction)")
    contents = Contents.joined([each.contents for each in read.values()])
    same = duplicates([(each.split, each.contents) for each in read.values()], classes)
    bad = [each for part in read.values() for each in part.bad]
    train_rows = opened.splits[source.train.name]
    return Inspection(
        path=str(config.path),
        read_as=_read_as(config, train_rows),
        classes=classes,
        splits={role: count_labels(each.split.name, each.split.labels, classes) for role, each in read.items()},
        left_out=all_left_out(source.left_out, len(bad)),
        duplicates=same,
        sizes=contents.sizes,
        modes=contents.modes,
        turned=contents.num_turned,
        sixteen_bit=contents.num_sixteen_bit,
        bad=bad,
        label_columns=_label_columns(train_rows, config),
        notes=notes,
        warnings=_warnings(read.values(), same, config),
    )


def _warnings(read: Collection[_Read], same: Duplicates, config: DataConfig) -> list[str]:
    """What is probably a mistake in the data."""
    found = []
    for each in read:
        try:
            each.contents.check_depth(config.bit_depth, each.split.name)
        except TrainError as error:
            found.append(str(error))
    bad = [image for each in read for image in each.bad]
    if bad:
        examples = '; '.join(f'{image.where}, {image.reason}' for image in bad[:_EXAMPLES])
        found.append(f"{len(bad):,} images can't be decoded: {examples}{'; ...' if len(bad) > _EXAMPLES else ''}")
    return [*found, *(note.removeprefix('warning: ') for note in same.notes())]


@dataclass(frozen=True)
class _Read:
    """A split of which every image was read.

    Args:
        split: The images that can be decoded.
        contents: What they hold.
        bad: The others.
    """

    split: ImageSplit
    contents: Contents
    bad: list[BadImage]


def _read(split: ImageSplit | StreamSplit, progress: bool) -> _Read:
    if isinstance(split, StreamSplit):
        return _read_stream(split, progress)
    examined = examine(split, skip=True, progress=progress)
    return _Read(split.take(examined.kept_N), examined.contents, examined.bad)


def _read_stream(split: StreamSplit, progress: bool) -> _Read:
    """Read a stream to its end, with a few images in memory at a time; of all others, names and labels are kept."""
    column = split.image_column
    features = datasets.Features({column: datasets.Image(decode=False)})
    parts: list[Contents] = []
    labels: list[Labels] = []
    names: list[dict[str, Any]] = []
    bad: list[BadImage] = []
    examples = split.read_once()
    with tqdm(total=len(split), desc=f'decoding {split.name}', unit='img', leave=False, disable=not progress) as bar:
        while read := list(islice(examples, _AT_ONCE)):
            cells, label_N, files = zip(*read, strict=True)
            images = datasets.Dataset.from_dict({column: list(cells)}, features)
            part = _read(ImageSplit(split.name, images, column, split.mode, np.arange(len(read)), np.array(label_N),
                                    split.bit_depth), progress=False)
            bad += [each._replace(file=files[each.row], row=bar.n + each.row) for each in part.bad]
            bar.update(len(read))
            parts.append(part.contents)
            labels.append(part.split.labels)
            names += [{'bytes': None, 'path': files[row]} for row in part.split.row_N]
    require(len(names) > 0, f"split '{split.name}' is empty")
    named = datasets.Dataset.from_dict({column: names}, features)
    kept = ImageSplit(split.name, named, column, split.mode, np.arange(len(names)), np.concatenate(labels))
    return _Read(kept, Contents.joined(parts), bad)


def _read_further(
        config: DataConfig,
        opened: Opened | Streams,
        source: Source,
        classes: list[str],
        progress: bool,
) -> tuple[dict[str, _Read], list[str]]:
    """Read the splits that a run wouldn't use; and why some of them can't be read."""
    used = {split.name for role in ROLES if (split := getattr(source, role)) is not None}
    found, notes = {}, []
    for name in opened.splits:
        if name not in used:
            try:
                split, _ = load_split(config, name, len(classes), source.label_names, opened)
                found[name if name not in ROLES else f"split '{name}'"] = _read(split, progress)
            except TrainError as error:
                notes.append(f"split '{name}', which a run wouldn't use, isn't counted: {error}")
    return found, notes


def _num_classes(labels: Labels) -> int:
    return labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1


def _read_as(config: DataConfig, rows: datasets.Dataset | datasets.IterableDataset) -> str:
    """Where the data is, and in which form."""
    path = str(config.path)
    if path.startswith(TIMM):
        return f"timm's reader {path.removeprefix(TIMM)} of {config.root}"
    if path.startswith(BUILTIN):
        return 'shipped with the package'
    local = Path(path).expanduser()
    is_local = local.exists() or has_magic(path)
    stored = _FORMATS.get(rows.builder_name or '')
    if stored is None and local.is_dir():
        stored = 'images in folders'
    if stored is None:
        stored = f'{local.suffix.removeprefix(".").upper()} file' if local.is_file() else 'data'
    return stored if is_local else f'{stored} of the Hub'


def _label_columns(rows: datasets.Dataset | datasets.IterableDataset, config: DataConfig) -> list[LabelColumn]:
    """Columns that may have labels: class indices, names, or lists of either."""
    found, config = [], with_columns(config, rows)
    for name, feature in (rows.features or {}).items():
        inner = getattr(feature, 'feature', feature)  # of every type of list
        kind = 'class labels' if isinstance(inner, datasets.ClassLabel) else _KINDS.get(getattr(inner, 'dtype', ''))
        used, is_list = name == config.label_column, inner is not feature
        if kind is None and used:
            kind = 'numbers' if getattr(inner, 'dtype', '').startswith(('float', 'decimal')) else one_line(inner)
        if kind is not None and name != config.image_column:
            found.append(LabelColumn(
                name=name,
                kind=f'lists of {kind}' if is_list else kind,
                distinct=_distinct(rows, name, is_list),
                used=used,
            ))
    return found


def _distinct(rows: datasets.Dataset | datasets.IterableDataset, column: str, is_list: bool) -> int | None:
    if isinstance(rows, datasets.IterableDataset):
        return None
    chunks = rows.select_columns([column]).with_format('arrow')[:][column].chunks
    flat = [chunk.flatten() for chunk in chunks] if is_list else chunks
    values = {value for chunk in flat for value in chunk.unique().to_pylist()}
    return sum(not _is_missing(value) for value in values)


def _is_missing(value: Any) -> bool:
    """Whether a value of a column of labels means that there is none."""
    try:
        return label_of(value, None) is None
    except ValueError:  # no label, but a value
        return False
