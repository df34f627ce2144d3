"""Plain-text tables."""
from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table; the first column is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return '  '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return '\n'.join(map(line, [header, *rows]))
