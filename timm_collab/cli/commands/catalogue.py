"""Add an exported head to a catalogue of heads, such as hub/heads.yaml."""
from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('folder', type=Path, help='folder that export has made')
    parser.add_argument('--catalogue', type=Path, required=True, help='the heads.yaml')
    parser.add_argument('--tag', required=True, help="what tells it from the architecture's other weights")
    parser.add_argument('--repo', help='where it was pushed to; without, the folder must lie beside the catalogue')
    parser.add_argument('--revision', help='the commit there, in full')


def run(args: argparse.Namespace) -> int:
    """Add the entry."""
    from ...hub.commands import run_catalogue
    return run_catalogue(args)
