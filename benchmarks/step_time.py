"""Training step of an architecture's head trees relative to the plain network, on any device.

This is the measurement of `cost.py` for any network, in minutes: both sides run in turn, and the result is the median
ratio over the rounds. A step is forward, objective, backward and an SGD update. With `--control` a second copy of the
plain network also runs: the deviation of its ratio from 1 is the measurement error.

    python -m benchmarks.step_time --arch resnet50 --batch-size 8 --heads 4
    python -m benchmarks.step_time --arch resnet50 --batch-size 8 --heads 1 --control --steps 25
    python -m benchmarks.step_time --arch resnet50 --batch-size 128 --heads 2 4 8 --device cuda
"""
from __future__ import annotations

import argparse
import statistics

import timm
import torch
from torch import nn

import timm_collab
from timm_collab import CollaborativeLoss

from .measure import Side, in_turn, multiply_adds, quartiles


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--heads', type=int, nargs='+', default=[4])
    parser.add_argument('--pattern', default='hierarchical')
    parser.add_argument('--steps', type=int, default=20, help='number of pairs of steps, after two for warm-up')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--control', action='store_true', help='also measure a second plain network')
    args = parser.parse_args()

    torch.manual_seed(0)
    plain = timm.create_model(args.arch).to(args.device)
    size = plain.pretrained_cfg['input_size']
    x = torch.randn(args.batch_size, *size, device=args.device)
    target_B = torch.randint(plain.num_classes, (args.batch_size,), device=args.device)
    base = multiply_adds(plain, x)
    single = Side(plain, nn.CrossEntropyLoss(), x, target_B)
    controls = []
    if args.control:
        controls.append(Side(timm.create_model(args.arch).to(args.device), nn.CrossEntropyLoss(), x, target_B))

    print(f'{args.arch}, batch {args.batch_size}, {args.device}, torch {torch.__version__}, timm {timm.__version__},'
          f' timm-collab {timm_collab.__version__}, {torch.get_num_threads()} threads')
    print('| tree | multiply-adds | step (middle half) | step / multiply-adds | single step, ms |')
    print('|---|---|---|---|---|')
    for heads in args.heads:
        model = timm.create_model(f'collab_{args.arch}', heads=heads, pattern=args.pattern).to(args.device)
        tree = Side(model, CollaborativeLoss(), x, target_B)
        work = multiply_adds(model, x) / base
        taken = in_turn([side.step for side in (single, tree, *controls)], args.steps, warm_up=2)
        ms = 1e3 * statistics.median(seconds[0] for seconds in taken)
        rows = [(str(model.tree), 1, work)]
        if args.control:
            rows.append(('a second plain network', 2, 1.))
        for name, side, multiple in rows:
            low, ratio, high = quartiles([seconds[side] / seconds[0] for seconds in taken])
            print(f'| {name} | {multiple:.3f} x | {ratio:.3f} x ({low:.3f} to {high:.3f}) | {ratio / multiple:.3f} |'
                  f' {ms:.0f} |', flush=True)


if __name__ == '__main__':
    main()
