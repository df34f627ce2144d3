"""Evaluate a finished run: every head, the consensus and the pruned model, overall and by class.

Reads the run's folder, computes on a GPU if there is one, and writes validation.json into the folder.
"""
from __future__ import annotations

import argparse
import json
from typing import Any

from ..table import format_table

TAKES_REST = True
MANY_CLASSES = 20
MOST_CONFUSED = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('-h', '--help', action='help', help='show this help message and exit')
    parser.add_argument('run', metavar='RUN', help='folder that training wrote')
    parser.add_argument('--split', default='test',
                        help="test or val, the run's own, or the name of a split of the data (default: test)")
    parser.add_argument('--batch-size', type=int, help="images per batch (default: the run's batch size)")
    parser.add_argument('--device', help='where to compute, e.g. cpu (default: a GPU if there is one)')
    parser.add_argument('--json', action='store_true', help='print the content of validation.json')
    parser.add_argument_group('data', "--data.path and any other key of the recipe's data replace the run's")


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print a table."""
    import dataclasses

    from ...train.config.parse import parse_config
    from ...train.data.labels.class_names import listed
    from ...train.errors import require
    from ...train.paths import CONFIG, VALIDATION
    from ...train.record.finished_run import load_run
    from ...train.validate import validate
    require(args.batch_size is None or args.batch_size >= 1, f'--batch-size must be at least 1, got {args.batch_size}')
    saved = load_run(args.run)
    other = [word for word in args.rest if word.startswith('-') and not word.startswith('--data.')]
    require(not other, f"unknown option '{' '.join(other)}': of a recipe's keys only those of data can be given here,"
                       ' e.g. --data.path')
    asked = parse_config(['--config', str(saved.path / CONFIG), *args.rest])
    result = validate(saved, args.split, dataclasses.asdict(asked.data), args.batch_size, args.device)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{saved.summary.network} of {args.run} on split '{result['split']}' of {result['data']},"
          f' {result["count"]:,} images\n')
    print(_scores(result))
    print(f'\n{_legend(result)}\n')
    print(_classes(result['per_class']))
    if result['confusion'] and (confused := _confused(result)):
        print(f'\n{confused}')
    absent = [row['name'] or row['label'] for row in result['per_class'] if not row['count']]
    if absent:
        print(f"no image of {len(absent)} {'class' if len(absent) == 1 else 'classes'}: {listed(absent)}")
    print(f'\nwritten to {saved.path / VALIDATION}')
    return 0


def _scores(result: dict[str, Any]) -> str:
    named = [
        *(
            (f'head {head} (kept)' if head == result['kept_head'] else f'head {head}', row)
            for head, row in enumerate(result['heads'])
        ),
        ('consensus', result['consensus']),
        ('pruned, by plain timm', result['pruned']),
    ]
    if 'map' in result['consensus']:
        return format_table(('', 'mAP', 'micro F1', 'macro F1', 'BCE'), [
            (name, _percent(row['map']), f'{row["f1_micro"]:.2f}', _percent(row['f1_macro']), f'{row["bce"]:.4f}')
            for name, row in named
        ])
    return format_table(('', 'top-1', 'balanced', 'top-5', 'NLL', 'ECE'), [
        (name, f'{row["top1"]:.2f}', f'{row["balanced"]:.2f}', _percent(row['top5']), f'{row["nll"]:.4f}',
         f'{row["ece"]:.2f}')
        for name, row in named
    ])


def _legend(result: dict[str, Any]) -> str:
    if 'map' in result['consensus']:
        return ('mAP: average precision in %, mean over classes; below for each. F1 in %, of labels with a probability'
                ' over 0.5. BCE: binary cross-entropy in nats.')
    return ('top-1, top-5: accuracy in %. balanced: top-1, mean over classes; below for each. NLL: negative'
            f' log-likelihood in nats. ECE: calibration error in %, {result["ece_bins"]} bins.')


def _classes(per_class: list[dict[str, Any]]) -> str:
    seen = [row for row in per_class if row['count']]
    by = 'ap' if 'ap_kept' in per_class[0] else 'top1'
    shown, title = seen, 'class'
    if len(seen) > MANY_CLASSES:
        shown = sorted(seen, key=lambda row: row[f'{by}_kept'])[:MANY_CLASSES]
        title = f'worst {MANY_CLASSES} of {len(seen)} classes'
    return format_table((title, 'images', 'kept head', 'consensus'), [
        (_name(row), f'{row["count"]:,}', _percent(row[f'{by}_kept']),
         _percent(row[f'{by}_consensus']))
        for row in shown
    ])


def _confused(result: dict[str, Any]) -> str:
    """The pairs of classes that the kept head confuses most, as a table; empty where it makes no mistake."""
    classes = result['per_class']
    pairs = [(count, label, predicted) for label, row in enumerate(result['confusion'])
             for predicted, count in enumerate(row) if count and predicted != label]
    worst = sorted(pairs, key=lambda pair: (-pair[0], *pair[1:]))[:MOST_CONFUSED]
    return '' if not worst else format_table(('most confused', 'taken for', 'images', 'of the class, %'), [
        (_name(classes[label]), _name(classes[predicted]), f'{count:,}', f'{100 * count / classes[label]["count"]:.2f}')
        for count, label, predicted in worst
    ])


def _name(row: dict[str, Any]) -> str:
    return row['name'] or str(row['label'])


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f}'
