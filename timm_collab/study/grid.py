"""Read the cells of a study from a YAML file: every method in every setting with every seed.

Keys of the file; for a key of the recipe that is set more than once, the later in this order wins:

- `about`: the question, for the report.
- `recipes`, `keys`: recipes and keys of every run.
- `settings`: axes, each a mapping from values to keys of the recipe. Every combination of values is a setting.
- `methods`: names, each with `recipes` and `keys`. `seeds` and `settings` (a list of values per axis) restrict the runs
  of a method. `needs` names a method whose run with the same setting and seed comes first; `{name}` in the keys stands
  for its folder.
- `baseline`: the method that the others are compared with.
- `seeds`: the seeds.
"""
from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..train.config import TrainConfig
from ..train.config.parse import config_of, from_mapping
from ..train.config.recipes import compose, find_recipe, load_recipe, read_mapping
from ..train.errors import TrainError, nearest, require

_KEYS = ('about', 'recipes', 'keys', 'settings', 'methods', 'baseline', 'seeds')
_METHOD_KEYS = ('recipes', 'keys', 'seeds', 'settings', 'needs')


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Args:
        method: Name of the method.
        setting: Name of the setting, the values of the axes joined by commas; '' without axes.
        seed: Seed of the recipe.
        config: Complete recipe, with `placeholder(needs.method)` for the folder of a needed cell.
        needs: Cell that has to finish first.
    """

    method: str
    setting: str
    seed: int
    config: TrainConfig = field(compare=False)
    needs: Cell | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Name for files, unique in the study."""
        parts = [re.sub(r'[^\w.]+', '-', part).strip('-') for part in (self.setting, self.method)]
        return '/'.join([*filter(None, parts), f'seed-{self.seed}'])


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Args:
        about: The question, for the report.
        methods: Names of the methods, in the file's order.
        settings: Names of the settings.
        seeds: The seeds.
        baseline: Method that the others are compared with.
        cells: All runs, seed by seed, so that an interrupted study has all methods with fewer seeds.
        noise_axes: Settings by noise rate, for each axis whose values set only `noise.rate` and each combination of the
            other axes' values (named by those values, joined by commas).
    """

    about: str
    methods: tuple[str, ...]
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    cells: tuple[Cell, ...]
    noise_axes: Mapping[str, Mapping[float, str]] = field(default_factory=dict)


def read_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study and check the recipe of every cell.

    Args:
        path: YAML file. Its recipes are looked up beside it, then among the shipped ones.
        overrides: Keys for every run, which override the file.

    Raises:
        TrainError: The file can't be read, a key is missing, unknown or invalid, or the recipe of a cell is invalid.
    """
    require('seed' not in (overrides or {}), "--set seed: the seeds are the study's, write them into its grid")
    require(path.is_file(), f"no study '{path}': write the path of a YAML file")
    values = read_mapping(path, 'study')
    _check_keys(values, _KEYS, f'study {path}')
    methods: Any = values.get('methods')
    require(isinstance(methods, Mapping) and bool(methods), f'study {path}: methods must map names to what they change')
    for name, method in methods.items():
        require(isinstance(name, str), f'study {path}: the name of method {name!r} must be text: put it in quotes')
        require(isinstance(method, Mapping), f"study {path}: method '{name}' must hold recipes or keys, got {method!r}")
        _check_keys(method, _METHOD_KEYS, f"study {path}: method '{name}'")
    seeds = _seeds(values.get('seeds'), f'study {path}')
    baseline: Any = values.get('baseline')
    require(baseline in methods, f"study {path}: baseline '{baseline}' is none of the methods, {', '.join(methods)}"
                                 f'{nearest(str(baseline), methods)}')
    axes: Any = values.get('settings') or {}
    settings = _settings(axes, path)
    chosen = {name: _chosen(method, axes, settings, seeds, f"study {path}: method '{name}'")
              for name, method in methods.items()}
    below = [*_recipes(values, path), values.get('keys') or {}]
    configs = {}
    for (setting, setting_keys), (name, method) in itertools.product(settings.items(), methods.items()):
        layers = [*below, setting_keys, *_recipes(method, path), method.get('keys') or {}, overrides or {}]
        own = [seed for seed in seeds if (setting, seed) in chosen[name]]
        if own:
            config = _config([*layers, {'seed': own[0]}], f"method '{name}', setting '{setting}', seed {own[0]}")
            configs.update({(seed, setting, name): dataclasses.replace(config, seed=seed) for seed in own})
    needed = {name: _needed(methods, name, path) for name in methods}
    cells = []
    for seed, setting, name in itertools.product(seeds, settings, methods):
        if (seed, setting, name) not in configs:
            continue
        cell = Cell(name, setting, seed, configs[seed, setting, name])
        _check_placeholders(cell, methods, needed[name])
        if (other := needed[name]) is not None:
            require((seed, setting, other) in configs,
                    f"method '{name}', setting '{setting}', seed {seed}: it needs method '{other}', which doesn't run"
                    ' there')
            cell = dataclasses.replace(cell, needs=Cell(other, setting, seed, configs[seed, setting, other]))
        cells.append(cell)
    require(len({cell.name for cell in cells}) == len(cells),
            f'study {path}: names of methods or settings differ in punctuation only: change one')
    return Study(str(values.get('about') or ''), tuple(methods), tuple(settings), tuple(seeds), baseline, tuple(cells),
                 _noise_axes(axes))


