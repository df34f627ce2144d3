"""CPU time to read a data set into memory, by this checkout and by an older one.

50,000 JPEG files of 32 x 32 pixels, made from CIFAR-10, in a folder per class, and the same images in one parquet file;
without decoded images in the cache (cold) and with them (warm). Timed is `TrainingData.load`: digests, decoding, and in
this checkout duplicates and counts. Both sides take turns, each in a process of its own. CPU time is that of all
threads, and depends less than wall-clock time on what else the machine does.

    git worktree add /tmp/before v0.9.0
    TIMM_COLLAB_DATA=/path/to/data python -m benchmarks.reading --before /tmp/before
"""
from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets

BOUND = 1.1
MEASURE = """
import sys, time
import timm, torch
from timm_collab.train.config.parse import parse_config
from timm_collab.train.prepare import TrainingData, load_source, make_preprocessing, make_splits  # in any version

path, cache = sys.argv[1:]
config = parse_config(['--model.name=collab_test_resnet', '--data.path=' + path, '--data.img_size=32',
                       '--data.cache_dir=' + cache, '--augment.crop=pad', '--data.val_fraction=0.1'])
preprocessing = make_preprocessing(timm.create_model('test_resnet'), config.data, config.augment)
splits = make_splits(load_source(config.data), config)
for state in ('cold', 'warm'):
    start = time.process_time(), time.perf_counter()
    TrainingData.load(splits, preprocessing, config, torch.device('cpu'), False)
    print(time.process_time() - start[0], time.perf_counter() - start[1])
"""


def make_data(source: Path, folder: Path, count: int) -> dict[str, Path]:
    """Write the images as files and as a table; returns the path of each."""
    rows = datasets.Dataset.from_parquet(str(source / 'cifar10' / 'train.parquet'), cache_dir=str(folder / 'datasets'))
    cells = []
    for number, row in enumerate(rows.select(range(count))):
        file = folder / 'files' / str(row['label']) / f'{number}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        image = io.BytesIO()
        row['image'].save(image, 'JPEG', quality=95)
        file.write_bytes(image.getvalue())
        cells.append({'image': {'bytes': image.getvalue(), 'path': None}, 'label': row['label']})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(10))
    datasets.Dataset.from_list(cells, features=features).to_parquet(str(folder / 'train.parquet'))
    return {'files': folder / 'files', 'parquet': folder / 'train.parquet'}


def measure(checkout: Path, data: Path, cache: Path) -> dict[str, tuple[float, float]]:
    """CPU and wall-clock seconds to read data without and with decoded images in the cache."""
    environment = {**os.environ, 'PYTHONPATH': str(checkout), 'HF_DATASETS_CACHE': str(cache.parent / 'datasets'),
                   'HF_HUB_OFFLINE': '1'}
    command = [sys.executable, '-c', MEASURE, str(data), str(cache)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    cold_cpu, cold_wall, warm_cpu, warm_wall = map(float, done.stdout.split()[-4:])
    return {'cold': (cold_cpu, cold_wall), 'warm': (warm_cpu, warm_wall)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--before', type=Path, required=True, help='checkout to compare with')
    parser.add_argument('--data', type=Path, default=os.environ.get('TIMM_COLLAB_DATA'), help='folder with cifar10/')
    parser.add_argument('--images', type=int, default=50_000)
    parser.add_argument('--kinds', nargs='+', choices=('files', 'parquet'), default=('files', 'parquet'))
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    if not args.data:
        parser.error('set TIMM_COLLAB_DATA or --data to the folder with cifar10/')
    sides = {'before': args.before, 'now': Path(__file__).resolve().parent.parent}
    print('| data | cache | before, s CPU | now, s CPU | ratio | ratio of wall-clock time |')
    print('|---|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as scratch:
        made = make_data(args.data, Path(scratch), args.images)
        for name, data in ((name, made[name]) for name in args.kinds):
            seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for _ in range(args.rounds):
                for side, checkout in sides.items():
                    cache = Path(scratch) / side
                    for state, times in measure(checkout, data, cache).items():
                        seconds.setdefault((state, side), []).append(times)
                    shutil.rmtree(cache)
            for state in ('cold', 'warm'):
                before, now = seconds[state, 'before'], seconds[state, 'now']
                cpu, wall = (
                    statistics.median(new[part] / old[part] for old, new in zip(before, now, strict=True))
                    for part in (0, 1))
                old, new = (statistics.median(each[0] for each in side) for side in (before, now))
                print(f'| {name} | {state} | {old:.2f} | {new:.2f} | {cpu:.2f} (bound {BOUND}) | {wall:.2f} |',
                      flush=True)


if __name__ == '__main__':
    main()
