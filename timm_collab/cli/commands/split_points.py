"""Show where an architecture can fork, what crosses there and what a fork costs."""
from __future__ import annotations

import argparse
import dataclasses
import json

from ..table import format_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('architecture', metavar='ARCH', help='a name from `timm-collab list architectures`')
    parser.add_argument('--img-size', type=int, help="side of the square input; the architecture's own when left out")
    parser.add_argument('--in-chans', type=int, help='input channels')
    parser.add_argument('--json', action='store_true', help='print a JSON list')


def run(args: argparse.Namespace) -> int:
    """Print a row for each split point, in forward order."""
    import timm

    from ... import split_points
    from ...train.errors import TrainError, one_line, require, unknown_architecture
    from ...tree import PREFIX
    name = args.architecture.removeprefix(PREFIX)
    base = name.split('.')[0]
    if not timm.is_model(base):
        raise TrainError(unknown_architecture(base))
    for option in ('img_size', 'in_chans'):
        value = getattr(args, option)
        require(value is None or value >= 1, f'--{option.replace("_", "-")} must be at least 1, got {value}')
    kwargs = {key: value for key in ('img_size', 'in_chans') if (value := getattr(args, key)) is not None}
    source = timm.models.get_pretrained_cfg(base, allow_unregistered=True)
    if 'img_size' in kwargs and not (source is not None and source.fixed_input_size):
        # Convolutional networks take any size, and no such argument.
        raise TrainError(f"--img-size: '{base}' takes images of any size, and its split points are the same for each;"
                         ' leave it out')
    try:
        points = split_points(name, **kwargs)
    except (ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise TrainError(f"'{name}': {one_line(error)}") from error

    if args.json:
        print(json.dumps([{**dataclasses.asdict(point), 'cost': point.cost} for point in points], indent=2))
        return 0
    print(format_table(
        ('split point', 'what crosses', 'parameters after', 'two-way fork costs'),
        [
            (point.name, _shapes(point.shapes), f'{point.params_after:.1%}', f'{point.cost:.2f}x')
            for point in points
        ],
    ))
    network = points[0].network_macs if points else 0
    print(f'\nA fork costs multiply-adds relative to the network alone, {network / 1e9:.3g} G an image. B is the batch'
          " size.\nA tree names split points: --model.tree 'A:2,B:2' forks in two at A, and each branch again at B.")
    return 0


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ' + '.join('x'.join('B' if size == -1 else str(size) for size in shape) for shape in shapes)
