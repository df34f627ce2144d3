"""Report of a study as Markdown, made from the grid and the rows of `runs.csv` only."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..train.errors import require
from ..train.metrics.metric import MAP
from ..train.paths import write_text
from .compare import by_seed, mean_and_std, paired_difference, relative
from .grid import Study
from .pictures import TITLES, draw_pictures
from .rows import RUNS_CSV, Row, rows_of, write_rows

REPORT = 'report.md'


def write_report(study: Study, folder: Path) -> Path:
    """Write `runs.csv`, `report.md` and, with matplotlib, its plots into a study's folder.

    Returns:
        Path of the report.

    Raises:
        TrainError: No run has finished yet.
    """
    rows = rows_of(study, folder)
    require(bool(rows), f"study '{folder}' has no finished run yet")
    write_rows(rows, folder / RUNS_CSV)
    pictures = {name: f'{name}.png' for name in draw_pictures(study, rows, folder)}
    text = f'# {study.about or "Study"}\n\n' + report_text(study, rows, pictures, RUNS_CSV)
    write_text(folder / REPORT, text)
    return folder / REPORT


def report_text(study: Study, rows: Sequence[Row], pictures: Mapping[str, str], runs_csv: str, level: int = 2) -> str:
    """Report of a study, as Markdown without a title.

    Args:
        study: The grid.
        rows: Its runs.
        pictures: Paths of the plots, by their names in `TITLES`.
        runs_csv: Path of `runs.csv`.
        level: Level of the headings, of which there is one per setting.
    """
    parts = []
    if missing := len(study.cells) - len(rows):
        parts.append(f'**{missing} of {len(study.cells)} runs have not finished.**')
    parts.append(_legend(study, rows))
    parts += [f'![{TITLES[name]}]({path})' for name, path in pictures.items()]
    for setting in study.settings:
        if any(row.setting == setting for row in rows):
            parts += [f'{"#" * level} {setting}'] if setting else []
            parts.append(_table(study, rows, setting))
    parts.append(_provenance(rows, runs_csv))
    return '\n\n'.join(parts) + '\n'


def _legend(study: Study, rows: Sequence[Row]) -> str:
    """Explanation of the tables."""
    text = (
        'Error of the kept head in percent, on the data named below: mean and standard deviation over the seeds. It is'
        ' that of the kept epoch, which validation labels pick unless a method says otherwise; last is that of the last'
        f" epoch. The difference to '{study.baseline}' is that of the kept epoch, paired by seed, with its 95 %"
        " confidence interval (Student's t). It is bold if the interval excludes zero and there are at least three"
        ' seeds. Time is the training time relative to the baseline, on a machine that other runs may have shared.')
    if any(row.error_oracle is not None for row in rows):
        text += (' The validation labels have the same noise as the training labels; best is the epoch that labels'
                 ' without it would have picked.')
    if any(row.worst_recall is not None for row in rows):
        text += ' Worst class is the lowest recall of any class.'
    if any(row.metric == MAP.key for row in rows):
        text += f' The error is 100 minus the {MAP.title}.'
    if any(row.multiply_adds for row in rows):
        text += (' Step and training are the multiply-adds of one step and of the whole training, relative to the'
                 ' baseline; a backward pass counts as two forward passes.')
    if any(row.teacher_seconds is not None for row in rows):
        text += " If a method learns from a teacher, time and training include the teacher's own."
    if any(row.peak_memory_mb is not None for row in rows):
        text += ' Memory is the peak memory in MB: of tensors on a GPU, of the whole process on a CPU.'
    return text


def _table(study: Study, rows: Sequence[Row], setting: str) -> str:
    shown = [method for method in study.methods if by_seed(rows, setting, method)]
    columns = {
        'method': shown,
        'seeds': [str(len(by_seed(rows, setting, method))) for method in shown],
        'last': [_spread(by_seed(rows, setting, method, 'error_last')) for method in shown],
        'error': [_spread(by_seed(rows, setting, method)) for method in shown],
        f'difference to {study.baseline}': [_difference(study, rows, setting, method) for method in shown],
        'best': [_spread(by_seed(rows, setting, method, 'error_oracle')) for method in shown],
        'worst class': [_mean(by_seed(rows, setting, method, 'worst_recall')) for method in shown],
        'consensus': [_spread(by_seed(rows, setting, method, 'error_consensus')) for method in shown],
        'step': [_ratio(study, rows, setting, method, 'multiply_adds') for method in shown],
        'training': [_ratio(study, rows, setting, method, 'cost_multiply_adds') for method in shown],
        'time': [_ratio(study, rows, setting, method, 'cost_seconds') for method in shown],
        'memory': [_mean(by_seed(rows, setting, method, 'peak_memory_mb')) for method in shown],
    }
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    lines = [_line(columns), _line(['---'] * len(columns))]
    lines += [_line(cells) for cells in zip(*columns.values(), strict=True)]
    return '\n'.join(lines)


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in cells)} |'  # names may be trees


def _difference(study: Study, rows: Sequence[Row], setting: str, method: str) -> str:
    if method == study.baseline:
        return ''
    found = paired_difference(by_seed(rows, setting, method), by_seed(rows, setting, study.baseline))
    if found is None:
        return ''
    text = f'{found.mean:+.2f}' + (f' ± {found.half_width:.2f}' if found.half_width == found.half_width else '')
    return f'**{text}**' if found.is_clear else text


def _spread(values: Mapping[int, float]) -> str:
    if not values:
        return ''
    mean, std = mean_and_std(list(values.values()))
    return f'{mean:.2f}' + (f' ± {std:.2f}' if std == std else '')


def _mean(values: Mapping[int, float]) -> str:
    return f'{mean_and_std(list(values.values()))[0]:,.0f}' if values else ''


def _ratio(study: Study, rows: Sequence[Row], setting: str, method: str, column: str) -> str:
    ratio = relative(study, rows, setting, method, column)
    return '' if ratio is None else f'{ratio:.2f}'


def _provenance(rows: Sequence[Row], runs_csv: str) -> str:
    """Data, devices and versions of the runs, each distinct value once."""
    def distinct(values: Iterable[Any]) -> str:
        return '; '.join(sorted({str(value) for value in values if value is not None}))

    commits = distinct(row.commit for row in rows)
    return (f'Errors are on {distinct(row.error_on for row in rows)};'
            f' {distinct(f"{row.train_images:,} training images" for row in rows)}; wrong labels among them:'
            f' {distinct(f"{100 * row.noise_rate:.1f} %" for row in rows)}.'
            f' {distinct(row.device for row in rows)}; {distinct(row.versions for row in rows)}'
            + (f'; commit {commits}' if commits else '')
            + f'. Every run is a row of [{Path(runs_csv).name}]({runs_csv}), which names its recipe.')
