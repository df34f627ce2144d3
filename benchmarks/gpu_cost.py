"""Cost of a head tree on a GPU: time and memory of a training step, eager, compiled and with CUDA graphs.

A step is forward (bf16 autocast, channels-last), objective, backward and an update by SGD with momentum. The tree and
the single network take turns in one process, with several steps per time measurement; a ratio is the median over the
rounds. Memory is the peak of torch's allocator in a step, without weights, momentum and images.

Modes: `eager`; `compiled`, model and objective with torch.compile; `graphs`, compiled and replayed as CUDA graphs
(`compile_mode: reduce-overhead`). Rows are appended to a CSV file, and rows in the file are not measured again.

    python -m benchmarks.gpu_cost
    python -m benchmarks.gpu_cost --cells cifar_resnet32:hierarchical:4 --modes eager compiled graphs
"""
from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_collab import CollaborativeTask

from .cost_rows import append, read
from .measure import commit, in_turn, multiply_adds, quartiles

RESULTS = Path(__file__).parent / 'results' / 'cost' / 'gpu.csv'
KEY = ('network', 'batch', 'size', 'pattern', 'heads', 'mode')
COLUMNS = (
    *KEY, 'tree', 'step_ms', 'single_ms', 'step_ratio', 'low', 'high', 'multiply_adds', 'parameters', 'peak_mib',
    'single_mib', 'peak_ratio', 'rounds', 'device', 'torch', 'timm', 'commit',
)
MODES: dict[str, dict[str, str] | None] = {
    'eager': None, 'compiled': {'mode': 'default'}, 'graphs': {'mode': 'reduce-overhead'}}


@dataclass(frozen=True)
class Network:
    """Batch size, image size and number of classes for a network."""

    batch: int
    size: int = 224
    classes: int = 1000


NETWORKS = {
    'cifar_resnet32': Network(128, 32, classes=10),
    'resnet50': Network(128),
    'convnext_tiny': Network(128),
    'vit_small_patch16_224': Network(128),
    'efficientnet_b0': Network(128),
}
CELLS = [f'{network}:{tree}' for network, tree in itertools.product(
    NETWORKS, ('simple:2', 'hierarchical:4', 'instances:4'))]


class Side:
    """A model and its training step on the GPU.

    Args:
        model: `CollabModel`, or the plain network.
        x: Images, channels-last.
        target_B: Class indices.
        options: Options of `torch.compile`, None for eager mode.
    """

    def __init__(self, model: nn.Module, x: Tensor, target_B: Tensor, options: dict[str, str] | None) -> None:
        model.to(x.device, memory_format=torch.channels_last).train()
        self.task = CollaborativeTask(_Autocast(model), device=x.device, verbose=False).train()
        if options is not None:
            self.task.compile(**options)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=.9, weight_decay=1e-4)
        self.x, self.target_B = x, target_B

    def steps(self, count: int) -> float:
        """Run a number of steps and return the seconds per step."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            self.task(self.x, self.target_B)['loss'].backward()
            self.optimizer.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    def peak(self) -> float:
        """Peak memory of a step in MiB, without weights, momentum and images."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.steps(1)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast('cuda', dtype=torch.bfloat16):
            return self.model(x)


def measure(cell: str, mode: str, rounds: int) -> dict[str, Any]:
    """Measure one row."""
    name, pattern, heads = cell.split(':')
    network = NETWORKS[name]
    x = torch.randn(network.batch, 3, network.size, network.size, device='cuda').to(memory_format=torch.channels_last)
    target_B = torch.randint(network.classes, (network.batch,), device='cuda')
    torch.compiler.reset()
    plain = timm.create_model(name, num_classes=network.classes)
    model = timm.create_model(f'collab_{name}', heads=int(heads), pattern=pattern, num_classes=network.classes)
    shape = torch.empty(2, 3, network.size, network.size)
    work = multiply_adds(model, shape) / multiply_adds(plain, shape)
    parameters = (sum(p.numel() for p in each.parameters()) for each in (model, plain))
    single, tree = (Side(each, x, target_B, MODES[mode]) for each in (plain, model))
    for side in (single, tree):
        side.steps(3)
    # About a third of a second per time measurement.
    counts = [max(1, min(50, round(.3 / side.steps(3)))) for side in (single, tree)]
    pairs = in_turn([lambda: single.steps(counts[0]), lambda: tree.steps(counts[1])], rounds)
    low, ratio, high = quartiles([b / a for a, b in pairs])
    single_mib, peak_mib = single.peak(), tree.peak()
    single_ms, step_ms = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
    return {
        'network': name, 'batch': network.batch, 'size': network.size, 'pattern': pattern, 'heads': heads, 'mode': mode,
        'tree': str(model.tree), 'step_ms': step_ms, 'single_ms': single_ms, 'step_ratio': ratio, 'low': low,
        'high': high, 'multiply_adds': work, 'parameters': next(parameters) / next(parameters), 'peak_mib': peak_mib,
        'single_mib': single_mib, 'peak_ratio': peak_mib / single_mib, 'rounds': rounds,
        'device': torch.cuda.get_device_name(), 'torch': torch.__version__, 'timm': timm.__version__,
        'commit': commit(),
    }


def main() -> None:
    """Measure the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cells', nargs='+', default=CELLS, help='NETWORK:PATTERN:HEADS')
    parser.add_argument('--modes', nargs='+', choices=list(MODES), default=['eager'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--output', type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error('no GPU was found')
    torch.backends.cudnn.benchmark = True

    known = {tuple(row[key] for key in KEY) for row in read(args.output)}
    for cell, mode in itertools.product(args.cells, args.modes):
        name, pattern, heads = cell.split(':')
        network = NETWORKS[name]
        if (name, str(network.batch), str(network.size), pattern, heads, mode) in known:
            continue
        started = time.monotonic()
        row = measure(cell, mode, args.rounds)
        append(args.output, [row], COLUMNS)
        print(f'{time.monotonic() - started:4.0f} s  {cell}, {mode}: step {row["step_ms"]:.2f} ms, single'
              f' {row["single_ms"]:.2f} ms, {row["step_ratio"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f}),'
              f' multiply-adds {row["multiply_adds"]:.3f}; peak {row["peak_mib"]:.0f} MiB, single'
              f' {row["single_mib"]:.0f} MiB, {row["peak_ratio"]:.3f}', flush=True)
        torch.cuda.empty_cache()


if __name__ == '__main__':
    main()
