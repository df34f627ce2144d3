"""Upload a trained head to the Hub, in one commit.

The access token is that of `hf auth login` or HF_TOKEN.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..export_options import add_export_options, export_options, given_export_options

if TYPE_CHECKING:
    from ...hub import PushOptions


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('run', type=Path, help='folder of a finished run, or a folder that export wrote')
    parser.add_argument('--repo', required=True, help='user/name; created if it does not exist')
    parser.add_argument('--public', action='store_true', help='visible to everybody; a new repo is private otherwise')
    parser.add_argument('--update', action='store_true', help='replace the files of the repo')
    parser.add_argument('--create-pr', action='store_true', help='open a pull request instead of committing')
    parser.add_argument('--revision', help='branch (default: main)')
    parser.add_argument('--tag', help='tag for the commit')
    parser.add_argument('--message', help='commit message')
    parser.add_argument('--dry-run', action='store_true', help='check everything, list the files, upload nothing')
    add_export_options(parser)


def run(args: argparse.Namespace) -> int:
    """Export a run if necessary, verify and push."""
    from ...hub import PushOptions, export_run
    from ...hub.check import check_reload, folder_logits
    from ...hub.errors import require
    from ...hub.folder import check_folder
    from ...hub.push import access_token
    from ...train.paths import CONFIG, PRUNED
    from ...train.record.finished_run import load_run
    from ...train.record.save import needs_plugin
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
        access_token()  # fails before the work of an export
    if (args.run / CONFIG).is_file() or (args.run / PRUNED).is_dir():
        finished = load_run(args.run)
        with tempfile.TemporaryDirectory() as scratch:
            folder = export_run(finished, Path(scratch, 'export'), export_options(args))
            return _push(folder, options, args.dry_run)
    given = given_export_options(args)
    require(not given, f"'{args.run}' is exported already, and takes no {', '.join(given)}")
    upload = check_folder(args.run)
    check_reload([args.run], [folder_logits(args.run)], needs_plugin(str(upload.config['architecture'])))
    return _push(args.run, options, args.dry_run)


def _push(folder: Path, options: PushOptions, dry_run: bool) -> int:
    from ...hub import push_folder
    from ...hub.folder import check_folder
    print(*check_folder(folder).listing(), sep='\n')
    if dry_run:
        visibility = 'public' if options.public else 'private'
        print(f"dry run: this would be one commit to '{options.repo}' ({visibility} if it is new); nothing was sent")
        return 0
    pushed = push_folder(folder, options)
    result = 'pushed' if pushed.new else 'unchanged, it holds the same already'
    print(f'{result}: {pushed.url}\n'
          f"timm.create_model('hf-hub:{pushed.repo}@{pushed.commit}', pretrained=True)")
    return 0
