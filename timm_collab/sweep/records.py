"""The CSV file of the sweep: one row per architecture, appended during the run, so that a run can resume."""
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
    """Read the rows that were written with the installed versions; none if the file doesn't exist.

    If an architecture has several rows, the last one counts.

    Args:
        path: The CSV file.

    Raises:
        ValueError: The file was not written by a sweep.
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
            if record['versions'] == VERSIONS and record['seconds']  # missing in an incomplete line
        }


def append_row(path: Path, row: Row) -> None:
    """Append a row to a file, which is created if it doesn't exist.

    Args:
        path: The CSV file.
        row: The row.
    """
    new = not path.exists()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({**asdict(row), 'versions': VERSIONS})


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file atomically by sorted rows.

    Args:
        path: The CSV file.
        rows: The rows.
    """
    partial = path.with_suffix('.partial')
    partial.unlink(missing_ok=True)
    for row in sorted(rows, key=lambda row: row.arch):
        append_row(partial, row)
    os.replace(partial, path)
