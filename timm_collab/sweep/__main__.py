"""Try every architecture that timm lists, and say which can't be a head tree.

Structure (does it make a head tree, where can it be split, do heads prune to a plain network) is examined on
the meta device, for all of them in minutes. Numbers (is each logit, gradient and buffer the plain network's, bit for
bit) need the weights: a few seconds for a small network, minutes for a large one.

    python -m timm_collab.sweep                                structure of everything
    python -m timm_collab.sweep --numbers smallest             and numbers of the smallest of each module
    python -m timm_collab.sweep 'resnet*' --numbers all        and numbers of all, of some architectures

Found rows go to a CSV at once; the same command goes on where it stopped. Ends with 1 if anything failed.
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

from .examine import OK, Row, examine, start_worker, try_numbers
from .records import append_row, read_rows, write_rows
from .table import write_table

Task = TypeVar('Task')


def main(argv: list[str] | None = None) -> int:
    """Run the sweep.

    Args:
        argv: Arguments of the command line, default this process's.

    Returns:
        The exit status: 0 all well, 1 something failed, 2 nothing to do or a worker died.
    """
    args = _parser().parse_args(argv)
    names = timm.list_models(args.filters, exclude_filters='collab_*')
    if not names:
        print(f'timm has no architecture like {" ".join(args.filters)}: see timm.list_models()', file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = {name: row for name, row in read_rows(args.output).items() if not row.failed}
        new = [name for name in names if name not in rows]
        _run(examine, new, 'structure', args, rows)
        todo = _chosen([rows[name] for name in names], args)
        _run(try_numbers, todo, 'numbers', args, rows)
    except (ValueError, BrokenProcessPool) as error:
        died = 'a worker died, perhaps for want of memory: the same command goes on, with fewer --jobs if you like'
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
    parser.add_argument('filters', nargs='*', default='', help="architectures, with wildcards: 'resnet*'")
    parser.add_argument('--numbers', choices=('none', 'smallest', 'all'), default='none',
                        help='compute with weights: none, the smallest of each module, all')
    parser.add_argument('--max-params', type=float, default=500., metavar='M',
                        help='numbers only of networks with up to that many million parameters (default %(default)g: '
                             'a tree of four heads, a plain network and two gradients in 16 GiB)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='processes (default one per core)')
    parser.add_argument('--output', type=Path, default=Path('sweep.csv'), help='the CSV (default %(default)s)')
    parser.add_argument('--table', type=Path, help='write a table by module in Markdown to this file')
    return parser


def _chosen(rows: list[Row], args: argparse.Namespace) -> list[Row]:
    """The rows whose numbers are to be tried, the cheapest first."""
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
    """Do the work for each task, in several processes, and keep each row as it comes."""
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
                bar.write(f'{row.arch}: structure {row.structure}, numbers {row.numbers or "not tried"}')


def _report(rows: Iterable[Row]) -> int:
    rows = list(rows)
    trees = [row for row in rows if row.structure == OK]
    others = [row.arch for row in rows if row.structure not in (OK,) and not row.failed]
    failed = [row for row in rows if row.failed]
    tried = [row for row in trees if row.numbers]
    print(f'{len(trees)} of {len(rows)} architectures make a head tree, {len(tried)} of them tried with numbers, '
          f'{len(failed)} failed')
    if others:
        print(f'no classifiers: {", ".join(others)}')
    for row in failed:
        print(f'{row.arch}: structure {row.structure}, numbers {row.numbers or "not tried"}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
