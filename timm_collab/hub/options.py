"""What to make of a run that is exported."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make of a run.

    Args:
        license: The Hub's name of the licence of the weights; `other` needs the next two.
        license_name: What another licence calls itself.
        license_link: Where it is to be read.
        head: `best`, the one that validation chose, or a number.
        half: Round the weights to float16.
        tree: Add the whole tree, to go on training, to prune another head, or to ask all heads.
        labels: File with the name of a class on each line, in place of the run's.
        dataset: Id on the Hub of the data set that the run read from a local folder.
        baseline: Run of the network alone to compare with, where the run has none beside it.
        note: What else a reader of the card must know, of the data for instance.
        formats: `pt2` (torch.export) and `onnx`, to be written next to the folder.
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
