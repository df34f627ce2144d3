"""Files of one split: whether each is whole, the columns that it declares, and classes that files name differently."""
from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from ...errors import TrainError, one_line, require
from .webdataset import check_end


@dataclass(frozen=True)
class Shard:
    """A file of a table.

    Args:
        path: The file.
        features: The columns that it declares; none of a tar file.
        num_rows: Number of its rows, if it stores that, as parquet files do.
    """

    path: str
    features: datasets.Features
    num_rows: int | None = None

    def __len__(self) -> int:
        if self.num_rows is not None:
            return self.num_rows
        with pyarrow.memory_map(self.path) as opened:
            return len(_open_arrow(opened).read_all())


def read_shards(files: Sequence[str], extension: str, which: str, same_names: bool) -> list[Shard]:
    """Read what the files of a split declare, and nothing else.

    Args:
        files: The files.
        extension: The extension of all of them.
        which: Their name, for messages.
        same_names: Whether they must declare the same names of classes, as files that are streamed.

    Raises:
        TrainError: One is damaged or empty, or differs in its columns from the first.
    """
    if extension == '.tar':
        for file in files:
            check_end(file)
        return [Shard(file, datasets.Features()) for file in files]
    shards: list[Shard] = []
    for file in files:
        try:
            schema, num_rows = _schema(file, extension)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise TrainError(f"'{file}' can't be read ({one_line(error)}): it is damaged or no {extension[1:]} file,"
                             ' copy it again or remove it') from error
        twice = [name for name, count in Counter(schema.names).items() if count > 1]
        require(not twice, f"'{file}' has several columns of one name, {', '.join(twice)}: rename all but one")
        require(num_rows != 0, f"'{file}' has no rows: remove it")
        shards.append(Shard(file, datasets.Features.from_arrow_schema(schema), num_rows))
        _check_columns(shards[0], shards[-1], which, same_names)
    return shards


def _check_columns(first: Shard, shard: Shard, which: str, same_names: bool) -> None:
    """Raise an error if the columns of a file are not those of the first."""
    for column in [*first.features, *shard.features]:
        mine, other = shard.features.get(column), first.features.get(column)
        if mine == other:
            continue
        declared = None not in (_names_in(mine), _names_in(other))
        remedy = ('leave out data.streaming, then classes are joined by name' if declared else
                  'write them with the same columns')
        require(declared and not same_names,
                f"{which} differ in column '{column}': {_short(other)} in '{os.path.basename(first.path)}',"
                f" {_short(mine)} in '{os.path.basename(shard.path)}': {remedy}")


def _short(feature: Any) -> str:
    text = 'missing' if feature is None else one_line(feature)
    return text if len(text) < 100 else f'{text[:97]}...'


def _schema(file: str, extension: str) -> tuple[pyarrow.Schema, int | None]:
    """The columns of a file, and its number of rows if it stores that."""
    if extension == '.parquet':
        metadata = pyarrow.parquet.read_metadata(file)
        return metadata.schema.to_arrow_schema(), metadata.num_rows
    with open(file, 'rb') as opened:
        return _open_arrow(opened).schema, None


def _open_arrow(opened: Any) -> Any:
    """A reader of an Arrow file: of the format of streams, or of that of files."""
    try:
        return pyarrow.ipc.open_stream(opened)
    except pyarrow.ArrowInvalid:
        opened.seek(0)
        return pyarrow.ipc.open_file(opened)


def join_shards(rows: datasets.Dataset, shards: Sequence[Shard]) -> datasets.Dataset:
    """Read the numbers of each file by the names that this file declares for them; `datasets` takes those of the first.

    Args:
        rows: The rows of the files, in their order.
        shards: The files.

    Returns:
        The rows; columns whose names differ are numbered anew by all names of the split.
    """
    for column, feature in (rows.features or {}).items():
        known = _names_in(feature)
        named = [_names_in(shard.features.get(column)) or known for shard in shards]
        if known is None or all(names == known for names in named):
            continue
        together = list(dict.fromkeys(name for names in named for name in names or ()))
        cells = iter(rows.select_columns([column]).with_format('arrow')[:][column].to_pylist())
        anew = [_by_names(cell, names or known, together)
                for names, shard in zip(named, shards, strict=True) for cell in itertools.islice(cells, len(shard))]
        label: Any = datasets.ClassLabel(names=together)
        if not isinstance(feature, datasets.ClassLabel):
            label = datasets.List(label)
        order = rows.column_names
        rows = rows.remove_columns(column).add_column(column, anew, feature=label).select_columns(order)
    return rows


def _by_names(cell: Any, names: Sequence[str], together: Sequence[str]) -> Any:
    """A number, or a list of them, by the place of its name among all names; what has no name stays as it is."""
    if isinstance(cell, list):
        return [_by_names(each, names, together) for each in cell]
    return together.index(names[cell]) if cell is not None and 0 <= cell < len(names) else cell


def _names_in(feature: Any) -> list[str] | None:
    """Names of a column of class labels, or of lists of them."""
    inner = getattr(feature, 'feature', feature)
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None
