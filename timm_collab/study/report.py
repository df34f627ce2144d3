"""What a study found: a row for each run, a table for each setting, and a picture.

Written from the runs' summaries alone, also of a study that hasn't ended.
"""
from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..train.errors import require
from ..train.metrics import MAP, metric_of, shortfall
from .compare import mean_and_std, paired_difference
from .grid import Cell, Study
from .picture import draw_errors
from .runner import RECIPES, summaries

RUNS_CSV, REPORT, PICTURE = 'runs.csv', 'report.md', 'errors.png'
COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    'error': lambda summary: shortfall(summary['test'] or summary['val']),
    'error_consensus': lambda summary: shortfall(summary['test'] or summary['val'], 'consensus'),
    'val_error_last': lambda summary: shortfall(summary['val']),
    'val_error_best': lambda summary: shortfall(summary['best_epoch']['val']),
    'best_epoch': lambda summary: summary['best_epoch']['epoch'] + 1,
    'noise_rate': lambda summary: summary['noise']['realised_rate'],
    'train_seconds': lambda summary: summary['train_seconds'],
    'parameters_trained': lambda summary: summary['parameters']['trained'],
    'parameters_kept': lambda summary: summary['parameters']['kept'],
    'kept_head': lambda summary: summary['kept_head'],
}

Results = dict[Cell, dict[str, Any]]


def write_report(study: Study, folder: Path) -> Path:
    """Write `runs.csv`, `report.md` and, with matplotlib, `errors.png` into a study's folder.

    Returns:
        The report.

    Raises:
        TrainError: No run has finished yet.
    """
    found = summaries(study, folder)
    require(bool(found), f"study '{folder}' has no finished run yet")
    rows = [
        {'setting': cell.setting, 'method': cell.method, 'seed': cell.seed,
         **{name: read(summary) for name, read in COLUMNS.items()}}
        for cell, summary in found.items()
    ]
    partial = folder / f'.{RUNS_CSV}.partial'
    with open(partial, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, folder / RUNS_CSV)

    picture = draw_errors(study, _errors(study, found), folder / PICTURE)
    partial = folder / f'.{REPORT}.partial'
    partial.write_text(_text(study, found, picture), encoding='utf-8')
    os.replace(partial, folder / REPORT)
    return folder / REPORT


def _errors(study: Study, found: Results) -> dict[str, dict[str, dict[int, float]]]:
    """Error of each run, by setting, method and seed."""
    errors: dict[str, dict[str, dict[int, float]]] = {
        setting: {method: {} for method in study.methods} for setting in study.settings}
    for cell, summary in found.items():
        errors[cell.setting][cell.method][cell.seed] = COLUMNS['error'](summary)
    return errors


def _text(study: Study, found: Results, picture: bool) -> str:
    missing = len(study.cells) - len(found)
    several = any(metric_of(summary) is MAP for summary in found.values())
    parts = [f'# {study.about}' if study.about else '# Study']
    if missing:
        parts.append(f'**{missing} of {len(study.cells)} runs have not finished.**')
    parts.append(
        'Error of the kept head after the last epoch, in percent, on the data named below; mean and standard deviation'
        f" over the seeds. The difference to '{study.baseline}' is paired by seed, with its 95 % confidence interval"
        " (Student's t); it is bold where that leaves out zero. The best epoch is that with the lowest validation"
        ' error. Time is that of training, against the baseline, on a machine that other runs may have shared.'
        + ' What is called error here is 100 less the mean average precision.' * several)
    if picture:
        parts.append(f'![Errors by method]({PICTURE})')
    for setting in study.settings:
        cells = {cell: summary for cell, summary in found.items() if cell.setting == setting}
        if cells:
            parts += [f'## {setting}'] if setting else []
            parts.append(_table(study, setting, cells))
    parts.append(_provenance(found))
    return '\n\n'.join(parts) + '\n'


def _table(study: Study, setting: str, cells: Results) -> str:
    def of(method: str, name: str) -> dict[int, float]:
        return {cell.seed: COLUMNS[name](summary) for cell, summary in cells.items() if cell.method == method}

    baseline = of(study.baseline, 'error')
    seconds = of(study.baseline, 'train_seconds')
    lines = [
        f'| method | seeds | error | difference to {study.baseline} | consensus | validation, last | best epoch |'
        ' time |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for method in study.methods:
        errors = of(method, 'error')
        if not errors:
            continue
        difference = None if method == study.baseline else paired_difference(errors, baseline)
        shared = of(method, 'train_seconds').keys() & seconds.keys()
        time = [of(method, 'train_seconds')[seed] / seconds[seed] for seed in sorted(shared)]
        lines.append('| ' + ' | '.join([
            method,
            str(len(errors)),
            _spread(errors.values()),
            '' if difference is None else _signed(difference.mean, difference.half_width, difference.is_clear),
            _spread(of(method, 'error_consensus').values()),
            _spread(of(method, 'val_error_last').values()),
            _spread(of(method, 'val_error_best').values()),
            f'{mean_and_std(time)[0]:.2f}' if time else '',
        ]) + ' |')
    return '\n'.join(lines)


def _provenance(found: Results) -> str:
    """What was run where: each distinct answer once."""
    def distinct(read: Callable[[dict[str, Any]], str]) -> str:
        return '; '.join(sorted({read(summary) for summary in found.values()}))

    versions = distinct(lambda summary: ', '.join(f'{name} {it}' for name, it in sorted(summary['versions'].items())))
    rates = distinct(lambda summary: f"{100 * summary['noise']['realised_rate']:.1f} %")
    sizes = distinct(lambda summary: f"{summary['data']['train']:,} to train on")
    return (f'Errors are on {distinct(lambda summary: summary["error_on"])}; {sizes}; wrong labels among them: {rates}.'
            f' {distinct(lambda summary: summary["device"])}, {versions}. Every run is a row of `{RUNS_CSV}`, its'
            f' recipe is in `{RECIPES}/`.')


def _spread(values: Sequence[float] | Any) -> str:
    mean, std = mean_and_std(list(values))
    return f'{mean:.2f}' + (f' ± {std:.2f}' if std == std else '')


def _signed(mean: float, half_width: float, is_clear: bool) -> str:
    text = f'{mean:+.2f}' + (f' ± {half_width:.2f}' if half_width == half_width else '')
    return f'**{text}**' if is_clear else text
