"""Publish a head on the Hub, in one commit.

The access token is that of `hf auth login` or HF_TOKEN.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from ..export_options import add_export_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('run', type=Path, help='folder of a finished run, or one that export has made')
    parser.add_argument('--repo', required=True, help='user/name; made if it is not there')
    parser.add_argument('--public', action='store_true', help='for everybody to see; otherwise the repo is private')
    parser.add_argument('--update', action='store_true', help='replace what the repo holds')
    parser.add_argument('--create-pr', action='store_true', help='propose the change as a pull request')
    parser.add_argument('--revision', help='branch; main when left out')
    parser.add_argument('--tag', help='name to give the commit')
    parser.add_argument('--message', help='of the commit')
    parser.add_argument('--dry-run', action='store_true', help='check everything, list the files, send nothing')
    add_export_options(parser)


def run(args: argparse.Namespace) -> int:
    """Export where need be, check, and push."""
    from ...hub.commands import run_push
    return run_push(args)
