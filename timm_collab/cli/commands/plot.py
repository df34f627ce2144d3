"""Plot a run: loss, accuracy, disagreement of the heads, learning rate, confusion of classes, into RUN/plots.

Reads metrics.jsonl and summary.json alone, also of a run that hasn't finished.
"""
from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('run', metavar='RUN', help='folder that training wrote')


def run(args: argparse.Namespace) -> int:
    """Plot, and print the files."""
    from ...train.record.plots import plot_run
    for path in plot_run(Path(args.run).expanduser()):
        print(path)
    return 0
