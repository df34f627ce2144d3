"""Plots of a study: errors of the methods, difference to the baseline against cost, and error against label noise."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..train.record.plots import BLACK, COLORS, can_plot, save_figure
from .compare import by_seed, mean_and_std, paired_difference, relative
from .grid import Study
from .rows import Row

TITLES = {
    'errors': 'Errors by method',
    'gain': 'Difference to the baseline against cost',
    'noise': 'Error against the share of wrong labels',
}
MAX_COLUMNS = 2
OFFSET_POINTS = 3
MARKERS = 'osD^v'

Point = tuple[float, float, float]
"""x, y, and the length of the error bar to either side of y."""


def pictures_of(study: Study, rows: Sequence[Row]) -> list[str]:
    """Names of the plots that the rows have data for, keys of `TITLES`."""
    names = ['errors']
    if any(_compared(study, rows, setting) for setting in study.settings):
        names.append('gain')
    if _curves(study, rows):
        names.append('noise')
    return names


def draw_pictures(study: Study, rows: Sequence[Row], folder: Path, metadata: dict[str, str] | None = None) -> list[str]:
    """Draw the plots of `pictures_of` into a folder, as `NAME.png`; each file is written atomically.

    Args:
        study: The grid.
        rows: Its runs.
        folder: Folder; created if necessary.
        metadata: Texts to write into the files.

    Returns:
        Names of the plots; none without matplotlib.
    """
    if not can_plot():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    names = pictures_of(study, rows)
    for name in names:
        save_figure(PICTURES[name](study, rows), folder / f'{name}.png', metadata)
    return names


def draw_errors(study: Study, rows: Sequence[Row]) -> Any:
    """One panel per setting: a point per run, and mean and standard deviation of each method."""
    from matplotlib.figure import Figure
    shown = {setting: [method for method in study.methods if by_seed(rows, setting, method)]
             for setting in _settings(study, rows)}
    heights = [len(methods) for methods in shown.values()]
    figure = Figure(figsize=(8, 1 + 0.45 * sum(heights) + 0.3 * len(shown)), dpi=120, layout='constrained')
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for (setting, methods), axes in zip(shown.items(), panels, strict=True):
        for place, method in enumerate(methods):
            values = list(by_seed(rows, setting, method).values())
            color = _color(study, method)
            mean, std = mean_and_std(values)
            axes.scatter(values, [place] * len(values), s=14, color=color, alpha=0.5, linewidths=0)
            axes.errorbar(mean, place, xerr=None if std != std else std, fmt='|', color=color, markersize=14, capsize=3)
            axes.annotate(f'{mean:.1f}', (mean, place), xytext=(0, 7), textcoords='offset points', fontsize=8,
                          ha='center', color=color)
            if method == study.baseline:
                axes.axvline(mean, color=BLACK, linewidth=0.8, linestyle=':')
        axes.set_yticks(range(len(methods)), methods, fontsize=9)
        axes.set_ylim(len(methods) - 0.4, -0.7)
        axes.grid(axis='x', alpha=0.25)
        _plain(axes, setting or study.about)
    figure.supxlabel('error in %, left is better: one point per seed, mean and standard deviation; dotted: baseline',
                     fontsize=10)
    return figure


def draw_gain(study: Study, rows: Sequence[Row]) -> Any:
    """One panel per setting: difference of each method to the baseline against its relative cost."""
    from matplotlib.ticker import FuncFormatter
    counted = all(row.cost_multiply_adds for row in rows)
    column = 'cost_multiply_adds' if counted else 'cost_seconds'
    shown = [setting for setting in study.settings if _compared(study, rows, setting)]
    figure, panels = _panels(len(shown), 'multiply-adds of the training' if counted else 'time of the training',
                             'points of error above the baseline (below 0: better)')
    for setting, axes in zip(shown, panels, strict=True):
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.plot(1, 0, 'o', markersize=4, color=BLACK, label=study.baseline)
        costs: list[float] = []
        for method in _compared(study, rows, setting):
            difference = paired_difference(by_seed(rows, setting, method), by_seed(rows, setting, study.baseline))
            ratio = relative(study, rows, setting, method, column)
            assert difference is not None and ratio is not None
            earlier = sum(abs(other - ratio) < 0.02 for other in costs)  # methods at the same place
            costs.append(ratio)
            _bars(axes, study, method, [(ratio, difference.mean, difference.half_width)], offset=earlier)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}x'))
        axes.margins(x=0.15)
        _plain(axes, setting or study.about)
    _legend(figure, panels)
    return figure


def draw_noise(study: Study, rows: Sequence[Row]) -> Any:
    """One panel per axis of noise rates: error against rate, with standard deviations."""
    curves = _curves(study, rows)
    figure, panels = _panels(len(curves), 'wrong labels in %, as configured', 'error in %')
    for (title, settings), axes in zip(curves.items(), panels, strict=True):
        drawn: list[tuple[str, list[Point]]] = []
        for method in study.methods:
            points: list[Point] = []
            for rate, setting in sorted(settings.items()):
                values = list(by_seed(rows, setting, method).values())
                if values:
                    mean, std = mean_and_std(values)
                    points.append((100 * rate, mean, std))
            if len(points) > 1:
                drawn.append((method, points))
        for place, (method, points) in enumerate(drawn):
            _bars(axes, study, method, points, offset=place - (len(drawn) - 1) / 2)
        _plain(axes, title or study.about)
    _legend(figure, panels)
    return figure


PICTURES: dict[str, Callable[[Study, Sequence[Row]], Any]] = {
    'errors': draw_errors, 'gain': draw_gain, 'noise': draw_noise}


def _settings(study: Study, rows: Sequence[Row]) -> list[str]:
    found = {row.setting for row in rows}
    return [setting for setting in study.settings if setting in found]


def _compared(study: Study, rows: Sequence[Row], setting: str) -> list[str]:
    """The methods that share a seed with the baseline."""
    baseline = by_seed(rows, setting, study.baseline)
    return [method for method in study.methods
            if method != study.baseline and by_seed(rows, setting, method).keys() & baseline.keys()]


def _curves(study: Study, rows: Sequence[Row]) -> dict[str, dict[float, str]]:
    """Axes of `Study.noise_axes` with runs at two rates or more."""
    shown = set(_settings(study, rows))
    known = {title: {rate: setting for rate, setting in settings.items() if setting in shown}
             for title, settings in study.noise_axes.items()}
    return {title: settings for title, settings in known.items() if len(settings) > 1}


def _panels(count: int, x: str, y: str) -> tuple[Any, list[Any]]:
    """A figure with a grid of panels."""
    from matplotlib.figure import Figure
    columns = min(count, MAX_COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(8, 1.2 + 3.2 * rows), dpi=120, layout='constrained')
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for place, axes in enumerate(panels[:count]):
        if place + columns >= count:
            axes.set_xlabel(x)
        axes.grid(alpha=0.25)
    figure.supylabel(y, fontsize=10)
    return figure, panels[:count]


def _bars(axes: Any, study: Study, method: str, points: Sequence[Point], offset: float) -> None:
    """Draw points with error bars, shifted by multiples of `OFFSET_POINTS` beside those of other methods."""
    from matplotlib.transforms import ScaledTranslation
    points = [(x, y, 0. if error != error else error) for x, y, error in points]
    # Shifted artists don't count for the limits of an axis.
    axes.update_datalim([(x, y + sign * error) for x, y, error in points for sign in (-1, 1)])
    x, y, error = zip(*points, strict=True)
    shift = ScaledTranslation(offset * OFFSET_POINTS / 72, 0, axes.figure.dpi_scale_trans)
    axes.errorbar(x, y, yerr=error, marker=_marker(study, method), markersize=4, capsize=2,
                  color=_color(study, method), label=method, transform=axes.transData + shift)


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc='left', fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One legend for all panels."""
    named = {label: handle for axes in panels
             for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), frameon=False, fontsize=8, loc='outside lower center', ncols=2)


def _color(study: Study, method: str) -> str:
    if method == study.baseline:
        return BLACK
    return COLORS[study.methods.index(method) % len(COLORS)]


def _marker(study: Study, method: str) -> str:
    """Marker of a method, different for methods of the same colour."""
    return MARKERS[study.methods.index(method) // len(COLORS) % len(MARKERS)]
