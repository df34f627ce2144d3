"""Cost of the losses for wrong labels against the cross-entropy: of the objective alone, and of a training step.

Both sides are the trainer's own, with four heads of `test_resnet` at 32 x 32 and batches of 128: `objective` is forward
and backward of the loss and the storing of targets, from logits [4, 128, C]; `step` is `TrainState.train_step`. They
take turns on one thread, and are measured in CPU time of the process, which other processes on the machine disturb
little. A ratio is the median over the rounds, with its quartiles.

Memory is that of the targets of each training image, C x 2 bytes for each head that has its own.

    python -m benchmarks.hard_losses --output mine.csv
"""
from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from torch import Tensor

from timm_collab.objective.image_targets import ImageTargets
from timm_collab.train.config.parse import parse_config
from timm_collab.train.loop.allocator import keep_freed_memory
from timm_collab.train.loop.objective_schedule import schedule_objective
from timm_collab.train.loop.step import TrainState

from .cost_rows import append
from .measure import commit, machine

RESULTS = Path(__file__).parent / 'results' / 'cost' / 'hard_losses.csv'
COLUMNS = ('loss', 'classes', 'quantity', 'ce_ms', 'own_ms', 'ratio', 'low', 'high', 'bytes_per_image', 'rounds',
           'load', 'commit', *machine())
HEADS, BATCH, IMAGES = 4, 128, 4096
_SMALL_LOSS = ['--objective.hard=small_loss', '--objective.noise_rate=0.4', '--objective.noise_rate_epochs=0']
CE: list[str] = []
LOSSES = {
    'ce again': CE,
    'balance': ['--objective.balance=1'],
    'gce': ['--objective.hard=gce'],
    'sce': ['--objective.hard=sce'],
    'nce_rce': ['--objective.hard=nce_rce'],
    'small_loss': _SMALL_LOSS,
    'small_loss, joint': [*_SMALL_LOSS, '--objective.select=joint'],
    'elr': ['--objective.hard=elr'],
    'elr, targets mean': ['--objective.hard=elr', '--objective.targets=mean'],
    'elr, targets others': ['--objective.hard=elr', '--objective.targets=others'],
    'selc': ['--objective.hard=selc'],
}
MIXED = ['--augment.mixup=1', '--ema.decay=0.997']
MIXING = {'elr': ['--objective.hard=elr']}
"""Measured in steps with mixup and a running average of the weights too, where targets need one more forward pass."""


class Side:
    """A training state, and random batches for it.

    Args:
        keys: Keys of the recipe.
        classes: Number of classes, C.
    """

    def __init__(self, keys: Sequence[str], classes: int) -> None:
        self.config = parse_config([
            '--model.name=collab_test_resnet', f'--model.heads={HEADS}', '--data.path=-', f'--batch_size={BATCH}',
            '--optim.lr=0.001', *keys])
        torch.manual_seed(0)
        model = timm.create_model('collab_test_resnet', heads=HEADS, num_classes=classes)
        labels_N = torch.randint(classes, (IMAGES,))
        self.state = TrainState(self.config, model, IMAGES // BATCH, Accelerator(cpu=True), labels=labels_N)
        self.state.begin_epoch(0)
        schedule_objective(self.state.task.criterion, self.config.objective, 1.0)
        self.images = torch.randn(BATCH, 3, 32, 32)
        self.logits_HBC = torch.randn(HEADS, BATCH, classes)
        self.labels_B = labels_N[:BATCH]
        self.made = 0

    @property
    def bytes_per_image(self) -> int:
        """Memory of the targets of a training image."""
        hard = self.state.task.criterion.criterion
        return hard.targets.nbytes // IMAGES if isinstance(hard, ImageTargets) else 0

    def objective(self) -> float:
        """CPU seconds of the objective, forward and backward, and of storing targets."""
        logits_HBC, index_B = self.logits_HBC.clone().requires_grad_(), self._index()
        start = time.process_time()
        self.state.task.criterion.evaluate(logits_HBC, self.labels_B, index_B)[0].backward()
        self.state._remember(index_B)
        return time.process_time() - start

    def step(self) -> float:
        """CPU seconds of a training step."""
        images, index_B = self.images.clone(), self._index()
        start = time.process_time()
        self.state.train_step(images, self.labels_B, self.labels_B, 1, self.made % (IMAGES // BATCH), index_B)
        return time.process_time() - start

    def _index(self) -> Tensor:
        self.made += 1
        return torch.randint(IMAGES, (BATCH,), generator=torch.Generator().manual_seed(self.made))


def compare(base: Callable[[], float], own: Callable[[], float], rounds: int) -> dict[str, float]:
    """Medians in milliseconds, and the median ratio with its quartiles, of rounds in which each comes first in turn."""
    pairs = []
    for number in range(rounds + 3):
        pair = (base(), own()) if number % 2 else (own(), base())[::-1]
        pairs.append(pair)
    low, ratio, high = statistics.quantiles((b / a for a, b in pairs[3:]), n=4)
    ce_ms, own_ms = (1e3 * statistics.median(side) for side in zip(*pairs[3:], strict=True))
    return {'ce_ms': ce_ms, 'own_ms': own_ms, 'ratio': ratio, 'low': low, 'high': high}


def main() -> None:
    """Measure, print and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=40)
    parser.add_argument('--classes', type=int, nargs='+', default=[10, 1000])
    parser.add_argument('--losses', nargs='+', default=[*LOSSES, *(f'{name}, mixed' for name in MIXING)])
    parser.add_argument('--output', type=Path, help=f'append rows to this file, such as {RESULTS}')
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    known = LOSSES | {f'{name}, mixed': [*keys, *MIXED] for name, keys in MIXING.items()}
    for classes in args.classes:
        for name in args.losses:
            mixes = name.endswith('mixed')
            base, own = Side(MIXED if mixes else CE, classes), Side(known[name], classes)
            for quantity in ('step',) if mixes else ('objective', 'step'):
                found = compare(getattr(base, quantity), getattr(own, quantity), args.rounds)
                print(f'{name:20} {classes:5} {quantity:10} {found["ce_ms"]:8.2f} {found["own_ms"]:8.2f} ms'
                      f' {found["ratio"]:.3f} ({found["low"]:.3f} to {found["high"]:.3f})', flush=True)
                if args.output is not None:
                    append(args.output, [{
                        'loss': name, 'classes': classes, 'quantity': quantity, **found,
                        'bytes_per_image': own.bytes_per_image, 'rounds': args.rounds,
                        'load': f'{os.getloadavg()[0]:.1f}', 'commit': commit(), **machine()}], COLUMNS)


if __name__ == '__main__':
    main()
