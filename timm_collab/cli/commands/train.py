"""Train a head tree on all GPUs of this machine; all keys of a recipe are options.

With several GPUs, `accelerate launch` starts one process per GPU; with one or none, training runs in this process.
Settings saved by `accelerate config`, an existing launch (torchrun, accelerate launch) and the ranks of a SLURM step
are honoured.
"""
from __future__ import annotations

import argparse
import sys

TAKES_REST = True


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the launch."""
    parser.add_argument('--num-processes', type=int, metavar='N',
                        help='number of processes on this machine, on its GPUs, or on the CPU if it has none')
    parser.add_argument('--launch', metavar='FILE',
                        help='settings of `accelerate launch`: a file, or a name from `timm-collab list launches`')


def run(args: argparse.Namespace) -> int:
    """Check the recipe, then train in this process or in those of a launch."""
    from ...train.config.parse import build_parser, parse_config
    if {'--help', '-h'} & set(args.rest):
        print(args.parser.format_help())
        print('The keys of the recipe, also the options of `python -m timm_collab.train`:\n')
        keys = build_parser()
        keys.prog = args.parser.prog
        print(keys.format_help())
        return 0
    if {'--print_config'} & {option.partition('=')[0] for option in args.rest}:
        parse_config(args.rest)  # prints and exits

    from ..launch import find_launch, launch
    options = find_launch(args.num_processes, args.launch)
    if options is None:
        from ...train.__main__ import main
        return main(args.rest)
    parse_config(args.rest)  # reports a mistake once, not once per process
    print(f'accelerate launch {" ".join(options)}', file=sys.stderr)
    return launch(options, args.rest)
