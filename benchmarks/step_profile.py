"""Profile of a training step, by stage, operator and optimizer, for a network and its tree.

Multiply-adds predict the cost of a tree if all of them take equally long. This shows the time of each stage of the
single network; the time of each type of operator in both, by torch's profiler; and the time of an update with each of
torch's optimizer implementations. All measurements run in turn in one process, with medians over the rounds.

    python -m benchmarks.step_profile --network test_resnet --threads 1
    python -m benchmarks.step_profile --network resnet50 --rounds 3
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from typing import Any

import timm.optim
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import timm_collab
from timm_collab import CollaborativeLoss

from .cost import NETWORKS, Bench
from .measure import Side, in_turn, machine

GROUPS = {
    'convolutions': ('conv',), 'normalisation': ('batch_norm', 'layer_norm', 'group_norm', 'rms_norm'),
    'matrix products': ('mm', 'attention', 'linear'),
    'elementwise, pooling': ('relu', 'threshold', 'clamp', 'gelu', 'silu', 'sigmoid', 'add', 'mul', 'div', 'sum',
                             'mean', 'pool', 'exp', 'copy', 'fill', 'zero', 'sub', 'pow'),
}
REST = 'overhead of torch and Python'


def by_operator(side: Side) -> tuple[Counter[str], Counter[str]]:
    """Return the milliseconds and calls of each group of operators in one step."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        side.step()
    events = record.events()
    update = next(event.time_range.start for event in events if event.name == 'mark: backward 0')
    ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        group = next((name for name, parts in GROUPS.items() if any(part in event.name.lower() for part in parts)
                      and event.name.startswith('aten::')), REST)
        group = 'optimizer' if event.time_range.start >= update else group
        ms[group] += event.self_cpu_time_total / 1e3
        calls[group] += event.name.startswith('aten::')
    return ms, calls


def stages(bench: Bench, tree: Any, rounds: int) -> None:
    """Print the share of each stage in multiply-adds and time, and its number of copies in the tree."""
    shares = []
    for _ in range(rounds + 1):
        bench.single.step()
        seconds = bench.stages.seconds()
        shares.append({part: each / sum(seconds.values()) for part, each in seconds.items()})
    points = timm_collab.split_points(bench.single.model, img_size=(bench.network.size,) * 2)
    costs = {point.name: point.cost - 1 for point in points}
    after = [1., *(costs[cut] for cut in bench.stages.cuts[1:]), 0.]
    runs = bench.stages.runs(tree)
    print('\n| stage | multiply-adds | time | in the tree |\n|---|---|---|---|')
    for number, cut in enumerate(bench.stages.cuts, 1):
        time_share = statistics.median(share[str(number)] for share in shares[1:])
        print(f'| after {cut} | {100 * (after[number - 1] - after[number]):.0f} % | {100 * time_share:.0f} % |'
              f' {runs[str(number)]} x |')
    for part in ('objective', 'optimizer'):
        print(f'| {part} | | {100 * statistics.median(share[part] for share in shares[1:]):.1f} % | |')


def operators(single: Side, tree: Side, rounds: int) -> None:
    """Print the time of each group of operators on both sides."""
    sides = (single, tree)
    found = [[by_operator(side) for side in sides] for _ in range(rounds + 1)][1:]
    print('\n| operators | single, ms (calls) | tree, ms (calls) | tree / single |\n|---|---|---|---|')
    for group in (*GROUPS, 'optimizer', REST):
        ms = [statistics.median(row[index][0][group] for row in found) for index in (0, 1)]
        calls = [found[0][index][1][group] for index in (0, 1)]
        print(f'| {group} | {ms[0]:.1f} ({calls[0]}) | {ms[1]:.1f} ({calls[1]}) | {ms[1] / ms[0]:.2f} |')


def updates(single: nn.Module, tree: nn.Module, rounds: int) -> None:
    """Print the time of an update, by each of torch's implementations."""
    print('\n| optimizer | implementation | single, ms | tree, ms |\n|---|---|---|---|')
    for name in ('sgd', 'adamw'):
        for kind, options in (('torch chooses', {}), ('foreach', {'foreach': True}), ('fused', {'fused': True})):
            steps = [updater(model, name, options) for model in (single, tree)]
            ms = [1e3 * statistics.median(side) for side in zip(*in_turn(steps, rounds, warm_up=3), strict=True)]
            print(f'| {name} | {kind} | {ms[0]:.2f} | {ms[1]:.2f} |')


def updater(model: nn.Module, name: str, options: dict[str, bool]) -> Any:
    """Return a function that updates a model's weights and returns the time in seconds."""
    optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=1e-6, momentum=.9, weight_decay=1e-4, **options)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    def step() -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=list(NETWORKS), default='test_resnet')
    parser.add_argument('--heads', type=int, default=4)
    parser.add_argument('--pattern', default='hierarchical')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    bench = Bench(NETWORKS[args.network])
    model = bench.grow(args.pattern, args.heads)
    tree = bench.side(model, CollaborativeLoss())
    print(f'{args.network}, {bench.network.size} px, batch {bench.network.batch}, {model.tree}, {args.rounds} rounds;',
          ', '.join(f'{key} {value}' for key, value in machine().items()))
    stages(bench, model.tree, args.rounds)
    operators(bench.single, tree, args.rounds)
    updates(bench.single.model, model, max(args.rounds, 20))


if __name__ == '__main__':
    main()
