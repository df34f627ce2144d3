"""The command-line program `timm-collab`.

In: a command line. Out: an exit status and printed text. Nothing is computed here: a command calls the library.

Each module of `commands/` is a command, named after the module with dashes for underscores. The first line of its
docstring is the command's help. `configure(parser)` adds its options. `run(args)` runs it and returns the exit status;
slow imports belong there. A command that forwards options sets `TAKES_REST = True` and gets them in `args.rest`.
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
exit status: 0 on success, 2 for invalid input (with one line on stderr), 130 when interrupted, 75 when a signal stopped
training after a checkpoint was saved: the same command resumes it."""


def find_commands() -> dict[str, ModuleType]:
    """All commands by name."""
    found = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    return {name.replace('_', '-'): importlib.import_module(f'{commands.__name__}.{name}') for name in found}


def build_parser() -> argparse.ArgumentParser:
    """The argument parser, with a subparser per command."""
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
            # A command that forwards options adds the help of those to its own.
            add_help=not getattr(module, 'TAKES_REST', False),
        )
        module.configure(child)
        child.set_defaults(module=module, parser=child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments without the program's name, default those of the process.

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
