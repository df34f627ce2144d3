"""Time of the objective relative to plain cross-entropies, and its memory relative to the logits.

Time: forward and backward, from the logits of all heads to their gradient. The reference is torch's cross-entropy of
each head, summed. Both run in turn in one process. The result is the ratio of the fastest rounds, since on a busy
machine these are the undisturbed ones, with the median ratio of the pairs beside it.

Memory: the peak size of the storages that torch allocates, including the gradient of the logits, divided by the size of
the logits. On a CPU a dispatch mode sees every operator, so the result is exact, except in compiled code. On a GPU the
allocator counts. Several numbers of heads show that time and memory grow linearly.

On a CPU freed memory is kept in the process, as in training: returning it to the system makes times depend on what ran
before.

    python -m benchmarks.objective
    python -m benchmarks.objective --device cuda --rounds 200 --compiled
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import timm_collab
from timm_collab import CollaborativeLoss
from timm_collab.train.loop.allocator import keep_freed_memory

from .memory import ActivationMeter

MEMORY_BOUND = 5.5

Objective = Callable[[Tensor, Tensor], Tensor]


def plain(logits_HBC: Tensor, target_B: Tensor) -> Tensor:
    """Cross-entropy of each head against the label, summed."""
    return torch.stack([F.cross_entropy(logits_BC, target_B) for logits_BC in logits_HBC.unbind()]).sum()


def make(heads: int, batch: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Logits [H, B, C] and class indices [B]."""
    generator = torch.Generator().manual_seed(0)
    logits_HBC = torch.randn(heads, batch, classes, generator=generator).to(device)
    return logits_HBC, torch.randint(classes, (batch,), generator=generator).to(device)


def seconds(objective: Objective, logits_HBC: Tensor, target_B: Tensor) -> float:
    """Return the time of forward and backward, in seconds."""
    logits_HBC = logits_HBC.detach().requires_grad_()
    synchronize = torch.cuda.synchronize if logits_HBC.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    objective(logits_HBC, target_B).backward()
    synchronize()
    return time.perf_counter() - start


def memory(objective: Objective, logits_HBC: Tensor, target_B: Tensor) -> float:
    """Return the peak memory of forward and backward besides the logits, as a multiple of the logits."""
    leaf = nn.Parameter(logits_HBC.clone())
    if leaf.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        objective(leaf, target_B).backward()
        return (torch.cuda.max_memory_allocated() - before) / logits_HBC.untyped_storage().nbytes()
    meter = ActivationMeter(nn.ParameterList([leaf]))
    with meter:  # not meter.step(), which excludes gradients
        objective(leaf, target_B).backward()
    return meter.peak / logits_HBC.untyped_storage().nbytes()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=60, help='number of pairs, after five for warm-up')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--compiled', action='store_true', help='measure the compiled objective as well')
    args = parser.parse_args()
    if args.device == 'cpu':
        keep_freed_memory()
    torch.set_num_threads(args.threads)

    print(f'{args.rounds} rounds, {args.device}, torch {torch.__version__}, timm {timm.__version__}, timm-collab'
          f' {timm_collab.__version__}, {torch.get_num_threads()} threads')
    objectives: dict[str, Objective] = {'eager': CollaborativeLoss()}
    if args.compiled:
        objectives['compiled'] = compiled = CollaborativeLoss()
        compiled.compile()

    print('| [4, 256, 1000] | plain, ms | objective, ms | fastest / fastest | median of pairs |')
    print('|---|---|---|---|---|')
    batch = make(4, 256, 1000, args.device)
    for name, objective in objectives.items():
        pairs = [(seconds(plain, *batch), seconds(objective, *batch)) for _ in range(args.rounds + 5)][5:]
        base, own = (1e3 * min(side) for side in zip(*pairs, strict=True))
        median = statistics.median(b / a for a, b in pairs)
        print(f'| {name} | {base:.2f} | {own:.2f} | {own / base:.2f} | {median:.2f} |', flush=True)

    print('\n| [H, 64, 21841] | H | plain, ms per head | objective, ms per head | peak / logits | bound |')
    print('|---|---|---|---|---|---|')
    for name in objectives:
        for heads in (2, 4, 8):
            batch = make(heads, 64, 21841, args.device)
            sides = (plain, objectives[name])
            pairs = [[seconds(side, *batch) for side in sides] for _ in range(max(args.rounds // 6, 3) + 2)][2:]
            base, own = (1e3 / heads * min(side) for side in zip(*pairs, strict=True))
            measurable = args.device != 'cpu' or name != 'compiled'
            peak = f'{memory(objectives[name], *batch):.2f}' if measurable else ''
            print(f'| {name} | {heads} | {base:.2f} | {own:.2f} | {peak} | {MEMORY_BOUND:.2f} |', flush=True)


if __name__ == '__main__':
    main()
