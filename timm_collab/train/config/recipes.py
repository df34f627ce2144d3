"""Recipes as files: where a name leads, what a recipe builds on, and several laid over one another."""
from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrainError, nearest, one_line, require
from . import TrainConfig

BASE = 'base'
"""The one key of a recipe that is no key of `TrainConfig`: the recipe, or recipes, that this one builds on."""

LAUNCH = 'accelerate'
"""Folder beside the recipes with what `accelerate launch --config_file` takes; they are no recipes."""


class _Loader(yaml.SafeLoader):
    """YAML whose numbers may be written `1e-4`: YAML 1.1 takes that for a word."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$'), list('-+0123456789'))


def recipe_folders() -> list[Path]:
    """Where recipe names are looked up: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files('timm_collab')))
    return [folder for folder in (package / 'recipes', package.parent / 'recipes') if folder.is_dir()]


def shipped_recipes(part: str | None = None) -> dict[str, Path]:
    """Name and file of every shipped recipe, such as `quickstart` or `cifar10/resnet32`.

    Args:
        part: The folder `LAUNCH` for the settings of `accelerate launch`, None for recipes.
    """
    found = {
        file.relative_to(folder).with_suffix('').as_posix(): file
        for folder in reversed(recipe_folders())  # the package's own go before what lies beside it
        for file in folder.rglob('*.yaml')
    }
    return {name: found[name] for name in sorted(found) if (name.split('/')[0] == LAUNCH) == (part == LAUNCH)}


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a path as it is, else the shipped recipe of that name.

    Args:
        name: What was written.
        beside: Folder of the recipe that builds on this one; a path is looked up there first, with or without `.yaml`.

    Raises:
        TrainError: There is neither; the message lists the shipped recipes.
    """
    if beside is None:
        candidates = [Path(name).expanduser()]
    else:
        candidates = [beside / Path(name).expanduser(), beside / f'{name}.yaml']
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = shipped_recipes()
    if name in shipped:
        return shipped[name]
    raise TrainError(f"no recipe '{name}': write the path of a YAML file or one of {', '.join(shipped)}"
                     f'{nearest(name, shipped)}')


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """Read a YAML file that maps keys to values; an empty one has none.

    Args:
        path: The file.
        kind: What it is, for the message.

    Raises:
        TrainError: It can't be read, or holds something else.
    """
    try:
        values = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise TrainError(f'{kind} {path} is no YAML mapping of keys to values: {reason}') from None
    values = {} if values is None else values
    require(isinstance(values, dict) and all(isinstance(name, str) for name in values),
            f'{kind} {path} is no YAML mapping of keys to values: it holds {type(values).__name__}')
    return dict(values)


def load_recipe(path: Path, below: Sequence[Path] = ()) -> dict[str, Any]:
    """Read a recipe and lay it over the recipes that its `base` names, the first of them undermost.

    Args:
        path: The file.
        below: The files that led here.

    Raises:
        TrainError: It can't be read, it is no mapping, a base is unknown, or a recipe is among its own bases.
    """
    path = path.resolve()
    chain = (*below, path)
    require(path not in below, f"recipe '{path}' builds on itself: {' -> '.join(each.name for each in chain)}")
    values = read_mapping(path, 'recipe')
    bases = values.pop(BASE, None) or []
    bases = [bases] if isinstance(bases, str) else bases
    require(isinstance(bases, list) and all(isinstance(base, str) for base in bases),
            f'recipe {path}: base must name a recipe, or several in a list, got {bases!r}')
    return compose([*(load_recipe(find_recipe(base, path.parent), chain) for base in bases), values])


def compose(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lay recipes over one another, the last on top.

    Groups are merged key by key, and so are keys that hold further arguments (`model.kwargs`); any other value, a tree
    written as a mapping included, replaces the one below.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        result = _over(TrainConfig, result, layer)
    return result


def _over(config: type | None, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    hints = {} if config is None else typing.get_type_hints(config)
    open_ended = set() if config is None else {
        field.name for field in dataclasses.fields(config) if field.default_factory is dict
    }
    result = dict(below)
    for name, value in above.items():
        group, inner = (name, value) if config is None else _dotted(name, value)
        hint = hints.get(group)
        nested = hint if dataclasses.is_dataclass(hint) else None
        if nested is not None:
            inner = {} if inner is None else inner
            require(isinstance(inner, Mapping), f"'{group}' is a group of keys, such as {group}."
                                                f'{dataclasses.fields(nested)[0].name}, got {inner!r}')
        if isinstance(inner, Mapping) and (nested is not None or group in open_ended):
            under = result.get(group)
            inner = _over(typing.cast('type | None', nested), under if isinstance(under, Mapping) else {}, inner)
        result[group] = inner
    return result


def _dotted(name: str, value: Any) -> tuple[str, Any]:
    """`optim.lr: 0.3` in a recipe is `optim: {lr: 0.3}`."""
    group, dot, rest = name.partition('.')
    return (group, {rest: value}) if dot else (name, value)
