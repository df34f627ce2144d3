"""Rows of the cost study: append to the result file, read and query it."""
from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure import machine

Row = dict[str, str]

KEY = ('network', 'batch', 'size', 'pattern', 'heads')
"""Columns that identify a tree; its rows are measured together."""
RESULTS = Path(__file__).parent / 'results' / 'cost' / 'cost.csv'
COLUMNS = (
    *KEY, 'tree', 'quantity', 'against', 'unit', 'other', 'own', 'ratio', 'low', 'high', 'multiply_adds', 'by_stages',
    'parameters', 'rounds', 'commit', *machine(),
)


def read(path: Path) -> list[Row]:
    """Rows of a file, none without a file."""
    if not path.exists():
        return []
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: list[dict[str, Any]], columns: Sequence[str] = COLUMNS) -> None:
    """Add rows to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with open(path, 'a', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, columns, lineterminator='\n')
        if is_new:
            writer.writeheader()
        writer.writerows(
            {key: f'{value:.5g}' if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


def networks(rows: Sequence[Row]) -> list[str]:
    """Names of the measured networks, in order."""
    return list(dict.fromkeys(row['network'] for row in rows))


def find(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == str(value) for key, value in wanted.items())]


def ratio(rows: Sequence[Row], **wanted: object) -> float | None:
    """Ratio of the first row with these values, None without one."""
    found = find(rows, **wanted)
    return float(found[0]['ratio']) if found else None
