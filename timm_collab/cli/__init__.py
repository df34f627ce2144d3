"""The command `timm-collab`: the package's door for a shell.

In: a command line. Out: an exit status and lines on the screen. Nothing is computed here: a command calls the library.

Each module of `commands/` is a command, by its name with dashes for underscores. Its docstring's first line is the
command's help, `configure(parser)` adds its options, and `run(args)` does it and returns the exit status; what is heavy
is imported there. A command that passes options on sets `TAKES_REST = True` and finds them in `args.rest`.
"""
from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from . import commands

DESCRIPTION = """\
Collaborative learning for any timm image classifier: train a tree of heads, keep one, deploy plain timm."""
EPILOG = """\
exit status: 0, 2 for a mistake in what was asked (one line on stderr says which), 130 when interrupted, 75 when a
signal stopped training after it saved: the same command goes on from there."""


def find_commands() -> dict[str, ModuleType]:
    """The commands by name."""
    found = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    return {name.replace('_', '-'): importlib.import_module(f'{commands.__name__}.{name}') for name in found}


def build_parser() -> argparse.ArgumentParser:
    """The parser, with a sub-parser for each command."""
    parser = argparse.ArgumentParser(
        prog='timm-collab',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--version', action='version', version=f'timm-collab {__version__}')
    children = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for name, module in find_commands().items():
        summary, _, details = (module.__doc__ or '').partition('\n')
        child = children.add_parser(
            name,
            help=summary,
            description=f'{summary}\n{details}'.strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            # A command that passes options on passes on the question what they are, too.
            add_help=not getattr(module, 'TAKES_REST', False),
        )
        module.configure(child)
        child.set_defaults(module=module, parser=child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments after the program's name; those of the process when None.

    Returns:
        Exit status, see `EPILOG`.
    """
    args, rest = build_parser().parse_known_args(argv)
    if rest and not getattr(args.module, 'TAKES_REST', False):
        args.parser.error(f'unrecognized arguments: {" ".join(rest)}')
    args.rest = rest

    from ..train.errors import TrainError
    try:
        return args.module.run(args)
    except TrainError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except BrokenPipeError:  # `timm-collab list architectures | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
