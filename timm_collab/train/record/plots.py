"""Plots of a run, from its `metrics.jsonl` and `summary.json` alone, so that any run can be plotted again.

Needs matplotlib, the extra `plots`.
"""
from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import TrainError, require
from ..metrics.metric import metric_of
from ..paths import METRICS, PLOTS, SINGLE, SUMMARY, atomic
from .summary import RunSummary

HOW_TO_GET = "plots need matplotlib: pip install 'timm-collab[plots]', then timm-collab plot"

# Okabe and Ito's palette, which is safe for colour-blind readers; black is reserved for the consensus.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C6D1F', '#7F7F7F')
BLACK, GREY = '#000000', '#7F7F7F'

NAMED_CLASSES = 30
"""Classes up to which a confusion matrix names them."""
NUMBERED_CLASSES = 20
"""Classes up to which it has numbers in its cells."""

Rows = list[dict[str, Any]]
Series = tuple[str, Sequence[float | None], dict[str, Any]]
"""Label, a value per row, and matplotlib's style of the line."""


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec('matplotlib') is not None


def plot_run(folder: Path) -> list[Path]:
    """Plot a run into its folder `plots/`; each file is written atomically.

    Args:
        folder: A run's folder, finished or not.

    Returns:
        The files.

    Raises:
        TrainError: matplotlib is missing, or the folder has no metrics that can be read.
    """
    require(can_plot(), HOW_TO_GET)
    rows = read_rows(folder)
    summary = RunSummary.read(folder / SUMMARY) if (folder / SUMMARY).is_file() else None  # still running
    single = read_rows(folder / SINGLE) if (folder / SINGLE / METRICS).is_file() else []
    written = []
    for name, draw in PICTURES.items():
        figure = draw(rows, summary, single)
        if figure is not None:
            file = metric_of(rows[0]['val']).title.replace(' ', '-') if name == 'score' else name
            written.append(save_figure(figure, folder / PLOTS / f'{file}.png'))
    return written


def read_rows(folder: Path) -> Rows:
    """Read a run's `metrics.jsonl`: a row per epoch, the later one of an epoch that was trained twice.

    A last line that was cut off is ignored.

    Raises:
        TrainError: The file is missing, empty or damaged.
    """
    path = folder / METRICS
    require(path.is_file(), f"'{folder}' holds no run to plot: it has no {METRICS}")
    lines = path.read_text(encoding='utf-8').splitlines()
    by_epoch: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            by_epoch[row['epoch']] = row
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise TrainError(f"'{path}' is damaged: line {number} is not a row of metrics") from error
    require(bool(by_epoch), f"'{path}' has no rows yet: no epoch has ended")
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def draw_loss(rows: Rows, summary: RunSummary | None, single: Rows) -> Any:
    """Plot the training loss per head, and the mean loss of the heads against training and validation labels."""
    heads = len(rows[0]['val']['loss_heads'])
    series: list[Series] = [
        ('training loss per head', [row['train_loss'] / heads for row in rows], {'color': BLACK, 'linewidth': 2}),
        ('training labels', [_mean(row['train_hard_heads']) for row in rows], {'color': COLORS[0]}),
    ]
    if heads > 1:
        series.append(('other heads', [_mean(row['train_soft_heads']) for row in rows], {'color': COLORS[1]}))
    series.append(('validation labels', [_mean(row['val']['loss_heads']) for row in rows], {'color': COLORS[2]}))
    title = 'Loss, mean of the heads' if heads > 1 else 'Loss'
    return _lines(title + _subtitle(summary), f'{metric_of(rows[0]["val"]).loss_name} in nats', rows, series,
                  kept=_kept_epoch(summary))


