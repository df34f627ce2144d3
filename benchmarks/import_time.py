"""Time that `import timm_collab` adds to `import timm`.

Each round starts a fresh interpreter that imports timm and then timm_collab, and times both separately: the times of
two interpreters with and without timm_collab vary by more than their difference. Output is the median over the rounds
with the quartiles, in wall-clock and in processor time; the latter is more reliable on a busy machine. The garbage
collector runs between the imports, since a full pass over timm's objects is due then and would distort either time.

    python benchmarks/import_time.py --rounds 15
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

CLOCKS = {'wall': 'perf_counter', 'cpu': 'process_time'}

CODE = f"""
import gc, json, time
def read(): return [getattr(time, name)() for name in {tuple(CLOCKS.values())}]
start = read()
import timm
end = read()
gc.collect()
middle = read()
import timm_collab
print(json.dumps([start, end, middle, read()]))
"""


def measure() -> list[tuple[float, float]]:
    """Import both in a fresh interpreter, start-up excluded.

    Returns:
        For each clock, the milliseconds of `import timm` and of `import timm_collab` after it.
    """
    result = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True)
    return [(1e3 * (b - a), 1e3 * (d - c)) for a, b, c, d in zip(*json.loads(result.stdout), strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=15, help='fresh interpreters')
    rounds = parser.parse_args().rounds
    if rounds < 2:
        parser.error(f'--rounds must be at least 2, got {rounds}')

    measure()  # fills the disk cache and writes the bytecode
    results = [measure() for _ in range(rounds)]
    for column, clock in enumerate(CLOCKS):
        timm, added = zip(*(result[column] for result in results), strict=True)
        low, _, high = statistics.quantiles(added, n=4)
        print(
            f'{clock:<4}  import timm: {statistics.median(timm):.0f} ms  timm_collab adds: '
            f'{statistics.median(added):.0f} ms (quartiles {low:.0f} to {high:.0f}), {rounds} rounds'
        )


if __name__ == '__main__':
    main()
