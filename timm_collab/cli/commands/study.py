"""Compare methods on your data: run a grid of recipes with several seeds, and report differences with intervals.

GRID is a YAML file; docs/studies.md describes it. Finished runs are never run again, stopped ones go on: the same
command takes a study up where it was left.
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
    parser.add_argument('grid', type=Path, metavar='GRID', help='the YAML file')
    parser.add_argument('--output', type=Path, help='folder of the study; studies/NAME, after the file, when left out')
    parser.add_argument('--jobs', type=int, default=1, help='runs at once; 1 when left out')
    parser.add_argument('--threads', type=int, help='CPU threads of each run; the cores shared out when left out')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', dest='overrides',
                        help='a key of every run, over what the file says, e.g. data.path=./cifar10; may be repeated')
    only = parser.add_mutually_exclusive_group()
    only.add_argument('--report', action='store_true', help='report on the runs that are finished, run nothing')
    only.add_argument('--status', action='store_true', help='show how far each run is, run nothing')


def run(args: argparse.Namespace) -> int:
    """Run what is left of the study, and report."""
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
            print('stopped, every run saved; the same command goes on')
            return error.exit_status
    for line in failed:
        print(f'error: {line}', file=sys.stderr)
    if len(failed) < len(study.cells):
        print(f'report: {write_report(study, folder)}')
    return 1 if failed else 0


def _show_status(study: Study, folder: Path) -> None:
    """A line for each method in each setting, with a column for each seed; then how many runs are how far."""
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
