"""The sweep's CSV: one row per architecture, kept while it runs, so that it goes on where it stopped."""
from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import timm
import torch

from .examine import Row

VERSIONS = f'timm {timm.__version__}, torch {torch.__version__.partition("+")[0]}'
_COLUMNS = (*(field.name for field in fields(Row)), 'versions')


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a file that were found with the versions installed; none where there is no file.

    An architecture that comes twice counts with its last row.

    Args:
        path: The CSV.

    Raises:
        ValueError: A file that no sweep wrote.
    """
    if not path.exists():
        return {}
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise ValueError(f'{path} is not the record of a sweep: name another file with --output')
        return {
            record['arch']: Row(**{
                field.name: {'int': int, 'float': float}.get(str(field.type), str)(record[field.name])
                for field in fields(Row)
            })
            for record in reader
            if record['versions'] == VERSIONS and record['seconds']  # a line cut short has none
        }


def append_row(path: Path, row: Row) -> None:
    """Add a row at the end of a file, and start the file where there is none.

    Args:
        path: The CSV.
        row: The row.
    """
    new = not path.exists()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({**asdict(row), 'versions': VERSIONS})


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file anew, sorted by architecture, in one go.

    Args:
        path: The CSV.
        rows: Its rows.
    """
    partial = path.with_suffix('.partial')
    partial.unlink(missing_ok=True)
    for row in sorted(rows, key=lambda row: row.arch):
        append_row(partial, row)
    os.replace(partial, path)
