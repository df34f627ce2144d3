"""The sweep's table in Markdown, a line per module of timm."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .examine import NO_CLASSIFIER, OK, Row
from .records import VERSIONS
def write_table(path: Path, rows: Iterable[Row]) -> None:
    pass
