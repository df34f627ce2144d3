"""The sweep's table in Markdown, a line per module of timm."""
from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .examine import HEADS, NO_CLASSIFIER, OK, Row
from .records import VERSIONS

OWN_MODULES = ('cifar_resnet', 'cifar_densenet')


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write what a sweep found.

    Args:
        path: The file.
        rows: Its rows, in any order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(_lines(sorted(rows, key=lambda row: row.arch))) + '\n')


def _lines(rows: list[Row]) -> Iterator[str]:
    trees = [row for row in rows if row.structure == OK]
    tried = [row for row in trees if row.numbers == OK]
    others = [row for row in rows if row.structure == NO_CLASSIFIER]
    yield '# Architectures'
    yield ''
    own = sum(row.module in OWN_MODULES for row in rows)
    yield (
        f'{VERSIONS}: {len(rows) - own} architectures of timm and {own} of this package, the networks of the paper for '
        f'CIFAR. {len(rows) - len(others)} of them are classifiers, and {len(trees)} of these make a head tree. '
        f'{len(tried)} were also tried with numbers, of {len({row.module for row in tried})} of the '
        f'{len({row.module for row in trees})} modules.'
    )
    yield ''
    yield (
        f'*Tree*: on the meta device, the default tree of {HEADS} heads is built, its parts hold every tensor of the '
        'plain network exactly once on the way to each head, and the first and the last head prune to a network of the '
        'plain class that loads strictly. *Numbers*: with random weights, the logits of every head equal those of its '
        'pruned network, and a training step of a head (with dropout and drop path where the architecture has them) '
        "equals the pruned network's in logits, every gradient and every buffer, all bit for bit."
    )
    yield ''
    yield 'Made by `python -m timm_collab.sweep --numbers all`; a row per architecture is in `architectures.csv`.'
    yield ''
    yield '| module | architectures | tree | numbers | split points, median | smallest | its default tree |'
    yield '|---|---:|---:|---:|---:|---|---|'
    modules: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        modules[row.module].append(row)
    for module, members in sorted(modules.items()):
        made = [row for row in members if row.structure == OK]
        smallest = min(made or members, key=lambda row: (row.params, row.arch))
        points = f'{statistics.median(row.points for row in made):g}' if made else ''
        yield (
            f'| {module} | {len(members)} | {len(made)} | {sum(row.numbers == OK for row in made)} | {points} '
            f'| {smallest.arch} | {f"`{smallest.tree}`" if smallest.tree else ""} |'
        )
    yield ''
    if others:
        yield f'No classifiers, refused with that reason: {", ".join(row.arch for row in others)}.'
        yield ''
    failed = [row for row in rows if row.failed]
    if failed:
        yield 'Failed:'
        yield ''
        yield from (f'- {row.arch}: structure {row.structure}; numbers {row.numbers or "not tried"}' for row in failed)
        yield ''
    untried = [row for row in trees if not row.numbers]
    if untried:
        small = min(row.params for row in untried)
        yield (
            f'Not tried with numbers, for the memory or the time it takes: {len(untried)} architectures of '
            f'{small:.0f} to {max(row.params for row in untried):.0f} million parameters.'
        )
        yield ''
        yield '<details><summary>Their names</summary>'
        yield ''
        yield ', '.join(row.arch for row in untried)
        yield ''
        yield '</details>'
