"""Options that `export` and `push` share."""
from __future__ import annotations

import argparse
from pathlib import Path


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how a run is exported."""
    parser.add_argument('--head', default='best', help='best (by validation) or a number')
    parser.add_argument('--license', help="licence of the weights, by the Hub's name of it; required")
    parser.add_argument('--license-name', help='name of a licence that the Hub does not list (--license other)')
    parser.add_argument('--license-link', help='where such a licence is to be read')
    parser.add_argument('--half', action='store_true', help='round the weights to float16')
    parser.add_argument('--tree', action='store_true',
                        help='add the whole tree, to go on training, prune another head or average all of them')
    parser.add_argument('--labels', type=Path, help="file with a class name on each line, in place of the run's")
    parser.add_argument('--dataset', help='id on the Hub of data that the run read from a folder')
    parser.add_argument('--baseline', type=Path, help='run of the network alone, to name its error beside')
    parser.add_argument('--note', help='what else a reader of the model card must know, e.g. of the data')
