"""Export a finished run to a folder that plain timm and transformers load, and verify it."""
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
                        help='also write pt2 (torch.export) or onnx, next to the folder; not for the Hub')


def run(args: argparse.Namespace) -> int:
    """Export, and list the files."""
    from ...hub.commands import run_export
    return run_export(args)
