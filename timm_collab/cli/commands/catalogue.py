"""Add an exported head to a catalogue of heads, such as hub/heads.yaml."""
from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('folder', type=Path, help='folder that export wrote')
    parser.add_argument('--catalogue', type=Path, required=True, help='path of the heads.yaml')
    parser.add_argument('--tag', required=True, help='tag of the weights; the head is named ARCHITECTURE.TAG')
    parser.add_argument('--repo', help='repository of the head; without it, the folder must lie beside the catalogue')
    parser.add_argument('--revision', help='full SHA of the commit there')


def run(args: argparse.Namespace) -> int:
    """Add the entry."""
    from ...hub.entry import add_entry
    name = add_entry(args.folder, args.catalogue, args.tag, args.repo, args.revision)
    print(f"{args.catalogue} has '{name}' now: timm_collab.load_head('{name}')")
    return 0
