"""Recipes as files: find them by name, load them with their bases, and merge several."""
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
"""Key of a recipe that isn't a key of `TrainConfig`: the recipe or recipes that it builds on."""

LAUNCH = 'accelerate'
"""Folder beside the recipes with settings for `accelerate launch --config_file`, which are not recipes."""


class _Loader(yaml.SafeLoader):
    """YAML loader that reads `1e-4` as a number, which is a string in YAML 1.1."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$'), list('-+0123456789'))


def recipe_folders() -> list[Path]:
    """Folders with shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files('timm_collab')))
    return [folder for folder in (package / 'recipes', package.parent / 'recipes') if folder.is_dir()]


def shipped_recipes(part: str | None = None) -> dict[str, Path]:
    """Names and files of the shipped recipes, such as `quickstart` or `cifar10/resnet32`.

    Args:
        part: The folder `LAUNCH` for the settings of `accelerate launch`, None for recipes.
    """
    found = {
        file.relative_to(folder).with_suffix('').as_posix(): file
        for folder in reversed(recipe_folders())  # those inside the package take precedence
        for file in folder.rglob('*.yaml')
    }
    return {name: found[name] for name in sorted(found) if (name.split('/')[0] == LAUNCH) == (part == LAUNCH)}


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a path if there is such a file, otherwise a shipped recipe of that name.

    Args:
        name: Path or name.
        beside: Folder of the recipe that builds on this one; paths are relative to it, with or without `.yaml`.

    Raises:
        TrainError: There is no such file or recipe; the message lists the shipped recipes.
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
    """Read a YAML file that maps keys to values. An empty file is an empty mapping.

    Args:
        path: The file.
        kind: What the file is, for the error message.

    Raises:
        TrainError: The file can't be read or contains something else.
    """
    try:
        values = yaml.load(path.read_text(encoding='utf-8'), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise TrainError(f'{kind} {path} is not a YAML mapping of keys to values: {reason}') from None
    values = {} if values is None else values
    require(isinstance(values, dict) and all(isinstance(name, str) for name in values),
            f'{kind} {path} is not a YAML mapping of keys to values: it contains {type(values).__name__}')
    return dict(values)


def load_recipe(path: Path, below: Sequence[Path] = ()) -> dict[str, Any]:
    """Load a recipe with the recipes that its `base` names: each overrides those before it, the recipe all of them.

    Args:
        path: The file.
        below: Files of the recipes that build on this one.

    Raises:
        TrainError: The file can't be read, isn't a mapping, has an unknown base, or is among its own bases.
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
    """Merge recipes; later ones override earlier ones.

    Groups are merged key by key, and so are keys with further arguments (`model.kwargs`). Any other value replaces the
    earlier one, including a tree that is written as a mapping.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        result = _merge(TrainConfig, result, layer)
    return result


def _merge(config: type | None, base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    hints = {} if config is None else typing.get_type_hints(config)
    merged_dicts = set() if config is None else {
        field.name for field in dataclasses.fields(config) if field.default_factory is dict
    }
    result = dict(base)
    for name, value in override.items():
        group, inner = (name, value) if config is None else _expand(name, value)
        hint = hints.get(group)
        nested = hint if dataclasses.is_dataclass(hint) else None
        if nested is not None:
            inner = {} if inner is None else inner
            require(isinstance(inner, Mapping), f"'{group}' is a group of keys, such as {group}."
                                                f'{dataclasses.fields(nested)[0].name}, got {inner!r}')
        if isinstance(inner, Mapping) and (nested is not None or group in merged_dicts):
            earlier = result.get(group)
            inner = _merge(typing.cast('type | None', nested), earlier if isinstance(earlier, Mapping) else {}, inner)
        result[group] = inner
    return result


def _expand(name: str, value: Any) -> tuple[str, Any]:
    """Expand `optim.lr: 0.3` into `optim: {lr: 0.3}`."""
    group, dot, rest = name.partition('.')
    return (group, {rest: value}) if dot else (name, value)
