"""Options of an export."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Args:
        license: The Hub's name of the licence of the weights; `other` needs the next two.
        license_name: Name of a licence that the Hub doesn't list.
        license_link: Its URL.
        head: `best`, the kept head, or a number from 0.
        half: Round the weights to float16.
        tree: Add the tree with all heads, to continue training, prune another head, or average all heads.
        labels: File with a class name per line, in place of the run's.
        dataset: Id on the Hub of the data set that the run read from a local folder.
        baseline: Run of the single network to compare with, if the run has none of its own.
        note: Further text for the card, e.g. on the data.
        formats: `pt2` (torch.export) and `onnx`, written next to the folder.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    head: str | int = 'best'
    half: bool = False
    tree: bool = False
    labels: Path | None = None
    dataset: str | None = None
    baseline: Path | None = None
    note: str | None = None
    formats: tuple[str, ...] = ()
