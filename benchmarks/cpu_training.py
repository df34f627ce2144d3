"""What keeping freed memory and moving all weights in one kernel bring to training on a CPU.

The same recipe is trained in a process of its own with both, with one of them, and with neither; the runs take turns.
Counted are the training parts of all epochs but the first. Memory is the process's peak, with Python, PyTorch and the
decoded images; page faults are those that a page was found for without reading a file.

    TIMM_COLLAB_DATA=/path/to/data python -m benchmarks.cpu_training
    TIMM_COLLAB_DATA=/path/to/data python -m benchmarks.cpu_training --keys --model.tree=layer2:2,layer3:2
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch

import timm_collab

LEFT_OUT: dict[str, tuple[str, ...]] = {
    'both': (),
    'memory kept': ('fuse',),
    'one kernel': ('keep_freed_memory',),
    'neither': ('fuse', 'keep_freed_memory'),
}

PROGRAM = """
import sys
from timm_collab.train import prepare, updater
from timm_collab.train.__main__ import main

for module, name in ((updater, 'fuse'), (prepare, 'keep_freed_memory')):
    assert callable(getattr(module, name))
    if name in sys.argv[1].split(','):
        setattr(module, name, lambda *args: None)
sys.exit(main(sys.argv[2:]))
"""


def measure(left_out: tuple[str, ...], keys: list[str], threads: int) -> tuple[float, float, float]:
    """Images per second, peak memory in MiB (which Linux tells in KiB) and page faults in thousands of one run."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, '-c', PROGRAM, ','.join(left_out), *keys, f'--output={folder}/run', '--plots=false'],
            env={**os.environ, 'OMP_NUM_THREADS': str(threads), 'CUDA_VISIBLE_DEVICES': '', 'HF_HUB_OFFLINE': '1'},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f'training failed with {child.returncode}: {" ".join(keys)}')
        rows = [json.loads(line) for line in Path(folder, 'run', 'metrics.jsonl').read_text().splitlines()]
    speed = statistics.harmonic_mean([row['images_per_second'] for row in rows[1:]])
    return speed, usage.ru_maxrss / 1024, usage.ru_minflt / 1e3


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--keys', nargs=argparse.REMAINDER, default=[], help='further keys of the recipe, to the end')
    args = parser.parse_args()
    if 'TIMM_COLLAB_DATA' not in os.environ:
        parser.error('TIMM_COLLAB_DATA is not set, see above')
    keys = [
        '--model.name=collab_resnet18', f'--data.path={os.environ["TIMM_COLLAB_DATA"]}/cifar10',
        '--data.max_train_samples=2560', '--data.img_size=32', '--data.pipeline=batch', '--epochs=3',
        *(args.keys or ['--model.heads=1']),
    ]
    print(f'{" ".join(keys[2:])}: cpu, torch {torch.__version__} with {args.threads} of {os.cpu_count()} cores, timm'
          f' {timm.__version__}, timm-collab {timm_collab.__version__}, {args.rounds} rounds')
    found: dict[str, list[tuple[float, float, float]]] = {each: [] for each in LEFT_OUT}
    for turn in range(args.rounds):
        for each in list(LEFT_OUT) if turn % 2 == 0 else reversed(LEFT_OUT):
            found[each].append(measure(LEFT_OUT[each], keys, args.threads))
    print('| with | img/s | by neither, rounds | median | peak memory by neither | page faults, thousands |')
    print('|---|---|---|---|---|---|')
    for each, rows in found.items():
        pairs = list(zip(rows, found['neither'], strict=True))
        ratios = [row[0] / other[0] for row, other in pairs]
        print(f'| {each} | {statistics.median(row[0] for row in rows):,.0f}'
              f' | {", ".join(f"{ratio:.2f}" for ratio in ratios)} | {statistics.median(ratios):.2f}'
              f' | {statistics.median(row[1] / other[1] for row, other in pairs):.2f}'
              f' | {statistics.median(row[2] for row in rows):,.0f} |')


if __name__ == '__main__':
    main()
