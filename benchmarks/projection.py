"""Estimate how long a study would take on a GPU, from the operators and multiply-adds of its runs.

The step of a small network is limited by the launch of its operators, that of a large one by its multiply-adds. The
estimate of an update is the larger of two times: `--launch` microseconds per torch operator in a step without views
(counted on two images on the CPU), and the multiply-adds at `--rate` times 10^12 per second. Runs are taken one after
another. Data loading, evaluation, compilation and teachers are not included. A compiled step has fewer operators, and
parallel runs share idle time of the device, so both take less.

    python -m benchmarks.projection benchmarks/studies/paper.yaml --images 45000
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from timm_collab.study.grid import Cell, read_study
from timm_collab.train.build import build_criterion, build_model
from timm_collab.train.config import TrainConfig
from timm_collab.train.data.augment.preprocess import make_preprocessing
from timm_collab.train.record.cost import FORWARDS_PER_STEP, forward_multiply_adds

CLASSES = 10


class _Count(TorchDispatchMode):
    """Counts operators, except those that only return views."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        self.operators += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def work(config: TrainConfig) -> tuple[int, int]:
    """Operators per training step, and multiply-adds per image in it."""
    model = build_model(config.model, config.data, CLASSES)
    size = make_preprocessing(model, config.data, config.augment).data_config['input_size']
    criterion = build_criterion(config.objective, model.num_heads, CLASSES, config.augment.mixes)
    # foreach is torch's default on a GPU.
    optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9, weight_decay=1e-4, nesterov=True, foreach=True)
    images, labels_B = torch.randn(2, *size), torch.tensor([0, 1])

    def step() -> None:
        optimizer.zero_grad()
        criterion(model.train()(images), labels_B).backward()
        optimizer.step()

    return operators(step), FORWARDS_PER_STEP * forward_multiply_adds(model, size)


def operators(run: Callable[[], None]) -> int:
    """Number of operators of a function in its second call."""
    run()
    with _Count() as count:
        run()
    return count.operators


def main() -> None:
    """Print the estimate for each method and for the whole study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grid', type=Path)
    parser.add_argument('--images', type=int, required=True, help='images per epoch')
    parser.add_argument('--launch', type=float, default=5., help='microseconds per operator')
    parser.add_argument('--rate', type=float, default=50., help='10^12 multiply-adds per second')
    args = parser.parse_args()

    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in read_study(args.grid, {'data.path': 'unread'}).cells:
        found.setdefault((cell.setting, cell.method), []).append(cell)
    print(f'{args.launch:g} us per operator, {args.rate:g} x 10^12 multiply-adds/s, {args.images:,} images')
    print('| setting | method | operators per step | G multiply-adds per image | updates | minutes per run | runs |')
    print('|---|---|---|---|---|---|---|')
    seconds, multiply_adds = 0., 0
    known: dict[str, tuple[int, int]] = {}
    for (setting, method), runs in found.items():
        config = runs[0].config
        if (name := repr((config.model, config.objective, config.data))) not in known:
            known[name] = work(config)
        launched, computed = known[name]
        updates = args.images // config.batch_size * config.epochs
        batch = computed * config.batch_size
        each = updates * max(launched * args.launch * 1e-6, batch / (args.rate * 1e12))
        seconds += each * len(runs)
        multiply_adds += updates * batch * len(runs)
        print(f'| {setting} | {method} | {launched:,} | {computed / 1e9:.3f} | {updates:,} | {each / 60:.0f} |'
              f' {len(runs)} |', flush=True)
    print(f'\n{sum(map(len, found.values()))} runs, {multiply_adds / 1e18:.2f} x 10^18 multiply-adds,'
          f' {seconds / 3600:.0f} hours in sequence')


if __name__ == '__main__':
    main()
