"""Command line and YAML recipes to a validated `TrainConfig`, by way of jsonargparse."""
from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ..errors import TrainError, nearest, one_line, require
from . import TrainConfig
from .recipes import compose, find_recipe, load_recipe

_UNKNOWN_KEY = re.compile(r"Option '([\w.+-]+)' is not accepted|unrecognized arguments: (?:--)?([^\s=]+)")


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
        help="recipe: a YAML file, or the name of a shipped one (quickstart); of several each is laid over those before"
             " it. A recipe's own key 'base' names the recipe or recipes that it builds on",
    )
    for name, hint, field in _keys(TrainConfig):
        made = field.default_factory() if callable(field.default_factory) else field.default
        parser.add_argument(f'--{name}', type=hint, default=made, help=field.metadata['help'])
    return parser


def _without_recipes(argv: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Take `--config` out of a command line: the other arguments, and the files of the recipes, in order."""
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
    """One line for what jsonargparse refused, with the nearest valid key for an unknown one."""
    message = one_line(error)
    if match := _UNKNOWN_KEY.search(message):
        unknown = match.group(1) or match.group(2)
        known = [name for name, _, _ in _keys(TrainConfig)]
        if unknown in known:  # quoted as one argument
            return f"'--{unknown}' and its value are one argument with a space in it: write --{unknown}=VALUE"
        return f"unknown key '{unknown}'{nearest(unknown, known)}"
    message = re.sub(r"<class '(\w+)'>", r'\1', message.replace('typing.', ''))
    if re.search(r'Expected a dict\. Got value: \{.*:\S', message):
        message += '; YAML wants a space after a colon, as in {name: 1}'
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
    arguments, files = _without_recipes(argv)
    return config_of(compose([load_recipe(file) for file in files]), arguments)


def config_of(recipe: Mapping[str, Any], arguments: Sequence[str] = ()) -> TrainConfig:
    """Make a config of a recipe's keys and of options, which win.

    Raises:
        TrainError: An unknown key, a value of the wrong type, or one that its config refuses.
    """
    # One recipe, and first: the command line wins wherever on it --config stands.
    whole = ['--config', yaml.safe_dump(dict(recipe), sort_keys=False)] if recipe else []
    try:
        values = build_parser().parse_args([*whole, *arguments]).as_dict()
    except ArgumentError as error:
        raise TrainError(_explain(error)) from None
    del values['config']
    return from_mapping(TrainConfig, values)
