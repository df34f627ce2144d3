"""Compare methods on your data: run a grid of recipes with several seeds and report differences with intervals.

GRID is a YAML file, described in docs/studies.md. The same command resumes a study: finished runs are not repeated, and
interrupted ones continue from their last checkpoint.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...study import Study


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('grid', type=Path, metavar='GRID', help='YAML file of the study')
    parser.add_argument('--output', type=Path, help='folder of the study (default: studies/NAME, after the file)')
    parser.add_argument('--jobs', type=int, default=1, help='runs at the same time (default: 1)')
    parser.add_argument('--threads', type=int, help='CPU threads per run (default: number of cores / --jobs)')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='overrides',
                        help='a key for every run, overrides the file, e.g. data.path=./cifar10; may be repeated')
    only = parser.add_mutually_exclusive_group()
    only.add_argument('--report', action='store_true', help='report on the finished runs, run nothing')
    only.add_argument('--status', action='store_true', help='show the progress of each run, run nothing')


def run(args: argparse.Namespace) -> int:
    """Run the unfinished runs of a study, and report."""
    from ...study import read_study, recorded_rows, run_study, write_report
    from ...train.distributed.signals import StoppedError
    study = read_study(args.grid, _overrides(args.overrides))
    folder = args.output or Path('studies', args.grid.stem)
    if args.status:
        _show_status(study, folder)
        return 0
    failed = []
    if not args.report:
        print(f'{len(study.cells)} runs: {len(study.methods)} methods, {len(study.settings)} settings,'
              f' {len(study.seeds)} seeds; in {folder}', flush=True)
        try:
            failed = run_study(study, folder, args.jobs, args.threads, recorded_rows(study, folder))
        except StoppedError as error:
            print('stopped, every run saved; the same command resumes the study')
            return error.exit_status
    for line in failed:
        print(f'error: {line}', file=sys.stderr)
    if len(failed) < len(study.cells):
        print(f'report: {write_report(study, folder)}')
    return 1 if failed else 0


def _show_status(study: Study, folder: Path) -> None:
    """Print a table with a row per setting and method and a column per seed, then counts and errors."""
    from ...study.status import State, study_status
    from ..table import format_table
    status = study_status(study, folder)
    by_cell = {(cell.setting, cell.method, cell.seed): str(each) for cell, each in status.items()}
    shown = list(dict.fromkeys((cell.setting, cell.method) for cell in study.cells))
    shown.sort(key=lambda each: study.settings.index(each[0]))
    print(format_table(
        ['setting', 'method', *(f'seed {seed}' for seed in study.seeds)],
        [[*each, *(by_cell.get((*each, seed), '') for seed in study.seeds)] for each in shown]))
    counts = [(state, sum(each.state is state for each in status.values())) for state in State]
    print(f'\n{len(status)} runs: ' + ', '.join(f'{count} {state.value}' for state, count in counts if count))
    for cell, each in status.items():
        if each.state is State.FAILED:
            print(f'{cell.name}: {each.reason}')


def _overrides(given: Sequence[str]) -> dict[str, Any]:
    import yaml

    from ...train.errors import TrainError, one_line, require
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition('=')
        require(bool(name and equals), f"--set '{text}': write KEY=VALUE, e.g. data.path=./cifar10")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise TrainError(f"--set '{text}': its value is no YAML ({one_line(error)})") from error
    return found
