"""Command line and YAML recipes to a validated `TrainConfig`, by way of jsonargparse."""
from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from .config import TrainConfig
from .errors import TrainError, nearest

_UNKNOWN_KEY = re.compile(r"Option '([\w.+-]+)' is not accepted|unrecognized arguments: (?:--)?([^\s=]+)")
_NO_RECIPE = ('Problems parsing config', 'Unexpected config')


def recipe_folders() -> list[Path]:
    """Where bare recipe names are looked up: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files('timm_collab')))
    return [folder for folder in (package / 'recipes', package.parent / 'recipes') if folder.is_dir()]


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, else the shipped recipe of that name.

    Raises:
        TrainError: There is neither; the message lists the shipped recipes.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {
        file.stem: file
        for folder in reversed(recipe_folders())  # the package's own go before what lies beside it
        for file in sorted(folder.glob('*.yaml'))
    }
    if name in shipped:
        return shipped[name]
    raise TrainError(f"no recipe '{name}': write the path of a YAML file or one of {', '.join(sorted(shipped))}"
                     f'{nearest(name, shipped)}')


def _keys(config: type, prefix: str = '') -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _keys(hints[field.name], f'{prefix}{field.name}.')
        else:
            yield f'{prefix}{field.name}', hints[field.name], field


def build_parser() -> ArgumentParser:
    """The parser: one documented, typed option for each key of the recipe."""
    parser = ArgumentParser(
        prog='python -m timm_collab.train',
        description='Train a head tree on images, keep its best head, save it as a plain timm model. Every key can'
                    ' stand in a YAML recipe (--config) or on the command line, which wins.',
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        '--config',
        action='config',
        help='recipe: a YAML file, or the name of a shipped one (quickstart)',
    )
    for name, hint, field in _keys(TrainConfig):
        made = field.default_factory() if callable(field.default_factory) else field.default
        parser.add_argument(f'--{name}', type=hint, default=made, help=field.metadata['help'])
    return parser


def _with_recipe_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace the bare names given to `--config` by files; the arguments, and those files."""
    arguments: list[str] = []
    files: list[str] = []
    for argument in argv:
        if argument.startswith('--config='):
            arguments.append('--config')
            argument = argument.removeprefix('--config=')
        if arguments and arguments[-1] == '--config':
            argument = str(find_recipe(argument))
            files.append(argument)
        arguments.append(argument)
    return arguments, files


def _explain(error: Exception, files: Sequence[str]) -> str:
    """One line for what jsonargparse refused, with the nearest valid key for an unknown one."""
    message = ' '.join(str(error).split())
    if match := _UNKNOWN_KEY.search(message):
        unknown = match.group(1) or match.group(2)
        return f"unknown key '{unknown}'{nearest(unknown, [name for name, _, _ in _keys(TrainConfig)])}"
    if message.startswith(_NO_RECIPE):
        return f"recipe {' '.join(files)} is no YAML mapping of keys to values: {message}"
    message = re.sub(r"<class '(\w+)'>", r'\1', message.replace('typing.', ''))
    return re.sub(r'^Parser key "([\w.]+)":', r'\1:', message)


def from_mapping(config: type, values: dict[str, Any]) -> Any:
    """Build a config dataclass, nested groups first, from plain data of the right types."""
    hints = typing.get_type_hints(config)
    return config(**{
        name: from_mapping(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    })


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Read a command line.

    Args:
        argv: Arguments after the program's name. `--help` and `--print_config` print and exit.

    Raises:
        TrainError: An unknown recipe or key, a value of the wrong type, or one that its config refuses.
    """
    parser = build_parser()
    arguments, files = _with_recipe_files(argv)
    try:
        values = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise TrainError(_explain(error, files)) from None
    del values['config']
    return from_mapping(TrainConfig, values)
