"""Time that `import timm_collab` adds to `import timm`.

Every round starts a fresh interpreter that imports timm and then, timed apart, timm_collab: the difference of two
interpreters' times would drown in what one `import timm` differs from the next. What is printed is the median over the
rounds and their middle half, in wall-clock time and in processor time; on a busy machine trust the latter. In between
the garbage collector runs: a full pass over timm's objects is due about then, and would be counted to whoever it hits.

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
    """Import both in a fresh interpreter, its start-up excluded.

    Returns:
        For each of the clocks the milliseconds of `import timm` and of `import timm_collab` after it.
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

    measure()  # reads the files into the disk's cache and writes the bytecode
    results = [measure() for _ in range(rounds)]
    for column, clock in enumerate(CLOCKS):
        timm, added = zip(*(result[column] for result in results), strict=True)
        low, _, high = statistics.quantiles(added, n=4)
        print(
            f'{clock:<4}  import timm: {statistics.median(timm):.0f} ms  timm_collab adds: '
            f'{statistics.median(added):.0f} ms (middle half {low:.0f} to {high:.0f}), {rounds} rounds'
        )


if __name__ == '__main__':
    main()
