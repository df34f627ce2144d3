"""Options that `export` and `push` share."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..hub import ExportOptions

NAMES = ('license', 'license_name', 'license_link', 'head', 'half', 'tree', 'labels', 'dataset', 'baseline', 'note')


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide how a run is exported."""
    parser.add_argument('--head', default='best', help='best (on the validation data) or a number')
    parser.add_argument('--license', help='licence of the weights, as the Hub names it; required')
    parser.add_argument('--license-name', help='name of a licence that the Hub does not list (--license other)')
    parser.add_argument('--license-link', help='URL of the text of such a licence')
    parser.add_argument('--half', action='store_true', help='round the weights to float16')
    parser.add_argument('--tree', action='store_true',
                        help='add the whole tree, to continue training, prune another head or average all heads')
    parser.add_argument('--labels', type=Path, help="file with one class name per line, in place of the run's names")
    parser.add_argument('--dataset', help='id on the Hub of data that the run read from a local folder')
    parser.add_argument('--baseline', type=Path, help='run of the single network, whose error the card compares with')
    parser.add_argument('--note', help='additional text for the model card, for example about the data')


def export_options(args: argparse.Namespace, formats: tuple[str, ...] = ()) -> ExportOptions:
    """Options of an export from parsed arguments."""
    from ..hub import ExportOptions
    return ExportOptions(**{name: getattr(args, name) for name in NAMES}, formats=formats)


def given_export_options(args: argparse.Namespace) -> list[str]:
    """Names of the options on the command line, as they are written there."""
    given = [name for name in NAMES if getattr(args, name) not in (None, False, 'best')]
    return [f'--{name.replace("_", "-")}' for name in given]