def draw_score(rows: Rows, summary: RunSummary | None, single: Rows) -> Any:
    """Plot accuracy, or mean average precision, of each head and of the consensus on the validation data."""
    metric = metric_of(rows[0]['val'])
    heads = len(metric.heads(rows[0]['val']))
    kept = rows[-1]['kept_head'] if summary is None else summary.kept_head
    series: list[Series] = [
        (_head_label(head, heads, kept),
         [metric.heads(row['val'])[head] for row in rows],
         {'color': COLORS[head % len(COLORS)], 'linewidth': 2 if head == kept else 1.2})
        for head in range(heads)
    ]
    if heads > 1:
        series.append(('consensus', [metric.consensus(row['val']) for row in rows], {'color': BLACK}))
    if 'val_without_ema' in rows[0]:
        values = [metric.kept(row['val_without_ema']) for row in rows]
        series.append(('best head without EMA', values, {'color': GREY, 'linestyle': ':'}))
    if single:
        scores: list[float | None] = [metric.kept(row['val']) for row in single[:len(rows)]]
        scores += [None] * (len(rows) - len(scores))
        series.append(('single network', scores, {'color': GREY, 'linestyle': '--'}))
    if all('val_clean' in row for row in rows):
        values = [metric.kept(row['val_clean']) for row in rows]
        series.append(('labels before noise', values, {'color': COLORS[2], 'linestyle': '-.'}))
    title = f'{metric.title.capitalize()} on the validation data'
    return _lines(title + _subtitle(summary), f'{metric.name} in %', rows, series, kept=_kept_epoch(summary))


def draw_disagreement(rows: Rows, summary: RunSummary | None, single: Rows) -> Any:
    """Plot how often two heads predict different classes; None for a single head."""
    values = [row['val'].get('disagreement') for row in rows]
    if all(value is None for value in values):
        return None
    series: list[Series] = [('two heads disagree', values, {'color': COLORS[0], 'linewidth': 2})]
    decisions = metric_of(rows[0]['val']).decisions
    title = f'Validation {decisions} on which two heads disagree, mean over pairs'
    return _lines(title + _subtitle(summary), f'{decisions} in %', rows, series, floor=0)


def draw_lr(rows: Rows, summary: RunSummary | None, single: Rows) -> Any:
    """Plot the learning rate at the start of each epoch."""
    series: list[Series] = [('learning rate', [row['lr'] for row in rows], {'color': COLORS[0], 'linewidth': 2})]
    title = 'Learning rate at the start of each epoch'
    return _lines(title + _subtitle(summary), 'learning rate', rows, series, floor=0)


def draw_noise(rows: Rows, summary: RunSummary | None, single: Rows) -> Any:
    """Plot the training score against the noisy and against the clean labels; None where the run didn't record both.

    In a row `given` is measured against the labels that were trained on, `clean` against those before noise.
    """
    metric = metric_of(rows[0]['val'])
    recorded = [row.get(metric.train_key) or {} for row in rows]
    if not any('clean' in each and 'given' in each for each in recorded):
        return None
    series: list[Series] = [
        ('labels before noise', [each.get('clean') for each in recorded], {'color': COLORS[2], 'linewidth': 2}),
        ('labels trained on', [each.get('given') for each in recorded], {'color': COLORS[1], 'linewidth': 2}),
    ]
    title = f'{metric.train_title.capitalize()} on the training images, by which labels'
    return _lines(title + _subtitle(summary), f'{metric.train_name} in %, mean of the heads', rows, series)


def draw_confusion(rows: Rows, summary: RunSummary | None, single: Rows) -> Any:
    """Plot how the kept head takes each class, in percent of its images; None where no summary has the counts."""
    counts = None if summary is None else summary.measured.get('confusion_kept')
    if summary is None or counts is None:
        return None
    from matplotlib.figure import Figure
    count = len(counts)
    percent = [[100 * each / sum(row) if sum(row) else float('nan') for each in row] for row in counts]
    figure = Figure(figsize=(8, 7), dpi=120, layout='constrained')
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap='Blues', vmin=0, vmax=100, interpolation='nearest')
    figure.colorbar(image, ax=axes, label='% of the images of the class', shrink=0.8)
    split = 'validation' if summary.test is None else 'test'
    axes.set_title(f'What the kept head takes the {split} images for{_subtitle(summary)}', loc='left', fontsize=11)
    axes.set_xlabel('predicted class')
    axes.set_ylabel('class')
    if count > NAMED_CLASSES:
        return figure
    names = _drawable(summary.data.label_names or [str(label) for label in range(count)])
    style: dict[str, Any] = {'fontsize': 8, 'parse_math': False}
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0, **style)
    axes.set_yticks(range(count), names, **style)
    if count <= NUMBERED_CLASSES:
        for label, row in enumerate(percent):
            for predicted, share in enumerate(row):
                if share >= 0.5:  # rounds to one at least
                    axes.text(predicted, label, f'{share:.0f}', fontsize=7, ha='center', va='center',
                              color='white' if share > 60 else BLACK)
    return figure


