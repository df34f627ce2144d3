"""Parse a command line and YAML recipes into a validated `TrainConfig`, with jsonargparse."""
from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, cast

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ..errors import TrainError, nearest, one_line, require
from . import TrainConfig
from .recipes import compose, find_recipe, load_recipe

_WRONG_TYPE = re.compile(r'^Parser key "([\w.]+)":.*(?:Got value|Given value): (.*)$')
_UNKNOWN_KEY = re.compile(r"Option '([\w.+-]+)' is not accepted|unrecognized arguments: (?:--)?([^\s=]+)")


def _keys(config: type, prefix: str = '') -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _keys(hints[field.name], f'{prefix}{field.name}.')
        else:
            yield f'{prefix}{field.name}', hints[field.name], field


def build_parser() -> ArgumentParser:
    """Parser with one documented, typed option per key of a recipe."""
    parser = ArgumentParser(
        prog='python -m timm_collab.train',
        description='Train a head tree on images, keep its best head, and save it as a plain timm model. Every key can'
                    ' be set in a YAML recipe (--config) or on the command line, which takes precedence.',
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        '--config',
        action='config',
        help="recipe: a YAML file, or the name of a shipped one (quickstart); each of several overrides those before"
             " it. In a recipe, the key 'base' names one or several recipes to build on",
    )
    for name, hint, field in _keys(TrainConfig):
        default = field.default_factory() if callable(field.default_factory) else field.default
        parser.add_argument(f'--{name}', type=hint, default=default, help=field.metadata['help'])
    return parser


def _without_recipes(argv: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Separate a command line into arguments without `--config`, and the files of the recipes in order."""
    arguments: list[str] = []
    files: list[Path] = []
    remaining = iter(argv)
    for argument in remaining:
        option, equals, value = argument.partition('=')
        if option != '--config':
            arguments.append(argument)
            continue
        name = value if equals else next(remaining, None)
        require(name is not None, '--config needs a recipe: a YAML file, or the name of a shipped one (quickstart)')
        files.append(find_recipe(str(name)))
    return arguments, files


def _explain(error: Exception) -> str:
    """The message of an error of jsonargparse on one line, with similar keys for an unknown one."""
    message = one_line(error)
    if match := _UNKNOWN_KEY.search(message):
        unknown = match.group(1) or match.group(2)
        known = [name for name, _, _ in _keys(TrainConfig)]
        if unknown in known:  # key and value were quoted together
            return f"'--{unknown}' and its value are one argument with a space in it: write --{unknown}=VALUE"
        return f"unknown key '{unknown}'{nearest(unknown, known)}"
    if match := _WRONG_TYPE.search(message):
        name, value = match.groups()
        hint = next((hint for known, hint, _ in _keys(TrainConfig) if known == name), None)
        choices = [each for kind in (hint, *typing.get_args(hint)) for each in typing.get_args(kind)
                   if isinstance(each, str)]
        message = f'{name} must be {_type_text(hint)}, got {value}{nearest(value, choices)}'
        if re.search(r'^\{.*:\S', value):
            message += '; YAML needs a space after a colon, as in {name: 1}'
        return message
    return re.sub(r'^Parser key "([\w.]+)":', r'\1:', message)


def _type_text(hint: Any) -> str:
    """What a value of a type looks like on a command line."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        *first, last = map(str, inner)
        return ' or '.join([', '.join(first), last] if first else [last])
    if origin is list:
        if typing.get_origin(inner[0]) is list:
            return 'a list of lists such as [[1, 0], [0, 1]]'
        examples = {int: 'integers such as [1, 2]', float: 'numbers such as [0.5, 1]'}
        return f'a list of {examples.get(inner[0]) or _type_text(inner[0])}'
    if origin in (Union, UnionType):
        return ' or '.join(_type_text(each) for each in inner if each is not NoneType)
    if dict in (hint, origin):
        return 'a mapping such as {name: 1}'
    return {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text'}.get(hint, 'another type')


def from_mapping(config: type, values: dict[str, Any]) -> Any:
    """Build a config dataclass and its nested groups from plain data of the right types."""
    hints = typing.get_type_hints(config)
    return config(**{
        name: from_mapping(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    })


def parse_config(argv: Sequence[str]) -> TrainConfig:
    """Parse a command line.

    Args:
        argv: Arguments after the program's name. `--help` and `--print_config` print and exit.

    Raises:
        TrainError: Unknown recipe or key, value of the wrong type, or value that its config refuses.
    """
    return cast(TrainConfig, from_mapping(TrainConfig, parse_values(argv)))


def parse_values(argv: Sequence[str]) -> dict[str, Any]:
    """Parse a command line into the values of all keys, nested by group, for who needs a few groups and no model.

    Raises:
        TrainError: Unknown recipe or key, or value of the wrong type.
    """
    arguments, files = _without_recipes(argv)
    return _values_of(compose([load_recipe(file) for file in files]), arguments)


def config_of(recipe: Mapping[str, Any], arguments: Sequence[str] = ()) -> TrainConfig:
    """Build a config from the keys of a recipe and from command-line options, which take precedence.

    Raises:
        TrainError: Unknown key, value of the wrong type, or value that its config refuses.
    """
    return cast(TrainConfig, from_mapping(TrainConfig, _values_of(recipe, arguments)))


def _values_of(recipe: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    # The recipe comes first, so that options take precedence wherever --config was on the command line.
    config = ['--config', yaml.safe_dump(dict(recipe), sort_keys=False)] if recipe else []
    try:
        values = build_parser().parse_args([*config, *arguments]).as_dict()
    except ArgumentError as error:
        raise TrainError(_explain(error)) from None
    del values['config']
    return dict(values)
