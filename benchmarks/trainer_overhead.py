"""Overhead of the trainer: per update, and of one checkpoint per epoch.

Updates: the trainer's update and a bare one (forward, objective, backward, optimizer step) alternate on the same batch.
Output is their median difference as a fraction of a step of 50 ms and of the bare update.

Checkpoints: output is the time to save the trainer's state as a fraction of an epoch of `--updates` updates.

    python -m benchmarks.trainer_overhead --model collab_test_resnet --rounds 200
"""
from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from timm_collab import CollaborativeTask
from timm_collab.train import TrainConfig
from timm_collab.train.checkpoint import Checkpoints
from timm_collab.train.config.parse import parse_config
from timm_collab.train.data.loading.images import EpochSampler
from timm_collab.train.loop.meter import LossMeter
from timm_collab.train.loop.trainer import Loaders, Trainer

STEP = 0.050


def random_images(batch_size: int, size: int) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, size, size] and class indices [B] of ten classes."""
    torch.manual_seed(0)
    return torch.randn(batch_size, 3, size, size), torch.randint(10, (batch_size,))


def make_trainer(
        config: TrainConfig, model: nn.Module, batch: tuple[Tensor, Tensor], accelerator: Accelerator,
) -> Trainer:
    """A trainer with one batch of data, at the start of an epoch."""
    loader = DataLoader(TensorDataset(*batch), batch_size=config.batch_size)
    trainer = Trainer(config, model, Loaders(loader, EpochSampler(config.batch_size, 0), loader, None), accelerator)
    trainer.state.begin_epoch(0)
    return trainer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='collab_test_resnet')
    parser.add_argument('--size', type=int, default=32, help='side of the images')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--rounds', type=int, default=200)
    parser.add_argument('--saves', type=int, default=5)
    parser.add_argument('--updates', type=int, default=390, help='updates per epoch')
    args = parser.parse_args()

    images, target_B = random_images(args.batch_size, args.size)
    config = parse_config([f'--model.name={args.model}', '--data.path=-', f'--batch_size={args.batch_size}'])
    trainer = make_trainer(
        config, timm.create_model(args.model, num_classes=10), (images, target_B),
        Accelerator(cpu=not torch.cuda.is_available()))
    device = trainer.accelerator.device
    images, target_B = images.to(device), target_B.to(device)
    meter = LossMeter(trainer.accelerator, 0)

    plain = CollaborativeTask(timm.create_model(args.model, num_classes=10).to(device), verbose=False).train()
    optimizer = timm.optim.create_optimizer_v2(
        plain.trainable_module, 'sgd', lr=1e-6, weight_decay=1e-4, fused=True if device.type == 'cpu' else None)

    def ours(step: int) -> None:
        meter.add(trainer.state.train_step(images, target_B, target_B, 0, step))
        if step % 20 == 19:
            meter.check()

    def bare(step: int) -> None:
        plain(images, target_B)['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {'ours': [], 'bare': []}
    for step in range(args.rounds + 10):
        for name, update in (('ours', ours), ('bare', bare)):
            start = time.perf_counter()
            update(step)
            if device.type == 'cuda':
                torch.cuda.synchronize()
            if step >= 10:
                times[name].append(time.perf_counter() - start)
    added = statistics.median(a - b for a, b in zip(*times.values(), strict=True))
    update_time = statistics.median(times['bare'])
    print(f'{args.model}: the trainer adds {1e3 * added:.2f} ms to an update of {1e3 * update_time:.1f} ms:'
          f' {100 * added / STEP:.2f} % of a step of 50 ms, {100 * added / update_time:.2f} % of this one')

    state = trainer.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        saves = []
        for number in range(args.saves):
            start = time.perf_counter()
            path = checkpoints.save(state, number)
            saves.append(time.perf_counter() - start)
        size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    epoch = args.updates * max(update_time, STEP)
    print(f'{args.model}: a checkpoint of {size:.0f} MiB takes {1e3 * statistics.median(saves):.0f} ms:'
          f' {100 * statistics.median(saves) / epoch:.2f} % of an epoch of {args.updates} updates of'
          f' {1e3 * max(update_time, STEP):.0f} ms')


if __name__ == '__main__':
    main()
