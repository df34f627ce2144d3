"""Show what training would read: splits, classes, image sizes, duplicates, what is left out; --sheet draws images.

Reads every image, whatever the size of the data, and trains nothing. PATH is what data.path of a recipe would be.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..table import format_table

if TYPE_CHECKING:
    from ...train.inspect import Inspection, Sheet

TAKES_REST = True
MANY_CLASSES = 30
SHOWN = 10  # smallest and largest classes, of many
_GROUPS = ('--data.', '--augment.', '--model.', '--seed')


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('-h', '--help', action='help', help='show this help message and exit')
    parser.add_argument('path', metavar='PATH', help='the data, as data.path of a recipe')
    parser.add_argument('--json', action='store_true', help='print all as JSON')
    parser.add_argument('--sheet', type=Path, metavar='FILE.png',
                        help='draw training images: as decoded, as augmented in four epochs, as seen in evaluation')
    parser.add_argument('--per-class', type=int, default=2, metavar='N',
                        help='images of each class on the sheet (default: 2)')
    parser.add_argument('--config', action='append', default=[], metavar='RECIPE',
                        help='recipe with the keys of the data and, for the sheet, of augmentation and model')
    parser.add_argument_group('keys', "--data.label_column and any other key of a recipe's data, and for the sheet"
                                      ' --augment..., --model... and --seed')


def run(args: argparse.Namespace) -> int:
    """Inspect, and print what was found."""
    from ...train.config import AugmentConfig, DataConfig, ModelConfig
    from ...train.config.parse import from_mapping, parse_values
    from ...train.errors import require
    from ...train.inspect import draw_sheet, inspect_data
    require(args.per_class >= 1, f'--per-class must be at least 1, got {args.per_class}')
    other = [word for word in args.rest if word.startswith('-') and not word.startswith(_GROUPS)]
    require(not other, f"unknown option '{' '.join(other)}': of a recipe's keys only those of data, augment and model"
                       ' can be given here, and seed')
    recipes = [f'--config={name}' for name in args.config]
    values = parse_values([*recipes, *args.rest, f'--data.path={args.path}'])
    data, model = from_mapping(DataConfig, values['data']), from_mapping(ModelConfig, values['model'])
    progress = sys.stderr.isatty()
    sheet = None
    if args.sheet is not None:  # first, because it finds mistakes in a recipe before all is read
        augment = from_mapping(AugmentConfig, values['augment'])
        sheet = draw_sheet(args.sheet, data, augment, model, values['seed'], args.per_class, progress)
    found = inspect_data(data, model.num_classes, progress)
    print(json.dumps(found.to_dict(), indent=2) if args.json else '\n'.join(_lines(found)))
    if sheet is not None:
        print('\n'.join(['', *_sheet_lines(sheet)]), file=sys.stderr if args.json else sys.stdout)
    return 0


def _sheet_lines(sheet: Sheet) -> list[str]:
    classes = f'{sheet.num_classes} classes'
    if len(sheet.classes) < sheet.num_classes:
        classes = f'{len(sheet.classes)} of {classes} ({", ".join(sheet.classes)})'
    return [f'sheet: {sheet.path}, {sheet.images} training images of {classes}', *sheet.notes]


def _lines(found: Inspection) -> Iterator[str]:
    """What is printed without --json."""
    from ...train.record.report import imbalance, left_out_line
    yield f'{found.path}: {found.read_as}'
    yield ''
    yield format_table(('split', 'name', 'images'), [
        (role, counts.name, f'{counts.images:,}') for role, counts in found.splits.items()])
    yield ''
    yield _classes(found)
    if sizes := imbalance(found.splits['train'], 1):
        yield sizes
    yield ''
    yield f'sizes: {_sizes(found)}'
    yield f"modes: {', '.join(f'{mode} {count:,}' for mode, count in found.modes.most_common())}"
    if found.turned:
        yield f'turned by their EXIF orientation: {found.turned:,}'
    if found.sixteen_bit:
        yield f'with 16 bits per value: {found.sixteen_bit:,}'
    yield f'exact duplicates: {found.duplicates.within:,} within splits, {found.duplicates.across:,} across splits'
    if found.left_out:
        yield f'left out: {left_out_line(found.left_out)}'
    yield ''
    yield format_table(('label column', 'type', 'distinct'), [
        (f'{column.name} (used)' if column.used else column.name, column.kind,
         '-' if column.distinct is None else f'{column.distinct:,}') for column in found.label_columns])
    if found.notes or found.warnings:
        yield ''
    yield from (f'note: {note}' for note in found.notes)
    yield from (f'warning: {warning}' for warning in found.warnings)


def _classes(found: Inspection) -> str:
    counts = {role: each.per_class for role, each in found.splits.items()}
    shown, title = found.classes, 'class'
    if len(shown) > MANY_CLASSES:
        by_size = sorted(shown, key=lambda name: (counts['train'] or {}).get(name, 0))
        shown = [*by_size[:SHOWN], *by_size[-SHOWN:]]
        title = f'smallest and largest {SHOWN} of {len(found.classes)} classes'
    return format_table((title, *counts), [
        (name, *('-' if each is None else f'{each[name]:,}' for each in counts.values())) for name in shown])


def _sizes(found: Inspection) -> str:
    """Range and median of width and height, and the most frequent size."""
    if not found.sizes:
        return '-'
    (width, height), most = found.sizes.most_common(1)[0]
    if len(found.sizes) == 1:
        return f'all {width}x{height}'
    ranges = []
    for axis, name in enumerate(('width', 'height')):
        sides = sorted(size[axis] for size, count in found.sizes.items() for _ in range(count))
        ranges.append(f'{name} {sides[0]} to {sides[-1]}, median {sides[len(sides) // 2]}')
    return f'{"; ".join(ranges)}; most frequent {width}x{height} ({most:,})'
