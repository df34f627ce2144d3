"""Lists of image files: CSV, tab-separated values or JSON lines, a row per image, paths from the folder of the list."""
from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow.parquet

from ...config import DataConfig
from ...errors import TrainError, nearest, one_line, require
from .folders import Opened, canonical_split

LISTS = ('.csv', '.tsv', '.jsonl')
"""Extensions of lists; so is `metadata.parquet`, the name that `datasets` gives it."""

_FILE_COLUMNS = ('image', 'file_name', 'filename', 'path', 'file')
_INTEGER = re.compile(r'0|-?[1-9]\d{0,17}')  # of 64 bits; 007 is a name
_WHOLE = re.compile(r'(?:0|-?[1-9]\d{0,14})(?:\.0+)?')  # pandas writes integers with gaps as 1.0; exact as a float64
_MISSING = ('NaN', 'nan', 'NA', 'N/A', '<NA>', 'null', 'NULL', 'None')
"""What programs write for a missing number. In a column of text each may be the name of a class."""
_SHOWN = 3
Row = dict[str, Any]


def is_list(file: str) -> bool:
    """Whether a file is a list, by its name."""
    return file.lower().endswith(LISTS) or os.path.basename(file) == 'metadata.parquet'


def open_lists(files_by_split: Mapping[str, Sequence[str]], config: DataConfig) -> Opened:
    """Open the images that lists name. The split of a row is in its column `split`, or else that of its list.

    Raises:
        TrainError: A list can't be read, or it names a file that doesn't exist.
    """
    splits: defaultdict[str, list[Row]] = defaultdict(list)
    left_out, words, own = Counter[str](), dict[str, str](), dict[str, None]()
    for split, files in files_by_split.items():
        for file in files:
            rows, header = _images(file, config)
            own |= header
            for row in rows:
                if config.label_column == 'split' or 'split' not in row:
                    splits[split].append(row)
                    continue
                cell = row.pop('split')
                named = '' if cell is None else str(cell).strip()
                if not named:
                    left_out['a row without a split'] += 1
                    continue
                canonical = canonical_split(named) or named
                word = words.setdefault(canonical, named.lower())
                require(word == named.lower(), f"'{file}': the values '{word}' and '{named.lower()}' of column 'split'"
                                               f" both mean the split '{canonical}': write one of them")
                splits[canonical].append(row)
    require(config.label_column in own,
            f"data.label_column: there is no column '{config.label_column}', '{config.path}' has {', '.join(own)}"
            + (nearest(config.label_column, own) or ': write --data.label_column with one of them'))
    together = [row for rows in splits.values() for row in rows]
    columns = dict.fromkeys(column for row in together for column in row)
    is_text = all(file.lower().endswith(('.csv', '.tsv')) for files in files_by_split.values() for file in files)
    numbers = {} if not is_text else {
        column: kind for column in columns if (kind := _number(row.get(column) for row in together))}
    mixed = [] if is_text else [
        column for column in columns if not _is_of_one_type(row.get(column) for row in together)]
    require(config.label_column not in mixed, f"data.label_column '{config.label_column}' of '{config.path}' has values"
                                              ' of several types, or too large for 64 bits: write text in all rows')
    notes = [f"column '{column}' has values of several types, or too large for 64 bits, and isn't read"
             for column in mixed]
    if is_text and config.label_column in columns and config.label_column not in numbers:
        found = Counter(row.get(config.label_column) for row in together)
        notes += [f"data.label_column '{config.label_column}' has {found[word]:,} cells '{word}', which is read as the"
                  ' name of a class: leave the cell empty where there is no label'
                  for word in _MISSING if found[word]]
    tables = {}
    for split, rows in splits.items():
        cells: dict[str, list[Any]] = {column: [row.get(column) for row in rows] for column in columns
                                       if column not in mixed}
        for column, kind in numbers.items():
            cells[column] = [None if cell is None or cell in _MISSING else kind(cell) for cell in cells[column]]
        tables[split] = datasets.Dataset.from_dict(cells).cast_column(config.image_column, datasets.Image())
    return Opened(tables, dict(left_out), tuple(notes))


