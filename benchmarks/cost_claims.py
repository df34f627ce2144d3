"""Claims about the cost of a head tree, checked against the rows of `cost.py`."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .cost_rows import Row, find, networks, ratio

WORK_BOUND = 1.05
"""Relative step time of four hierarchical heads, divided by their relative multiply-adds."""
HAND_BOUND = 1.02
"""Time and memory relative to the same tree written by hand."""
LINE_BOUND = .05
"""Largest relative distance of a step time from the line through all numbers of heads."""
MEMORY_BOUND = 1.05
"""Peak memory relative to the prediction of `liveness.py`."""
PRUNED_BOUND = 1.02
"""Inference of the pruned head relative to the plain network: the same code, so the bound covers timing noise."""
BOUND_NETWORKS = ('resnet50', 'cifar_resnet32')
"""Networks with claims about step time."""


@dataclass(frozen=True)
class Claim:
    """A claim and its measurement.

    Args:
        text: The claim.
        network: Name of the network.
        measured: Measured value.
        bound: Largest value for which the claim holds.
    """

    text: str
    network: str
    measured: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the claim holds."""
        return self.measured <= self.bound


@dataclass(frozen=True)
class Line:
    """Line through the relative step times for several numbers of heads.

    Args:
        heads: The numbers of heads.
        slope: Relative step time per additional head.
        r2: Coefficient of determination.
        deviation: Largest relative distance from the line.
    """

    heads: tuple[int, ...]
    slope: float
    r2: float
    deviation: float

    @classmethod
    def through(cls, heads: Sequence[int], ratios: Sequence[float]) -> Line:
        """Fit a line by least squares."""
        x, y = np.array(heads), np.array(ratios)
        slope, offset = np.polyfit(x, y, 1)
        rest = y - (offset + slope * x)
        r2 = 1 - (rest**2).sum() / ((y - y.mean())**2).sum()
        return cls(tuple(heads), float(slope), float(r2), float(np.abs(rest / (y - rest)).max()))


def line(rows: Sequence[Row], network: str) -> Line | None:
    """Line through the trees with one fork, None if there are too few."""
    steps = find(rows, network=network, quantity='step', against='single')
    points = sorted((int(row['heads']), float(row['ratio'])) for row in steps if row['pattern'] in ('single', 'simple'))
    if len(points) < 5:
        return None
    heads, ratios = zip(*points, strict=True)
    return Line.through(heads, ratios)


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    """All claims about the measured networks."""
    for network in networks(rows):
        shown = {'network': network, 'pattern': 'hierarchical', 'heads': 4}
        steps = find(rows, **shown, quantity='step', against='single')
        if steps and network in BOUND_NETWORKS:
            work = float(steps[0]['multiply_adds'])
            yield Claim('step of 4 hierarchical heads / (multiply-adds x single)', network,
                        float(steps[0]['ratio']) / work, WORK_BOUND)
            separate = ratio(rows, **shown, quantity='step', against='separate')
            if separate is not None:
                yield Claim('step / that of 4 separate networks', network, separate, work / 4)
        for quantity, what in (('step', 'step'), ('peak', 'peak memory')):
            hand = ratio(rows, **shown, quantity=quantity, against='by hand')
            if hand is not None:
                yield Claim(f'{what} / that of the same tree by hand', network, hand, HAND_BOUND)
        fitted = line(rows, network)
        if fitted is not None:
            yield Claim(f'step of {fitted.heads[0]} to {fitted.heads[-1]} heads: distance from a line', network,
                        fitted.deviation, LINE_BOUND)
        peaks = [float(row['ratio']) for row in find(rows, network=network, quantity='peak', against='predicted')]
        if peaks:
            yield Claim(f'peak memory / predicted, worst of {len(peaks)} trees', network, max(peaks), MEMORY_BOUND)
        kept = ratio(rows, **shown, quantity='pruned', against='single')
        if kept is not None:
            yield Claim('inference of the pruned head / plain timm', network, kept, PRUNED_BOUND)


def print_claims(rows: Sequence[Row]) -> bool:
    """Print each claim, and return whether all hold."""
    found = list(claims(rows))
    for claim in found:
        print(f'{"ok" if claim.holds else "MISSED":6}  {claim.network}: {claim.text}: {claim.measured:.3f}, at most'
              f' {claim.bound:.3f}')
    return all(claim.holds for claim in found)
