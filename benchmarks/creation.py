"""Time to create a head tree relative to the plain network, and relative to its number of parameters.

Both are created in turn in one process, with garbage collected before each measurement, and the fastest round of each
counts. The result is the time per parameter: the tree's time divided by the plain network's and by the ratio of their
parameters. It is 1 if a tree takes as long per parameter as the network.

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

BOUND = 1.30


def create(name: str, **kwargs: Any) -> tuple[float, int, str]:
    """Create a model and discard it.

    Returns:
        The time in seconds, the number of parameters, and the tree, empty for a plain network.
    """
    gc.collect()
    start = time.perf_counter()
    model = timm.create_model(name, **kwargs)
    seconds = time.perf_counter() - start
    return seconds, sum(p.numel() for p in model.parameters()), str(getattr(model, 'tree', ''))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['resnet50', 'vit_base_patch16_224'])
    parser.add_argument('--heads', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=7, help='number of pairs, after one for warm-up')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, got {args.rounds}')

    torch.manual_seed(0)
    print(f'{args.heads} heads, minimum of {args.rounds} rounds, cpu, torch {torch.__version__}, timm'
          f' {timm.__version__}, timm-collab {timm_collab.__version__}, {torch.get_num_threads()} threads')
    print('| architecture | tree | plain, s | tree, s | parameters | tree / (plain x parameters) | bound |')
    print('|---|---|---|---|---|---|---|')
    for arch in args.arch:
        pairs = [(create(arch), create(f'collab_{arch}', heads=args.heads)) for _ in range(args.rounds + 1)][1:]
        of_plain, of_tree = (min(side) for side in zip(*pairs, strict=True))
        (plain, plain_params, _), (tree, tree_params, spec) = of_plain, of_tree
        growth = tree_params / plain_params
        print(f'| {arch} | {spec} | {plain:.3f} | {tree:.3f} | {growth:.3f} x | {tree / (plain * growth):.3f}'
              f' | {BOUND:.2f} |', flush=True)


if __name__ == '__main__':
    main()
