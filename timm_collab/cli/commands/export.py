"""Make a folder that plain timm and transformers load of a finished run, and check it."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...train.paths import FORMATS
from ..export_options import add_export_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('run', type=Path, help='folder of a finished run')
    parser.add_argument('--output', type=Path, help='folder to create; RUN/export when left out')
    add_export_options(parser)
    parser.add_argument('--formats', nargs='+', default=[], choices=FORMATS, metavar='FORMAT',
                        help="write pt2 (torch.export) or onnx as well, next to the folder; not for the Hub's")


def run(args: argparse.Namespace) -> int:
    """Export, and list the files."""
    from ...hub.commands import run_export
    return run_export(args)
