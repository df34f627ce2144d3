"""`timm-collab export`, `push` and `catalogue`: their arguments, and what they do.

Each command is a pair of functions: one adds its arguments to a parser, one runs it and returns the exit status. What
can't be done is raised as `HubError` or `TrainError`, whose message is all that a user needs to see.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ..train.run_folder import CONFIG as RECIPE
from ..train.run_folder import PRUNED
from .check import check_reload, folder_logits
from .entry import add_entry
from .errors import require
from .export import ExportOptions, export_run
from .folder import check_folder
from .formats import FORMATS
from .push import PushOptions, access_token, push_folder
from .run import FinishedRun, needs_plugin

_EXPORT_OPTIONS = ('license', 'license_name', 'license_link', 'head', 'half', 'tree', 'labels', 'dataset', 'baseline')


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `timm-collab export`."""
    parser.description = 'Make a folder that plain timm and transformers load of a finished run, and check it.'
    parser.add_argument('run', type=Path, help='folder of a finished run')
    parser.add_argument('--output', type=Path, help='folder to create; RUN/export when left out')
    _add_export_options(parser)
    parser.add_argument('--formats', nargs='+', default=[], choices=FORMATS, metavar='FORMAT',
                        help="write pt2 (torch.export) or onnx as well, next to the folder; not for the Hub's")


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `timm-collab push`."""
    parser.description = ('Publish a head on the Hub, in one commit. The access token is that of hf auth login or'
                          ' HF_TOKEN.')
    parser.add_argument('run', type=Path, help='folder of a finished run, or one that export has made')
    parser.add_argument('--repo', required=True, help='user/name; made if it is not there')
    parser.add_argument('--public', action='store_true', help='for everybody to see; otherwise the repo is private')
    parser.add_argument('--update', action='store_true', help='replace what the repo holds')
    parser.add_argument('--create-pr', action='store_true', help='propose the change as a pull request')
    parser.add_argument('--revision', help='branch; main when left out')
    parser.add_argument('--tag', help='name to give the commit')
    parser.add_argument('--message', help='of the commit')
    parser.add_argument('--dry-run', action='store_true', help='check everything, list the files, send nothing')
    _add_export_options(parser)


def add_catalogue_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `timm-collab catalogue`."""
    parser.description = 'Add an exported head to a catalogue of heads, such as hub/heads.yaml.'
    parser.add_argument('folder', type=Path, help='folder that export has made')
    parser.add_argument('--catalogue', type=Path, required=True, help='the heads.yaml')
    parser.add_argument('--tag', required=True, help="what tells it from the architecture's other weights")
    parser.add_argument('--repo', help='where it was pushed to; without, the folder must lie beside the catalogue')
    parser.add_argument('--revision', help='the commit there, in full')


def run_export(args: argparse.Namespace) -> int:
    """Run `timm-collab export`."""
    run = FinishedRun.read(args.run)
    options = _export_options(args, formats=tuple(args.formats))
    folder = export_run(run, args.output or args.run / 'export', options)
    print(*check_folder(folder).listing(), sep='\n')
    modules = 'timm, timm_collab' if run.needs_plugin else 'timm'
    print(f"{modules} in another process gave the logits of head {run.head(options.head)}, bit for bit. To use it:\n"
          f"import {modules}; model = timm.create_model('local-dir:{folder.as_posix()}', pretrained=True)")
    return 0


def run_push(args: argparse.Namespace) -> int:
    """Run `timm-collab push`."""
    options = PushOptions(
        repo=args.repo,
        public=args.public,
        update=args.update,
        create_pr=args.create_pr,
        revision=args.revision,
        tag=args.tag,
        message=args.message,
    )
    if not args.dry_run:
        access_token()  # before the work of an export
    if (args.run / RECIPE).is_file() or (args.run / PRUNED).is_dir():
        run = FinishedRun.read(args.run)
        with tempfile.TemporaryDirectory() as scratch:
            return _push(export_run(run, Path(scratch, 'export'), _export_options(args)), options, args.dry_run)
    given = [name for name in _EXPORT_OPTIONS if getattr(args, name) not in (None, False, 'best')]
    require(not given, f"'{args.run}' is exported already, and takes no --{', --'.join(given).replace('_', '-')}")
    upload = check_folder(args.run)
    check_reload([args.run], [folder_logits(args.run)], needs_plugin(str(upload.config['architecture'])))
    return _push(args.run, options, args.dry_run)


def run_catalogue(args: argparse.Namespace) -> int:
    """Run `timm-collab catalogue`."""
    name = add_entry(args.folder, args.catalogue, args.tag, args.repo, args.revision)
    print(f"{args.catalogue} has '{name}' now: timm_collab.load_head('{name}')")
    return 0


def _push(folder: Path, options: PushOptions, dry_run: bool) -> int:
    upload = check_folder(folder)
    print(*upload.listing(), sep='\n')
    kind = 'public' if options.public else 'private'
    if dry_run:
        print(f"dry run: this would be one commit to '{options.repo}' ({kind} if it is new); nothing was sent")
        return 0
    pushed = push_folder(folder, options)
    said = 'pushed' if pushed.new else 'unchanged, it holds the same already'
    print(f'{said}: {pushed.url}\n'
          f"timm.create_model('hf-hub:{pushed.repo}@{pushed.commit}', pretrained=True)")
    return 0


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--head', default='best', help='best (by validation) or a number')
    parser.add_argument('--license', help="licence of the weights, by the Hub's name of it; required")
    parser.add_argument('--license-name', help='name of a licence that the Hub does not list (--license other)')
    parser.add_argument('--license-link', help='where such a licence is to be read')
    parser.add_argument('--half', action='store_true', help='round the weights to float16')
    parser.add_argument('--tree', action='store_true',
                        help='add the whole tree, to go on training, prune another head or average all of them')
    parser.add_argument('--labels', type=Path, help="file with a class name on each line, in place of the run's")
    parser.add_argument('--dataset', help='id on the Hub of data that the run read from a folder')
    parser.add_argument('--baseline', type=Path, help='run of the network alone, to name its error beside')


def _export_options(args: argparse.Namespace, formats: tuple[str, ...] = ()) -> ExportOptions:
    return ExportOptions(**{name: getattr(args, name) for name in _EXPORT_OPTIONS}, formats=formats)
