"""Errors of the methods side by side, a point for each run and a bar for mean and deviation."""
from __future__ import annotations

from pathlib import Path

from ..train.plots import BLACK, COLORS, can_plot, save_figure
from .compare import mean_and_std
from .grid import Study


def draw_errors(study: Study, errors: dict[str, dict[str, dict[int, float]]], path: Path) -> bool:
    """Draw a panel for each setting.

    Args:
        study: The grid.
        errors: In percent, by setting, method and seed.
        path: The PNG, written whole or not at all.

    Returns:
        Whether there is a picture: not without matplotlib.
    """
    if not can_plot():
        return False
    from matplotlib.figure import Figure
    shown = [setting for setting in study.settings if any(errors[setting].values())]
    figure = Figure(figsize=(8, 1 + 0.45 * len(study.methods) * len(shown)), dpi=120, layout='constrained')
    for row, (setting, axes) in enumerate(zip(shown, figure.subplots(len(shown), 1, squeeze=False)[:, 0], strict=True)):
        for place, method in enumerate(study.methods):
            values = list(errors[setting][method].values())
            if not values:
                continue
            color = BLACK if method == study.baseline else COLORS[place % len(COLORS)]
            mean, std = mean_and_std(values)
            axes.scatter(values, [place] * len(values), s=14, color=color, alpha=0.5, linewidths=0)
            axes.errorbar(mean, place, xerr=None if std != std else std, fmt='|', color=color, markersize=14, capsize=3)
            axes.annotate(f'{mean:.1f}', (mean, place), xytext=(0, 7), textcoords='offset points', fontsize=8,
                          ha='center', color=color)
            if method == study.baseline:
                axes.axvline(mean, color=BLACK, linewidth=0.8, linestyle=':')
        axes.set_yticks(range(len(study.methods)), study.methods, fontsize=9)
        axes.set_ylim(len(study.methods) - 0.4, -0.7)
        axes.set_title(setting or study.about, loc='left', fontsize=10)
        axes.grid(axis='x', alpha=0.25)
        axes.spines[['top', 'right']].set_visible(False)
        if row == len(shown) - 1:
            axes.set_xlabel('error in %, left is better: a point a seed, mean and standard deviation; dotted: baseline')
    save_figure(figure, path)
    return True
