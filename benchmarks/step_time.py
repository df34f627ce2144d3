"""Training step of a head tree against the plain network's, beside what their multiply-adds predict.

Both are measured in turn, step by step in one process, so that a machine that slows down slows both; the ratio is the
median over the pairs. A step is forward, objective, backward and an SGD update.

    python benchmarks/step_time.py --arch resnet50 --batch-size 8 --heads 4
    python benchmarks/step_time.py --arch cifar_resnet32 --batch-size 128 --heads 2 4 8
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_collab
from timm_collab import CollaborativeTask


def multiply_adds(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of one forward pass in train mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def stepper(model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> Callable[[], float]:
    """A function that makes one training step and returns how long it took, in seconds."""
    task = CollaborativeTask(model, verbose=False).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=.9)
    synchronize = torch.cuda.synchronize if x.is_cuda else lambda: None

    def step() -> float:
        synchronize()
        start = time.perf_counter()
        optimizer.zero_grad()
        task(x, target)['loss'].backward()
        optimizer.step()
        synchronize()
        return time.perf_counter() - start

    return step


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--heads', type=int, nargs='+', default=[4])
    parser.add_argument('--pattern', default='hierarchical')
    parser.add_argument('--steps', type=int, default=20, help='pairs of steps that count, after two that do not')
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args()

    torch.manual_seed(0)
    plain = timm.create_model(args.arch).to(args.device)
    size = plain.pretrained_cfg['input_size']
    x = torch.randn(args.batch_size, *size, device=args.device)
    target = torch.randint(plain.num_classes, (args.batch_size,), device=args.device)
    base = multiply_adds(plain.train(), x)
    plain_step = stepper(plain, x, target)

    print(f'{args.arch}, batch {args.batch_size}, {args.device}, torch {torch.__version__}, timm {timm.__version__},'
          f' timm-collab {timm_collab.__version__}, {torch.get_num_threads()} threads')
    print('| tree | multiply-adds | step | step / multiply-adds | single step, ms |')
    print('|---|---|---|---|---|')
    for heads in args.heads:
        tree = timm.create_model(f'collab_{args.arch}', heads=heads, pattern=args.pattern).to(args.device)
        tree_step = stepper(tree, x, target)
        cost = multiply_adds(tree.train(), x) / base
        pairs = [(plain_step(), tree_step()) for _ in range(args.steps + 2)][2:]
        ratio = statistics.median(of_tree / of_plain for of_plain, of_tree in pairs)
        single = 1e3 * statistics.median(of_plain for of_plain, _ in pairs)
        print(f'| {tree.tree} | {cost:.3f} x | {ratio:.3f} x | {ratio / cost:.3f} | {single:.0f} |', flush=True)


if __name__ == '__main__':
    main()
