"""Images per second of the input pipeline: images decoded once and augmented in batches, against timm's loader.

Both produce batches of CIFAR-10 on the CPU: cropped (`--crop pad`: pad by 4 and crop, or `rrc`: random resized crop),
flipped and normalised. timm's `create_loader` has its own transform, with the pad crop in place of its random resized
crop, and runs with several numbers of workers, of which the best counts. The sides take turns of a number of batches,
after a pause in which workers fill their queues and become idle; the ratio is the median over the rounds. Decoding and
the start of timm's workers happen once per run and are not counted.

    TIMM_COLLAB_DATA=/path/to/data python benchmarks/input_pipeline.py
    TIMM_COLLAB_DATA=/path/to/data python benchmarks/input_pipeline.py --crop rrc
"""
from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch

import timm_collab
from timm_collab.train.config import AugmentConfig, DataConfig
from timm_collab.train.data.augment.preprocess import Preprocessing, make_preprocessing
from timm_collab.train.data.loading.images import BatchedImages, make_dataset, training_loader
from timm_collab.train.data.sources import load_source

BOUND = 10.0
PAUSE = 2.0  # seconds


def forever(loader: Any) -> Iterator[Any]:
    """Iterate over a loader again and again."""
    while True:
        yield from loader


def timms_loader(folder: Path, preprocessing: Preprocessing, batch_size: int, workers: int) -> Any:
    """timm's loader with the transform of the recipe; workers normalise, as timm does on a CPU."""
    dataset = timm.data.create_dataset(f'hfds/{folder.absolute()}', root=None, split='train')
    size = preprocessing.data_config['input_size']
    loader = timm.data.create_loader(
        dataset, size, batch_size, is_training=True, use_prefetcher=False, num_workers=workers,
        device=torch.device('cpu'), persistent_workers=workers > 0,
    )
    dataset.transform = preprocessing.training
    return loader


def rate(batches: Iterator[Any], count: int, queued: int = 0) -> float:
    """Images per second over a number of batches.

    Args:
        batches: The batches.
        count: Number of batches to time.
        queued: Number of batches to skip, which workers have prepared in advance.
    """
    time.sleep(PAUSE)
    for _ in range(queued):
        next(batches)
    start, images = time.perf_counter(), 0
    for _ in range(count):
        images += len(next(batches)[0])
    return images / (time.perf_counter() - start)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--crop', choices=('pad', 'rrc'), default='pad')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2], help="numbers of timm's workers to try")
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--batches', type=int, default=16, help="timm's batches per round; ours: eight times as many")
    parser.add_argument('--data', default=os.environ.get('TIMM_COLLAB_DATA'), help='folder with cifar10/')
    args = parser.parse_args()
    if not args.data:
        parser.error('set TIMM_COLLAB_DATA or --data to the folder with cifar10/')

    folder = Path(args.data) / 'cifar10'
    config = DataConfig(path=str(folder), img_size=32, pipeline='batch')
    model = timm.create_model('test_resnet', num_classes=10)
    preprocessing = make_preprocessing(model, config, AugmentConfig(crop=args.crop))
    start = time.perf_counter()
    dataset = make_dataset(load_source(config).train, preprocessing, True, 0, config)
    assert isinstance(dataset, BatchedImages)
    print(f'CIFAR-10, crop {args.crop}, flip, normalise, batch {args.batch_size}, {os.cpu_count()} cores, torch'
          f' {torch.__version__} with {torch.get_num_threads()} threads, timm {timm.__version__}, timm-collab'
          f' {timm_collab.__version__}; ready after {time.perf_counter() - start:.1f} s')
    ours = forever(training_loader(dataset, args.batch_size, 0, 0)[0])
    theirs = {
        workers: forever(timms_loader(folder, preprocessing, args.batch_size, workers)) for workers in args.workers
    }
    for batches in (ours, *theirs.values()):
        rate(batches, 8)

    rounds = []
    for _ in range(args.rounds):
        rates = {}
        for workers, batches in theirs.items():
            rates[workers] = rate(batches, args.batches, queued=3 * workers)
        rounds.append((rate(ours, 8 * args.batches), rates))
    print("| timm's workers | timm, img/s | ours, img/s | ours / timm | quartiles |")
    print('|---|---|---|---|---|')
    for workers in args.workers:
        ratios = [our_rate / rates[workers] for our_rate, rates in rounds]
        low, _, high = statistics.quantiles(ratios, n=4)
        print(f'| {workers} | {statistics.median(rates[workers] for _, rates in rounds):,.0f}'
              f' | {statistics.median(our_rate for our_rate, _ in rounds):,.0f} | {statistics.median(ratios):.1f}'
              f' | {low:.1f} to {high:.1f} |')
    best = statistics.median(our_rate / max(rates.values()) for our_rate, rates in rounds)
    print(f"against timm's best number of workers in each round: {best:.1f} (bound {BOUND:.0f})")


if __name__ == '__main__':
    main()
