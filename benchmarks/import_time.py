"""Time that `import timm_collab` adds to `import timm`.

Every round starts two fresh interpreters, one for each statement, in alternating order, so that a machine that slows
down or speeds up meanwhile does so for both. What is printed is the median over the rounds of the paired differences
and their middle half, in wall-clock time and in processor time; on a busy machine trust the latter.

    python benchmarks/import_time.py --rounds 15
"""
from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

CLOCKS = ('perf_counter', 'process_time')
BASE = 'import timm'
PLUGIN = 'import timm, timm_collab'


def measure(statement: str) -> list[float]:
    """Time one statement in a fresh interpreter, its start-up excluded.

    Args:
        statement: What to run.

    Returns:
        Milliseconds by each of the clocks.
    """
    read = f'[getattr(time, name)() for name in {CLOCKS}]'
    code = f'import time; start = {read}; {statement}; print(*(b - a for a, b in zip(start, {read})))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return [1e3 * float(seconds) for seconds in result.stdout.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=15, help='pairs of fresh interpreters')
    rounds = parser.parse_args().rounds
    if rounds < 2:
        parser.error(f'--rounds must be at least 2, got {rounds}')

    measure(PLUGIN)  # reads the files into the disk's cache and writes the bytecode
    times: dict[str, list[list[float]]] = {BASE: [], PLUGIN: []}
    for i in range(rounds):
        for statement in (BASE, PLUGIN) if i % 2 else (PLUGIN, BASE):
            times[statement].append(measure(statement))

    for column, clock in enumerate(('wall', 'cpu')):
        base, plugin = ([row[column] for row in times[statement]] for statement in (BASE, PLUGIN))
        added = [b - a for a, b in zip(base, plugin, strict=True)]
        low, _, high = statistics.quantiles(added, n=4)
        print(
            f'{clock:<4}  {BASE}: {statistics.median(base):.0f} ms  {PLUGIN}: {statistics.median(plugin):.0f} ms  '
            f'added: {statistics.median(added):.0f} ms (middle half {low:.0f} to {high:.0f}), {rounds} rounds'
        )


if __name__ == '__main__':
    main()