# By file name; the file of the score is named after the metric.
PICTURES: dict[str, Callable[[Rows, RunSummary | None, Rows], Any]] = {
    'loss': draw_loss,
    'score': draw_score,
    'disagreement': draw_disagreement,
    'lr': draw_lr,
    'noise': draw_noise,
    'confusion': draw_confusion,
}


def _lines(title: str, unit: str, rows: Rows, series: Sequence[Series], floor: float | None = None,
           kept: int | None = None) -> Any:
    """A figure with a line per series over the epochs, labelled at its end and in the legend; the kept epoch marked."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state
    from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(8, 4.5), dpi=120, layout='constrained')
    axes = figure.add_subplot()
    epochs = [row['epoch'] + 1 for row in rows]
    ends = []
    for label, values, style in series:
        y = [float('nan') if value is None else value for value in values]
        axes.plot(epochs, y, label=label, **{'linewidth': 1.5, 'marker': '.' if len(rows) < 20 else None, **style})
        known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        if known:
            ends.append((*known[-1], label, style['color']))
    if kept is not None:
        axes.axvline(kept, color=GREY, linewidth=1, linestyle=':', label=f'epoch {kept}, kept')
    axes.set_title(title, loc='left', fontsize=11)
    axes.set_xlabel('epoch')
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    if floor is not None:
        axes.set_ylim(bottom=floor)
    if len(series) > 1:
        figure.legend(frameon=False, fontsize=8, loc='outside lower center', ncols=4)
    _label_ends(axes, ends)
    return figure


def _label_ends(axes: Any, ends: list[tuple[int, float, str, str]]) -> None:
    """Label the lines at their ends; labels that would overlap are moved, and none is above the frame."""
    low, high = axes.get_ylim()
    gap = 0.05 * (high - low)
    ends = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, y, _, _ in ends:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], high if index + 1 == len(heights) else heights[index + 1] - gap)
    for (x, y, label, color), height in zip(ends, heights, strict=True):
        axes.annotate(f'{label} {y:.3g}', (x, y), xytext=(1.01, height), textcoords=axes.get_yaxis_transform(),
                      color=color, fontsize=8, va='center', annotation_clip=False)


def _head_label(head: int, heads: int, kept: int) -> str:
    if heads == 1:
        return 'network'
    return f'head {head} (kept)' if head == kept else f'head {head}'


def _kept_epoch(summary: RunSummary | None) -> int | None:
    """The kept epoch, from 1, if it isn't the last."""
    return None if summary is None or summary.kept_epoch == summary.epochs else summary.kept_epoch


def _subtitle(summary: RunSummary | None) -> str:
    if summary is None:
        return ''
    text = f'\n{summary.model}, {summary.network}, {summary.data.path}'
    rate = summary.noise.realised_rate
    return f'{text}, {100 * rate:.1f} % of the training labels wrong' if rate > 0 else text


def _drawable(names: Sequence[str]) -> list[str]:
    """The names of classes, shortened; the number of a class whose name the font can't draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    known = get_font(findfont(FontProperties())).get_charmap()
    short = [name if len(name) <= 20 else f'{name[:19]}…' for name in names]
    return [name if all(ord(letter) in known for letter in name) else str(label) for label, name in enumerate(short)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def save_figure(figure: Any, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a PNG atomically, with texts in its metadata.

    Raises:
        TrainError: It can't be written.
    """
    try:
        with atomic(path) as partial:
            figure.savefig(partial, format='png', metadata=metadata)
    except OSError as error:
        raise TrainError(f"'{path}' can't be written: {error}") from error
    return path
