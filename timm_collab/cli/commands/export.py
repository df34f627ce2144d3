"""Export a finished run to a folder that plain timm and transformers load, and verify it."""
from __future__ import annotations

import argparse
from pathlib import Path

from ...train.paths import FORMATS
from ..export_options import add_export_options, export_options


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('run', type=Path, help='folder of a finished run')
    parser.add_argument('--output', type=Path, help='folder to create (default: RUN/export)')
    add_export_options(parser)
    parser.add_argument('--formats', nargs='+', default=[], choices=FORMATS, metavar='FORMAT',
                        help='also write pt2 (torch.export) or onnx, next to the folder; not for the Hub')


def run(args: argparse.Namespace) -> int:
    """Export, verify, and list the files."""
    from ...hub import export_run
    from ...hub.folder import check_folder
    from ...train.record.finished_run import load_run
    finished = load_run(args.run)
    options = export_options(args, tuple(args.formats))
    folder = export_run(finished, args.output or args.run / 'export', options)
    print(*check_folder(folder).listing(), sep='\n')
    modules = 'timm, timm_collab' if finished.needs_plugin else 'timm'
    head = finished.find_head(options.head)
    print(f'{modules} in another process gave the logits of head {head}, bit for bit. To use it:\n'
          f"import {modules}; model = timm.create_model('local-dir:{folder.as_posix()}', pretrained=True)")
    return 0
