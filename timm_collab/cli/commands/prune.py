"""Save a head of a finished run as a plain timm model.

timm loads the saved model again, and its logits must equal the head's bit for bit before the folder appears.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument('run', metavar='RUN', help='folder that training wrote, or the tree.safetensors in it')
    parser.add_argument('--head', default='best', metavar='best|N',
                        help='the head that is best on the validation data after that epoch, or a number from 0'
                             ' (default: best)')
    parser.add_argument('--epoch', metavar='best|last|N',
                        help='the epoch that is best on the validation data, the last one, or a number from 1, where'
                             ' its checkpoint is still there (default: the epoch that training kept)')
    parser.add_argument('--output', help='folder to create (default: RUN/head-N, or RUN/epoch-N-head-N)')


def run(args: argparse.Namespace) -> int:
    """Load the tree, prune it, save the head."""
    import torch

    from ...train.build import model_args
    from ...train.errors import require
    from ...train.paths import TREE
    from ...train.record.finished_run import load_run
    from ...train.record.run_folder import check_writable
    from ...train.record.save import ExportError, save_pruned
    path = Path(args.run).expanduser()
    saved = load_run(path.parent if path.name == TREE else path)
    saved.find_head(args.head)  # before the weights are read
    tree = saved.load_tree() if args.epoch is None else saved.load_epoch(args.epoch)
    head = tree.kept_head if args.head == 'best' else int(args.head)
    of_epoch = '' if args.epoch is None else f'epoch-{args.epoch}-'
    output = saved.path / f'{of_epoch}head-{head}' if args.output is None else Path(args.output).expanduser()
    require(not output.exists(), f"output '{output}' exists: choose another folder with --output")
    check_writable(output)
    tree.kept_head = head
    images = torch.randn(8, *saved.data_config['input_size'], generator=torch.Generator().manual_seed(0))
    try:
        line = save_pruned(
            tree,
            output,
            images,
            saved.data_config,
            model_args(saved.config.model, saved.config.data),
            saved.class_names,
            from_scratch=not saved.config.model.pretrained,
            multi_label=saved.config.data.multi_label,
        )
    except ExportError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    of_epoch = '' if args.epoch is None else f' of epoch {args.epoch}'
    print(f'Head {head}{of_epoch} is saved as a plain timm model, its logits checked bit for bit. To use it:\n{line}')
    return 0
