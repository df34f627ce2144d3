"""Run the cells of a study, several at once, each an ordinary run in a process of its own.

A finished cell is never run again, and one that was stopped goes on where it stopped: both are the trainer's own doing.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

from ..train.config import TrainConfig
from ..train.distributed.signals import EX_TEMPFAIL, StoppedError, StopRequest
from ..train.errors import TrainError, require
from ..train.record.run_folder import RunLock, RunState, inspect_folder, is_in_use, read_summary
from ..train.record.summary import RunSummary
from .grid import Cell, Study, filled

RUNS, RECIPES, LOGS = 'runs', 'recipes', 'logs'
POLL_SECONDS = 0.2


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    started: float


def run_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell runs."""
    return folder / RUNS / cell.name


def recipe_of(folder: Path, cell: Cell) -> TrainConfig:
    """The recipe that a cell runs: where it needs another cell, with that one's folder in it."""
    return cell.config if cell.needs is None else filled(cell, run_folder(folder, cell.needs).absolute())


def run_study(
        study: Study,
        folder: Path,
        jobs: int = 1,
        threads: int | None = None,
        recorded: Collection[Cell] = (),
) -> list[str]:
    """Run every cell that isn't finished.

    Args:
        study: The grid.
        folder: The study's folder: `runs/`, and beside it the cells' `recipes/` and `logs/`.
        jobs: Runs at once.
        threads: Threads of each on the CPU; the machine's cores shared out when None.
        recorded: Cells whose results are known though their runs aren't there, see `recorded_rows`. They are run again
            only where another cell needs what they trained.

    Returns:
        A line for each cell that failed, with the end of what it said.

    Raises:
        TrainError: A cell's folder holds the run of another recipe, or another process runs the study. Nothing has been
            started by then.
        StoppedError: A signal asked to stop. Every run was told to save, and has ended.
    """
    require(jobs >= 1, f'--jobs must be at least 1, got {jobs}')
    require(threads is None or threads >= 1, f'--threads must be at least 1, got {threads}')
    threads = threads or max((os.cpu_count() or 1) // jobs, 1)
    with RunLock(folder):
        return _run_cells(study, folder, jobs, threads, recorded)


def _run_cells(study: Study, folder: Path, jobs: int, threads: int, recorded: Collection[Cell]) -> list[str]:
    waiting = []
    for cell in study.cells:
        try:
            state = inspect_folder(run_folder(folder, cell), recipe_of(folder, cell))
        except TrainError as error:
            raise TrainError(f"cell '{cell.name}': {error}") from None
        if state is not RunState.FINISHED:
            waiting.append(cell)
    needed = {cell.needs for cell in waiting if cell not in recorded}
    waiting = [cell for cell in waiting if cell not in recorded or cell in needed]
    done = len(study.cells) - len(waiting)
    failed: list[str] = []
    running: list[_Running] = []
    with StopRequest() as stop, tqdm(
        total=len(study.cells), initial=done, unit='run', disable=not sys.stderr.isatty(), dynamic_ncols=True,
    ) as bar:
        while (waiting or running) and not stop.requested:
            while len(running) < jobs and (free := _next(folder, waiting, running)) is not None:
                waiting.remove(free)
                running.append(_Running(free, _start(folder, free, threads), time.perf_counter()))
            time.sleep(POLL_SECONDS)
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                said = [_outcome(folder, each)]
                if each.process.returncode:
                    lost = [cell for cell in waiting if cell.needs == each.cell]
                    waiting = [cell for cell in waiting if cell not in lost]
                    said += [f'{cell.name}: not run, as it needs {each.cell.name}' for cell in lost]
                    failed += said
                for line in said:
                    done += 1
                    bar.update()
                    bar.write(f'{done:>{len(str(len(study.cells)))}}/{len(study.cells)}  {line}', file=sys.stdout)
                sys.stdout.flush()
        if stop.requested:
            _stop(running)
            raise StoppedError(stop.signal_number)
    return failed


def summaries(study: Study, folder: Path) -> dict[Cell, RunSummary]:
    """What the finished cells came to."""
    found = {cell: read_summary(run_folder(folder, cell)) for cell in study.cells}
    return {cell: summary for cell, summary in found.items() if summary is not None}


def last_words(folder: Path, cell: Cell) -> str:
    """The last line that a cell said; empty where it said nothing."""
    try:
        lines = _log(folder, cell).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return ''
    return next((line for line in reversed(lines) if line.strip()), '')


def _log(folder: Path, cell: Cell) -> Path:
    return folder / LOGS / f'{cell.name}.txt'


def _next(folder: Path, waiting: Sequence[Cell], running: Sequence[_Running]) -> Cell | None:
    """The first cell that needs none that has still to run, and that no study which was killed has left running."""
    unfinished = {*waiting, *(each.cell for each in running)}
    return next((cell for cell in waiting if cell.needs not in unfinished and not is_in_use(run_folder(folder, cell))),
                None)


def _start(folder: Path, cell: Cell, threads: int) -> subprocess.Popen[bytes]:
    recipe, log = folder / RECIPES / f'{cell.name}.yaml', _log(folder, cell)
    for path in (recipe, log):
        path.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(recipe_of(folder, cell).to_dict(), sort_keys=False), encoding='utf-8')
    command = [
        sys.executable, '-m', 'timm_collab.train', '--config', str(recipe),
        '--output', str(run_folder(folder, cell)), '--cpu_threads', str(threads), '--plots', 'false',
    ]
    with open(log, 'ab') as file:
        # A session of its own: Ctrl-C reaches it through us, once.
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, 'OMP_NUM_THREADS': str(threads)})


def _outcome(folder: Path, ended: _Running) -> str:
    minutes = (time.perf_counter() - ended.started) / 60
    summary = read_summary(run_folder(folder, ended.cell))
    if ended.process.returncode == 0 and summary is not None:
        name, score = summary.metric.final_name, summary.scores.kept
        return f'{ended.cell.name}: {name} {score:.2f} % ({minutes:.1f} min)'
    said, status = last_words(folder, ended.cell), ended.process.returncode
    failure = f'failed with status {status}: {said}'
    if status not in (0, EX_TEMPFAIL, 130) and not said.startswith('error:'):
        with open(_log(folder, ended.cell), 'a', encoding='utf-8') as file:  # where `--status` looks for it
            file.write(f'error: {failure}\n')
    return f'{ended.cell.name}: {failure} ({_log(folder, ended.cell)})'


def _stop(running: Sequence[_Running]) -> None:
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    for each in running:
        each.process.wait()
