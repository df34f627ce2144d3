"""What `timm-collab export`, `push` and `catalogue` do, by their parsed arguments.

Each returns the exit status. What can't be done is raised as `HubError` or `TrainError`, whose message is all that a
user needs to see.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ..train.paths import CONFIG, PRUNED
from ..train.record.finished_run import load_run
from ..train.record.save import needs_plugin
from .check import check_reload, folder_logits
from .entry import add_entry
from .errors import require
from .export import export_run
from .folder import check_folder
from .options import ExportOptions
from .push import PushOptions, access_token, push_folder

_EXPORT_OPTIONS = (
    'license', 'license_name', 'license_link', 'head', 'half', 'tree', 'labels', 'dataset', 'baseline', 'note')


def run_export(args: argparse.Namespace) -> int:
    """Run `timm-collab export`."""
    run = load_run(args.run)
    options = _export_options(args, formats=tuple(args.formats))
    folder = export_run(run, args.output or args.run / 'export', options)
    print(*check_folder(folder).listing(), sep='\n')
    modules = 'timm, timm_collab' if run.needs_plugin else 'timm'
    print(f'{modules} in another process gave the logits of head {run.find_head(options.head)}, bit for bit. To use'
          ' it:\n'
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
    if (args.run / CONFIG).is_file() or (args.run / PRUNED).is_dir():
        run = load_run(args.run)
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


def _export_options(args: argparse.Namespace, formats: tuple[str, ...] = ()) -> ExportOptions:
    return ExportOptions(**{name: getattr(args, name) for name in _EXPORT_OPTIONS}, formats=formats)
