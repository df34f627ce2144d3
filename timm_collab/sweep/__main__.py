"""Verify head trees of every timm architecture, and report those that fail.

Structure (can it be turned into a head tree, where can it be split, do heads prune to a plain network) is checked on
the meta device, which takes minutes for all of them. Numbers (do all logits, gradients and buffers equal those of the
plain network, bit for bit) need the weights: seconds for a small network, minutes for a large one.

    python -m timm_collab.sweep                                structure of all architectures
    python -m timm_collab.sweep --numbers smallest             and numbers of the smallest of each module
    python -m timm_collab.sweep 'resnet*' --numbers all        structure and numbers of some architectures

Each row is written to a CSV file at once, and the same command resumes where it stopped. The exit status is 1 if
anything failed.
"""
from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import timm
from tqdm import tqdm

import timm_collab  # noqa: F401  (registers the head trees)

from .examine import OK, Row, check_numbers, examine, start_worker
from .records import append_row, read_rows, write_rows
from .table import write_table

Task = TypeVar('Task')


def main(argv: list[str] | None = None) -> int:
    """Run the sweep.

    Args:
        argv: Command line arguments, default those of the process.

    Returns:
        The exit status: 0 if all checks passed, 1 if one failed, 2 if there is nothing to do or a worker died.
    """
    args = _parser().parse_args(argv)
    names = timm.list_models(args.filters, exclude_filters='collab_*')
    if not names:
        print(f'no architecture of timm matches {" ".join(args.filters)}: see timm.list_models()', file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = {name: row for name, row in read_rows(args.output).items() if not row.failed}
        new = [name for name in names if name not in rows]
        _run(examine, new, 'structure', args, rows)
        todo = _chosen([rows[name] for name in names], args)
        _run(check_numbers, todo, 'numbers', args, rows)
    except (ValueError, BrokenProcessPool) as error:
        died = 'a worker died, perhaps out of memory: run the same command again to resume, maybe with fewer --jobs'
        print(died if isinstance(error, BrokenProcessPool) else error, file=sys.stderr)
        return 2
    write_rows(args.output, {**read_rows(args.output), **rows}.values())
    found = [rows[name] for name in names]
    if args.table:
        write_table(args.table, found)
    return _report(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m timm_collab.sweep', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('filters', nargs='*', default='', help="names of architectures, with wildcards: 'resnet*'")
    parser.add_argument('--numbers', choices=('none', 'smallest', 'all'), default='none',
                        help='check numbers of none, the smallest of each module, or all (default %(default)s)')
    parser.add_argument('--max-params', type=float, default=500., metavar='M',
                        help='check numbers only of networks with up to M million parameters (default %(default)g: a '
                             'tree of four heads, a plain network and two gradients in 16 GiB)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='number of processes (default one per core)')
    parser.add_argument('--output', type=Path, default=Path('sweep.csv'), help='CSV file (default %(default)s)')
    parser.add_argument('--table', type=Path, help='also write a Markdown table by module to this file')
    return parser


def _chosen(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """Select the rows whose numbers will be checked, the cheapest first."""
    able = sorted((row for row in rows if row.structure == OK), key=lambda row: (row.gmacs + row.params / 50, row.arch))
    if args.numbers == 'none':
        return []
    if args.numbers == 'smallest':
        able = list({row.module: row for row in reversed(able)}.values())[::-1]
    return [row for row in able if row.numbers != OK and row.params <= args.max_params]


def _run(
        work: Callable[[Task], Row],
        tasks: list[Task],
        what: str,
        args: argparse.Namespace,
        rows: dict[str, Row],
) -> None:
    """Process the tasks in several processes, and append each resulting row to the CSV file."""
    context = multiprocessing.get_context('spawn')
    bar = tqdm(total=len(tasks), desc=what, unit='arch', disable=not tasks)
    with bar, ProcessPoolExecutor(args.jobs, context, start_worker) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        for future in as_completed(futures):
            row = future.result()
            rows[row.arch] = row
            append_row(args.output, row)
            bar.update()
            if row.failed:
                bar.write(f'{row.arch}: structure {row.structure}, numbers {row.numbers or "not checked"}')


def _report(rows: Iterable[Row]) -> int:
    rows = list(rows)
    trees = [row for row in rows if row.structure == OK]
    others = [row.arch for row in rows if row.structure not in (OK,) and not row.failed]
    failed = [row for row in rows if row.failed]
    checked = [row for row in trees if row.numbers]
    print(f'{len(trees)} of {len(rows)} architectures have a head tree, numbers checked for {len(checked)} of them, '
          f'{len(failed)} failed')
    if others:
        print(f'no classifiers: {", ".join(others)}')
    for row in failed:
        print(f'{row.arch}: structure {row.structure}, numbers {row.numbers or "not checked"}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