def _number(cells: Iterable[str | None]) -> type[int] | type[float] | None:
    """The type of a column of text in which all cells that aren't missing are whole numbers; None for other columns."""
    given = {cell for cell in cells if cell is not None} - {*_MISSING}
    if all(map(_INTEGER.fullmatch, given)):
        return int
    return float if all(map(_WHOLE.fullmatch, given)) else None


def _is_of_one_type(cells: Iterable[Any]) -> bool:
    """Whether the cells can be a column of a table."""
    try:
        pyarrow.array(list(cells))
    except (pyarrow.ArrowException, OverflowError):
        return False
    return True


def _images(file: str, config: DataConfig) -> tuple[list[Row], dict[str, None]]:
    """The rows of a list, with the path of the image in the column of the recipe; and its own columns."""
    numbered = list(_read(file))
    columns = dict.fromkeys(column for _, row in numbered for column in row)
    column = image_column(columns, config)
    require(len(numbered) > 0, f"'{file}' has no rows")
    require(column is not None or config.image_column == DataConfig.image_column,
            f"data.image_column '{config.image_column}': '{file}' has no such column, it has {', '.join(columns)}"
            f'{nearest(config.image_column, columns)}')
    require(column is not None, f"'{file}' has no column with the paths of images, it has {', '.join(columns)}: name"
                                f' one of them as data.image_column, or {" or ".join(_FILE_COLUMNS)} in its first line')
    rows, missing = [], []
    for line, row in numbered:
        name = row.pop(str(column), None)
        path = image_path(file, name)
        if path is None:
            missing.append(f'{name!r} in line {line}')
            continue
        rows.append({config.image_column: path, **row})
    require(not missing, f"'{file}': {len(missing)} of {len(numbered)} images don't exist:"
                         f' {", ".join(missing[:_SHOWN])}{", ..." if len(missing) > _SHOWN else ""}; write paths that'
                         ' are relative to the folder of the file, or absolute')
    return rows, columns


def image_column(columns: Iterable[str], config: DataConfig) -> str | None:
    """The column with the paths of images: the one that the recipe names, or else the first with a usual name."""
    default = config.image_column == DataConfig.image_column
    names = (config.image_column, *_FILE_COLUMNS) if default else (config.image_column,)
    return next((name for name in names if name in columns), None)


def image_path(file: str, name: Any) -> str | None:
    """The path of the image that a cell of a list names; None if there is no such file."""
    if not isinstance(name, str):
        return None
    folder = os.path.dirname(os.path.abspath(file))
    paths = [os.path.normpath(os.path.join(folder, each)) for each in (name, name.replace('\\', '/'))]  # of Windows
    return next(filter(os.path.isfile, paths), None)


def first_row(file: str) -> Row:
    """The first row of a list; an empty one if it has none, or can't be read."""
    try:
        return next((row for _, row in _read(file)), {})
    except (TrainError, pyarrow.ArrowInvalid):
        return {}


def _read(file: str) -> Iterator[tuple[int, Row]]:
    """The rows of a list, each with the number of its line."""
    if file.lower().endswith('.parquet'):
        yield from enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1)
        return
    try:
        with open(file, encoding='utf-8-sig', newline='') as opened:  # with or without a byte order mark
            yield from (_json_rows if file.lower().endswith('.jsonl') else _separated_rows)(file, opened)
    except UnicodeDecodeError as error:
        raise TrainError(f"'{file}' is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise TrainError(f"'{file}' can't be read ({one_line(error)})") from error


def _json_rows(file: str, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda word: None if word == 'NaN' else float(word))
        except ValueError:
            row = None
        require(isinstance(row, dict), f"'{file}', line {number}: not a JSON object: write one object per line")
        yield number, row


def _separated_rows(file: str, lines: Iterable[str]) -> Iterator[tuple[int, Row]]:
    first = next(iter(lines), '')
    delimiter = max('\t' if file.lower().endswith('.tsv') else ',;\t', key=first.count)
    header = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
    header = [name.strip() for name in header]
    require(len(set(header)) == len(header), f"'{file}' has two columns of one name: {', '.join(header)}")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for cells in reader:
        if not cells:
            continue
        require(len(cells) == len(header), f"'{file}', line {reader.line_num + 1}: {len(cells)} cells, and the first"
                                           f' line names {len(header)} columns: quote cells that contain {delimiter!r}')
        yield reader.line_num + 1, dict(zip(header, (cell or None for cell in cells), strict=True))
