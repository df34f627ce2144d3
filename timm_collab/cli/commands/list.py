"""List what a recipe can name: architectures, recipes, optimizers, schedules.

FILTER is part of a name, or a pattern with * and ?.
"""
from __future__ import annotations

import argparse
import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _architectures() -> list[dict[str, Any]]:
    import timm
    return [{'name': name} for name in timm.list_models(exclude_filters='collab_*')]


def _recipes() -> list[dict[str, Any]]:
    from ...train.config.recipes import load_recipe, shipped_recipes
    return [
        # A recipe without a model only changes others.
        {'name': name, 'path': str(path), 'about': _about(path), 'whole': 'name' in load_recipe(path).get('model', {})}
        for name, path in shipped_recipes().items()
    ]


def _launches() -> list[dict[str, Any]]:
    from ...train.config.recipes import LAUNCH, shipped_recipes
    return [{'name': name, 'path': str(path), 'about': _about(path)} for name, path in shipped_recipes(LAUNCH).items()]


def _optimizers() -> list[dict[str, Any]]:
    import timm.optim
    return [{'name': name} for name in timm.optim.list_optimizers()]


def _schedules() -> list[dict[str, Any]]:
    import typing

    from ...train.config import SchedConfig
    return [{'name': name} for name in typing.get_args(typing.get_type_hints(SchedConfig)['name'])]


KINDS: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
    'recipes': ('--config NAME', _recipes),
    'architectures': ('--model.name collab_NAME', _architectures),
    'optimizers': ('--optim.name NAME', _optimizers),
    'schedules': ('--sched.name NAME', _schedules),
    'launches': ('train --launch NAME, settings of accelerate launch', _launches),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('kind', nargs='?', choices=KINDS, default='recipes', metavar='KIND',
                        help=f'one of {", ".join(KINDS)} (default: recipes)')
    parser.add_argument('filter', nargs='?', default='*', metavar='FILTER', help='part of the name, or a pattern')
    parser.add_argument('--json', action='store_true', help='print a JSON list')


def run(args: argparse.Namespace) -> int:
    """Print the names, in the order in which they are found."""
    from ...train.errors import nearest, require
    use, entries = KINDS[args.kind]
    pattern = args.filter if any(sign in args.filter for sign in '*?[') else f'*{args.filter}*'
    every = entries()
    found = [entry for entry in every if fnmatch.fnmatch(entry['name'], pattern)]
    require(bool(found), f"none of the {len(every)} {args.kind} matches '{args.filter}'"
                         f'{nearest(args.filter, [entry["name"] for entry in every])}')
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    width = max(len(entry['name']) for entry in found)
    for entry in found:
        name = entry['name'] if 'about' not in entry else entry['name'].ljust(width)
        part = '' if entry.get('whole', True) else '(part) '
        print(f'{name}  {part}{entry.get("about", "")}'.rstrip())
    if args.kind in ('recipes', 'launches'):
        combined = '; a (part) is combined with another recipe: --config A --config B' if args.kind == 'recipes' else ''
        print(f'\n{use}{combined}')
    return 0


def _about(path: Path) -> str:
    """First sentence of the comment at the start of a file."""
    lines = []
    for line in path.read_text(encoding='utf-8').splitlines():
        if not line.startswith('# '):
            break
        lines.append(line.removeprefix('# '))
    return ' '.join(lines).split('. ')[0].split(': ')[0].rstrip('.')
