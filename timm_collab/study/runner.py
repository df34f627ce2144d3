"""Run the cells of a study, several at the same time, each as an ordinary run in its own process.

The trainer itself skips a finished run and resumes a stopped one.
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
    """Run folder of a cell."""
    return folder / RUNS / cell.name


def recipe_of(folder: Path, cell: Cell) -> TrainConfig:
    """Recipe of a cell, with the folder of the cell that it needs filled in."""
    return cell.config if cell.needs is None else filled(cell, run_folder(folder, cell.needs).absolute())


def run_study(
        study: Study,
        folder: Path,
        jobs: int = 1,
        threads: int | None = None,
        recorded: Collection[Cell] = (),
) -> list[str]:
    """Run every unfinished cell.

    Args:
        study: The grid.
        folder: Folder of the study, which gets the folders `runs`, `recipes` and `logs`.
        jobs: Number of runs at the same time.
        threads: CPU threads per run, default the number of cores divided by `jobs`.
        recorded: Cells whose results are known from `runs.csv` only, see `recorded_rows`. They run again only if
            another cell needs their run.

    Returns:
        A line per failed cell, with the last line of its log.

    Raises:
        TrainError: A cell's folder has a run of another recipe, or another process runs the study. Nothing was started.
        StoppedError: A signal requested to stop. Every run has saved a checkpoint and ended.
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
                lines = [_outcome(folder, each)]
                if each.process.returncode:
                    skipped = [cell for cell in waiting if cell.needs == each.cell]
                    waiting = [cell for cell in waiting if cell not in skipped]
                    lines += [f'{cell.name}: not run, as it needs {each.cell.name}' for cell in skipped]
                    failed += lines
                for line in lines:
                    done += 1
                    bar.update()
                    bar.write(f'{done:>{len(str(len(study.cells)))}}/{len(study.cells)}  {line}', file=sys.stdout)
                sys.stdout.flush()
        if stop.requested:
            _stop(running)
            raise StoppedError(stop.signal_number)
    return failed


def summaries(study: Study, folder: Path) -> dict[Cell, RunSummary]:
    """Summaries of the finished cells."""
    found = {cell: read_summary(run_folder(folder, cell)) for cell in study.cells}
    return {cell: summary for cell, summary in found.items() if summary is not None}


def last_line(folder: Path, cell: Cell) -> str:
    """Last line of a cell's log, '' without one."""
    try:
        lines = _log(folder, cell).read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return ''
    return next((line for line in reversed(lines) if line.strip()), '')


def _log(folder: Path, cell: Cell) -> Path:
    return folder / LOGS / f'{cell.name}.txt'


def _next(folder: Path, waiting: Sequence[Cell], running: Sequence[_Running]) -> Cell | None:
    """First waiting cell whose needed cell has finished and whose folder no run of a killed study still uses."""
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
        # In a new session, so that Ctrl-C reaches it once, through this process.
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, 'OMP_NUM_THREADS': str(threads)})


def _outcome(folder: Path, ended: _Running) -> str:
    minutes = (time.perf_counter() - ended.started) / 60
    summary = read_summary(run_folder(folder, ended.cell))
    if ended.process.returncode == 0 and summary is not None:
        name, score = summary.metric.final_name, summary.scores.kept
        return f'{ended.cell.name}: {name} {score:.2f} % ({minutes:.1f} min)'
    line, status = last_line(folder, ended.cell), ended.process.returncode
    failure = f'failed with status {status}: {line}'
    if status not in (0, EX_TEMPFAIL, 130) and not line.startswith('error:'):
        with open(_log(folder, ended.cell), 'a', encoding='utf-8') as file:  # read by `--status`
            file.write(f'error: {failure}\n')
    return f'{ended.cell.name}: {failure} ({_log(folder, ended.cell)})'


def _stop(running: Sequence[_Running]) -> None:
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    for each in running:
        each.process.wait()
