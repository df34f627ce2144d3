"""The Markdown table of the sweep, with one line per timm module."""
from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .examine import HEADS, NO_CLASSIFIER, OK, Row
from .records import VERSIONS

OWN_MODULES = ('cifar_resnet', 'cifar_densenet')


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the results of a sweep.

    Args:
        path: The Markdown file.
        rows: The rows, in any order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(_lines(sorted(rows, key=lambda row: row.arch))) + '\n')


def _lines(rows: list[Row]) -> Iterator[str]:
    trees = [row for row in rows if row.structure == OK]
    checked = [row for row in trees if row.numbers == OK]
    others = [row for row in rows if row.structure == NO_CLASSIFIER]
    yield '# Architectures'
    yield ''
    own = sum(row.module in OWN_MODULES for row in rows)
    yield (
        f'{VERSIONS}: {len(rows) - own} architectures of timm and {own} of this package, the networks of the paper for '
        f'CIFAR. {len(rows) - len(others)} of them are classifiers, and {len(trees)} of these have a head tree. '
        f'Numbers were also checked for {len(checked)}, from {len({row.module for row in checked})} of the '
        f'{len({row.module for row in trees})} modules.'
    )
    yield ''
    yield (
        f'*Tree*: the default tree with {HEADS} heads is created on the meta device. The path to each head has every '
        'tensor of the plain network exactly once, and the first and the last head prune to the plain class and load '
        'strictly. *Numbers*: with random weights, the logits of every head equal those of its pruned network. A '
        'training step of a head (with dropout and drop path if the architecture has them) equals that of the pruned '
        'network in logits, all gradients and all buffers, bit for bit.'
    )
    yield ''
    yield 'Created by `python -m timm_collab.sweep --numbers all`; a row per architecture is in `architectures.csv`.'
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
        yield f'Not supported, as they have no classifier: {", ".join(row.arch for row in others)}.'
        yield ''
    failed = [row for row in rows if row.failed]
    if failed:
        yield 'Failed:'
        yield ''
        for row in failed:
            yield f'- {row.arch}: structure {row.structure}; numbers {row.numbers or "not checked"}'
        yield ''
    unchecked = [row for row in trees if not row.numbers]
    if unchecked:
        small = min(row.params for row in unchecked)
        yield (
            f'Numbers not checked, because of memory or time: {len(unchecked)} architectures with {small:.0f} to '
            f'{max(row.params for row in unchecked):.0f} million parameters.'
        )
        yield ''
        yield '<details><summary>Their names</summary>'
        yield ''
        yield ', '.join(row.arch for row in unchecked)
        yield ''
        yield '</details>'
