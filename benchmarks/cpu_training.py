"""What keeping freed memory and moving all weights in one kernel bring to an update on a CPU.

One trainer makes updates from one batch. In turn it does so with both, with one of them, and with neither, several
updates each, of which the first, which still finds the memory of the turn before, doesn't count. Turns that return
memory have the thresholds that glibc's malloc comes to by itself: a block of its own, freed, is the size from which on
blocks are returned, and twice that what may stay free at the end of the heap, up to 32 and 64 MiB. The largest block is
taken to be the gradient of the largest weight. Page faults are those that a page was found for without reading a file.

    python -m benchmarks.cpu_training
    python -m benchmarks.cpu_training --model collab_resnet50 --tree layer2:2,layer3:2 --size 64 --batch-size 16
"""
from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import random
import resource
import statistics
import time
from collections import defaultdict

import timm
import torch
from accelerate import Accelerator

import timm_collab
from timm_collab.train.config.parse import parse_config
from timm_collab.train.loop.allocator import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory

from .trainer_overhead import make_trainer, random_images


def return_freed_memory(largest: int) -> None:
    """Malloc's own thresholds, after it freed a block of so many bytes, which had a header and ended with a page."""
    threshold = min(largest + 2 * resource.getpagesize(), 2**25)
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, threshold)
    libc.mallopt(M_TRIM_THRESHOLD, 2 * threshold)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='collab_resnet18')
    parser.add_argument('--tree', help='head tree; one head when left out')
    parser.add_argument('--optimizer', default='sgd')
    parser.add_argument('--size', type=int, default=32, help='side of the images')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=12)
    parser.add_argument('--updates', type=int, default=4, help='updates of a turn, the first included')
    args = parser.parse_args()

    images, target_B = random_images(args.batch_size, args.size)
    keys = [f'--model.name={args.model}', '--data.path=-', f'--batch_size={args.batch_size}', '--optim.lr=0.001',
            f'--optim.name={args.optimizer}']
    shape = {'tree': args.tree} if args.tree else {'heads': 1}
    trainer = make_trainer(
        parse_config(keys), timm.create_model(args.model, num_classes=10, **shape), (images, target_B),
        Accelerator(cpu=True))
    state = trainer.state
    largest = max(parameter.nbytes for parameter in trainer.state.model.parameters())

    seconds: dict[tuple[bool, bool], list[float]] = defaultdict(list)
    faults: dict[tuple[bool, bool], list[int]] = defaultdict(list)
    for turn in range(args.rounds + 1):
        for kept, fused in random.Random(turn).sample(list(itertools.product((False, True), repeat=2)), 4):
            if kept and not keep_freed_memory():
                parser.error('memory is not kept here, see timm_collab.train.loop.allocator')
            if not kept:
                return_freed_memory(largest)
            for group in state.optimizer.param_groups:
                assert 'fused' in group, args.optimizer
                group['fused'] = fused or None
            turns = []
            for _ in range(args.updates):
                before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
                state.train_step(images, target_B, target_B, 0, 0)
                turns.append((time.perf_counter() - started,
                              resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
            if turn:  # the first round warms up
                seconds[kept, fused].append(statistics.median(each for each, _ in turns[1:]))
                faults[kept, fused].append(round(statistics.median(each for _, each in turns[1:])))

    print(f'{args.model} {args.tree or "1 head"}, {args.optimizer}, batch {args.batch_size}, {args.size} x {args.size},'
          f' cpu, torch {torch.__version__} with {torch.get_num_threads()} of {os.cpu_count()} cores, timm'
          f' {timm.__version__}, timm-collab {timm_collab.__version__}, {args.rounds} rounds')
    print('| memory | weights | an update, ms | by neither: median (middle half) | page faults an update |')
    print('|---|---|---|---|---|')
    for (kept, fused), times in sorted(seconds.items()):
        ratios = [time / neither for time, neither in zip(times, seconds[False, False], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f'| {"kept" if kept else "returned"} | {"in one kernel" if fused else "one by one"}'
              f' | {1e3 * statistics.median(times):.1f} | {middle:.3f} ({low:.3f} to {high:.3f})'
              f' | {statistics.median(faults[kept, fused]):,.0f} |')


if __name__ == '__main__':
    main()
