"""CPU time to create a head tree relative to as many plain networks as it has heads.

A tree creates one plain network per head, and traces the first one to split it. Both sides are created in turn in one
process, with garbage collected before each measurement, and the fastest round of each counts. The result is the tree's
time divided by that of one plain network and by the number of heads: 1 if tracing took no time.

    python benchmarks/creation.py
    python benchmarks/creation.py --arch resnet50 --heads 8 --rounds 10
"""
from __future__ import annotations

import argparse
import gc
import time
from typing import Any

import timm
import torch

import timm_collab

ARCHITECTURES = ('resnet50', 'vit_small_patch16_224', 'swin_tiny_patch4_window7_224')
BOUND = 2.0


def create(name: str, **kwargs: Any) -> tuple[float, str]:
    """Create a model and discard it.

    Returns:
        The CPU time in seconds, and the tree, empty for a plain network.
    """
    gc.collect()
    start = time.process_time()
    model = timm.create_model(name, **kwargs)
    seconds = time.process_time() - start
    return seconds, str(getattr(model, 'tree', ''))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=ARCHITECTURES)
    parser.add_argument('--heads', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=7, help='number of pairs, after one for warm-up')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, got {args.rounds}')

    torch.manual_seed(0)
    print(f'{args.heads} heads, minimum of {args.rounds} rounds, cpu, torch {torch.__version__}, timm'
          f' {timm.__version__}, timm-collab {timm_collab.__version__}, {torch.get_num_threads()} threads')
    print('| architecture | tree | plain, s | tree, s | tree / (heads x plain) | bound |')
    print('|---|---|---|---|---|---|')
    for arch in args.arch:
        pairs = [(create(arch), create(f'collab_{arch}', heads=args.heads)) for _ in range(args.rounds + 1)][1:]
        (plain, _), (tree, spec) = (min(side) for side in zip(*pairs, strict=True))
        print(f'| {arch} | {spec} | {plain:.3f} | {tree:.3f} | {tree / (args.heads * plain):.2f} | {BOUND:.2f} |',
              flush=True)


if __name__ == '__main__':
    main()