def placeholder(method: str) -> str:
    """Text in the keys of a recipe that stands for the run folder of a needed method."""
    return f'{{{method}}}'


def filled(cell: Cell, needed_folder: Path) -> TrainConfig:
    """Recipe of a cell that needs another, with the folder of that one filled in."""
    assert cell.needs is not None
    values = _replaced(cell.config.to_dict(), placeholder(cell.needs.method), str(needed_folder))
    return from_mapping(TrainConfig, values)


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _replaced(inner, old, new) for name, inner in value.items()}
    return new if value == old else value


def _needed(methods: Mapping[str, Any], name: str, path: Path) -> str | None:
    """Method that a method needs, None without one."""
    other = methods[name].get('needs')
    if other is None:
        return None
    require(other in methods and other != name,
            f"study {path}: method '{name}': needs '{other}', which is no other method{nearest(str(other), methods)}")
    require(methods[other].get('needs') is None,
            f"study {path}: method '{name}': needs '{other}', which needs another method itself: one level is possible")
    return str(other)


def _check_placeholders(cell: Cell, methods: Iterable[str], needed: str | None) -> None:
    """Check that a recipe has the placeholder of the method that it needs, and no other."""
    values = cell.config.to_dict()
    for other in methods:
        named = _replaced(values, placeholder(other), '') != values
        require(named == (other == needed),
                f"method '{cell.method}': write needs: {other}, as its keys name '{placeholder(other)}'" if named else
                f"method '{cell.method}': it needs '{other}', but no key names '{placeholder(other)}', its folder")


def _settings(axes: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Keys of each combination of the axes' values, by its name."""
    require(isinstance(axes, Mapping) and all(isinstance(axis, Mapping) and axis for axis in axes.values())
            and all(isinstance(keys, Mapping) for axis in axes.values() for keys in axis.values()),
            f'study {path}: settings must map axes to values, and each value to keys of the recipe')
    return {
        _name(value for value, _ in chosen): compose([keys for _, keys in chosen])
        for chosen in itertools.product(*(axis.items() for axis in axes.values()))
    }


def _noise_axes(axes: Mapping[str, Any]) -> dict[str, dict[float, str]]:
    """Value of `Study.noise_axes`."""
    found: dict[str, dict[float, str]] = {}
    for axis, values in axes.items():
        composed = {value: compose([keys]) for value, keys in values.items()}
        rates = {value: keys['noise']['rate'] for value, keys in composed.items()
                 if list(keys) == ['noise'] and list(keys['noise']) == ['rate']}
        if len(set(rates.values())) < 2:
            continue
        for chosen in itertools.product(*(list(rates) if name == axis else list(axes[name]) for name in axes)):
            by_axis = dict(zip(axes, chosen, strict=True))
            others = _name(value for name, value in by_axis.items() if name != axis)
            found.setdefault(others, {})[float(rates[by_axis[axis]])] = _name(chosen)
    return found


def _chosen(
    method: Mapping[str, Any], axes: Mapping[str, Any], settings: Mapping[str, Any], seeds: list[int], where: str,
) -> set[tuple[str, int]]:
    """Settings and seeds that a method runs with: all of them, unless it restricts them."""
    only: Any = method.get('settings') or {}
    require(isinstance(only, Mapping) and all(isinstance(values, list) and values for values in only.values()),
            f'{where}: settings must map axes to lists of their values, got {only!r}')
    _check_keys(only, tuple(axes), f'{where}: settings')
    for axis, values in only.items():
        _check_keys(dict.fromkeys(map(str, values)), tuple(map(str, axes[axis])), f'{where}: settings: {axis}')
    chosen = {axis: [value for value in known if str(value) in map(str, only.get(axis, known))]
              for axis, known in axes.items()}
    own = _seeds(method.get('seeds', seeds), where)
    require(set(own) <= set(seeds), f"{where}: seeds {own} aren't all among those of the study, {seeds}")
    names = {_name(values) for values in itertools.product(*chosen.values())}
    return set(itertools.product((name for name in settings if name in names), own))


def _seeds(values: Any, where: str) -> list[int]:
    require(isinstance(values, list) and bool(values) and all(isinstance(seed, int) for seed in values)
            and len(set(values)) == len(values),
            f'{where}: seeds must be a list of different integers, got {values!r}')
    return values


def _name(values: Iterable[Any]) -> str:
    return ', '.join(map(str, values))


def _recipes(values: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    names = values.get('recipes') or []
    require(isinstance(names, list) and all(isinstance(name, str) for name in names),
            f'study {path}: recipes must be a list of names or paths, got {names!r}')
    return [load_recipe(find_recipe(name, path.parent)) for name in names]


def _config(layers: list[Mapping[str, Any]], where: str) -> TrainConfig:
    try:
        config = config_of(compose(layers))
    except TrainError as error:
        raise TrainError(f'{where}: {error}') from None
    # The single network is a method of its own.
    return dataclasses.replace(config, compare_single=False, compare_plain=False)


def _check_keys(values: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for name in values:
        require(name in known, f"{where}: unknown key '{name}', it takes {', '.join(known)}{nearest(str(name), known)}")
