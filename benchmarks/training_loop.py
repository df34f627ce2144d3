"""Images per second of whole training loops with one head, against timm's train.py.

Both train the same architecture on the same image folder on the CPU, with the same batch size, augmentation (random
resized crop and flip, bilinear) and number of threads, each in its own process. timm's script runs with several numbers
of workers, of which the best counts. `timm_collab.train` needs no workers if images are decoded once, and gets the same
numbers otherwise. The runs take turns. The result is the training throughput that each program reports, without the
first epoch.

At 32 x 32 the images are CIFAR-10's, and ours are decoded once. With `--size 224` they are JPEG files of 256 x 256,
which both decode from disk in each epoch.

    TIMM_TRAIN_SCRIPT=/path/to/train.py TIMM_COLLAB_DATA=/path/to/data python benchmarks/training_loop.py
    TIMM_TRAIN_SCRIPT=/path/to/train.py TIMM_COLLAB_DATA=/path/to/data python benchmarks/training_loop.py --size 224
"""
from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import timm
import torch
from PIL import Image

import timm_collab

BOUNDS = {32: 1.2, 224: 1.0}


def write_images(folder: Path, data: Path, size: int, count: int) -> None:
    """Write an image folder of CIFAR-10: PNG files of the original size, or JPEG files of 256 x 256."""
    rows = datasets.load_dataset(str(data / 'cifar10'))
    for split, name, number in (('train', 'train', count), ('test', 'validation', 100)):
        for index, row in enumerate(rows[split].select(range(number))):
            place = folder / name / f'{row["label"]}'
            place.mkdir(parents=True, exist_ok=True)
            if size == 32:
                row['image'].save(place / f'{index:05}.png')
            else:
                row['image'].resize((256, 256), Image.Resampling.BICUBIC).save(place / f'{index:05}.jpg', quality=90)


def call(command: list[str], threads: int) -> str:
    """Run a program and return its output."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f'{" ".join(command)}\n{done.stderr[-3000:]}')
    return done.stdout + done.stderr


def timms(folder: Path, output: Path, arch: str, workers: int, args: argparse.Namespace) -> float:
    """Images per second of timm's script: the last mean that it logs in each epoch."""
    log = call([
        sys.executable, os.environ['TIMM_TRAIN_SCRIPT'], '--data-dir', str(folder), '--device', 'cpu',
        '--model', arch, '--num-classes', '10', '--input-size', '3', str(args.size), str(args.size), '-b',
        str(args.batch_size), '--opt', 'sgd', '--lr', '.01', '--sched', 'cosine', '--warmup-epochs', '0',
        '--cooldown-epochs', '0', '--epochs', str(args.epochs), '--color-jitter', '0', '--smoothing', '0',
        '--train-interpolation', 'bilinear', '--interpolation', 'bilinear', '--no-prefetcher', '-j', str(workers),
        '--output', str(output), '--experiment', 'timm', '--log-interval', '1',
    ], args.threads)
    means = {int(epoch): float(mean) for epoch, mean in re.findall(r'Train: (\d+) .*?\([\d.]+s, +([\d.]+)/s\)', log)}
    return statistics.harmonic_mean([mean for epoch, mean in means.items() if epoch > 0])


def ours(folder: Path, output: Path, arch: str, workers: int, args: argparse.Namespace) -> float:
    """Images per second of this package."""
    small = args.size == 32
    call([
        sys.executable, '-m', 'timm_collab.train', '--model.name', f'collab_{arch}', '--model.heads', '1',
        '--data.path', str(folder), '--data.img_size', str(args.size), '--data.interpolation', 'bilinear',
        '--data.pipeline', 'batch' if small else 'image', '--data.workers', str(workers),
        '--data.cache_mb', '1024' if small else '0', '--batch_size', str(args.batch_size),
        '--epochs', str(args.epochs), '--optim.name', 'sgd', '--optim.lr', '.01', '--output', str(output),
    ], args.threads)
    rows = [json.loads(line) for line in (output / 'metrics.jsonl').read_text().splitlines()]
    return statistics.harmonic_mean([row['images_per_second'] for row in rows[1:]])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['test_resnet', 'resnet18'])
    parser.add_argument('--size', type=int, choices=tuple(BOUNDS), default=32)
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--images', type=int, default=2560)
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2], help='numbers of workers to try')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    for name in ('TIMM_TRAIN_SCRIPT', 'TIMM_COLLAB_DATA'):
        if name not in os.environ:
            parser.error(f'{name} is not set, see above')

    print(f'{args.size} x {args.size}, batch {args.batch_size}, {args.images} images, {args.epochs} epochs, cpu, torch'
          f' {torch.__version__} with {args.threads} of {os.cpu_count()} cores, timm {timm.__version__}, timm-collab'
          f' {timm_collab.__version__}')
    print('| architecture | timm, img/s | ours, img/s | ours / timm, rounds | median | bound |')
    print('|---|---|---|---|---|---|', flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / 'images'
        write_images(folder, Path(os.environ['TIMM_COLLAB_DATA']), args.size, args.images)
        for arch in args.arch:
            pairs = []
            for turn in range(args.rounds):
                output = Path(temporary) / f'{arch}-{turn}'
                best = max(timms(folder, output / f'timm-{workers}', arch, workers, args) for workers in args.workers)
                mine = max(ours(folder, output / f'ours-{workers}', arch, workers, args)
                           for workers in ([0] if args.size == 32 else args.workers))
                pairs.append((best, mine))
            ratios = [mine / best for best, mine in pairs]
            best, mine = (statistics.median(side) for side in zip(*pairs, strict=True))
            print(f'| {arch} | {best:,.0f} | {mine:,.0f} | {", ".join(f"{ratio:.2f}" for ratio in ratios)}'
                  f' | {statistics.median(ratios):.2f} | {BOUNDS[args.size]:.1f} |', flush=True)


if __name__ == '__main__':
    main()
