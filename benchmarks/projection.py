"""How long a study would take on a GPU, told from what its runs compute: an estimate, and no measurement.

A step of a network that is small for its device takes as long as its operators take to be launched, one of a network
that is large enough as long as its multiply-adds take. Each update of each run counts with the longer of the two:
`--launch` microseconds for each of torch's operators in a step, views left out (counted on two images, on the CPU), and
the multiply-adds at `--rate` times 10^12 a second. Runs are taken one after the other. Reading, augmenting, evaluating,
compiling and teachers are left out; a compiled step has fewer operators, and several runs side by side share what one
leaves idle.

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
from timm_collab.train.data.preprocess import make_preprocessing
from timm_collab.train.record.cost import FORWARDS_PER_STEP, forward_multiply_adds

CLASSES = 10


class _Count(TorchDispatchMode):
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        self.operators += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def work(config: TrainConfig) -> tuple[int, int]:
    """Operators of a training step, and multiply-adds of an image in it."""
    model = build_model(config.model, config.data, CLASSES)
    size = make_preprocessing(model, config.data, config.augment).data_config['input_size']
    criterion = build_criterion(config.objective, model.num_heads, CLASSES, config.augment.mixes)
    # As torch chooses on a GPU: all tensors at once.
    optimizer = torch.optim.SGD(model.parameters(), lr=.1, momentum=.9, weight_decay=1e-4, nesterov=True, foreach=True)
    images, labels_B = torch.randn(2, *size), torch.tensor([0, 1])

    def step() -> None:
        optimizer.zero_grad()
        criterion(model.train()(images), labels_B).backward()
        optimizer.step()

    return operators(step), FORWARDS_PER_STEP * forward_multiply_adds(model, size)


def operators(run: Callable[[], None]) -> int:
    """How many operators something runs, the second time that it's run."""
    run()
    with _Count() as count:
        run()
    return count.operators


def main() -> None:
    """Print what each method takes, and all of them together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grid', type=Path)
    parser.add_argument('--images', type=int, required=True, help='images of an epoch')
    parser.add_argument('--launch', type=float, default=5., help='microseconds for an operator')
    parser.add_argument('--rate', type=float, default=50., help='10^12 multiply-adds a second')
    args = parser.parse_args()

    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in read_study(args.grid, {'data.path': 'unread'}).cells:
        found.setdefault((cell.setting, cell.method), []).append(cell)
    print(f'{args.launch:g} us an operator, {args.rate:g} x 10^12 multiply-adds a second, {args.images:,} images')
    print('| setting | method | operators a step | multiply-adds an image, 10^9 | updates | minutes a run | runs |')
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
          f' {seconds / 3600:.0f} hours one after the other')


if __name__ == '__main__':
    main()
