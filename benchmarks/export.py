"""Time and memory of exporting a head, without the verification.

The run has a tree with randomly initialised weights. A fresh process exports the kept head or another one, which it
extracts from the tree. Output is the time and the rise of the peak resident memory over its value before the export, in
multiples of the size of the head's weights. Linux only.

    python -m benchmarks.export --arch resnet50
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import sys, time
from pathlib import Path
from timm_collab import load_run
from timm_collab.hub import ExportOptions
from timm_collab.hub.export import write_folder

def memory(key):
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

run, folder = Path(sys.argv[1]), Path(sys.argv[2])
Path('/proc/self/clear_refs').write_text('5')  # resets the peak
before = memory('VmRSS')
start = time.perf_counter()
write_folder(load_run(run), folder, ExportOptions(license='mit', head=sys.argv[3]))
seconds = time.perf_counter() - start
weights = (folder / 'model.safetensors').stat().st_size
rise = (memory('VmHWM') - before) / weights
print(f'{seconds:.2f} s, {weights / 1e6:.0f} MB of weights, peak + {rise:.2f} x the weights')
"""


def main() -> None:
    """Create a run, export it in fresh processes and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--arch', default='resnet50')
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()

    from tests.runs import finished_run  # the tests' own

    with tempfile.TemporaryDirectory() as scratch:
        run = finished_run(Path(scratch, 'run'), arch=args.arch, in_chans=3, size=64)
        for head in ('best', '3'):
            for number in range(args.rounds):
                command = [sys.executable, '-c', CODE, str(run), str(Path(scratch, f'{head}-{number}')), head]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f'{args.arch}, head {head}: {done.stdout.strip()}')


if __name__ == '__main__':
    main()
