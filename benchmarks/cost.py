"""Cost of a head tree: time and memory of training steps, forward passes and inference, with predictions.

For each network, pattern and number of heads, it measures relative to the single network: a training step (forward,
objective, backward, SGD), its peak memory, and a forward pass of all heads. Four hierarchical heads are also compared
with the same tree written by hand and with four separate networks that learn from each other on the same batch (Deep
Mutual Learning); their pruned head is compared with the plain network. Two sides take turns in one process, and a ratio
is the median over the rounds. Rows also have the ratio of the multiply-adds, and the time and memory that `liveness.py`
predicts.

Rows are appended to a CSV file, and rows in the file are not measured again, so that an interrupted run can be resumed.
At the end, the script checks the project's claims and fails if one doesn't hold. `benchmarks/cost_report.py` makes the
tables and plots of docs/performance.md from the file.

    python -m benchmarks.cost --threads 2
    python -m benchmarks.cost --networks cifar_resnet32 --heads 1 4 --rounds 3 --output scratch.csv
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from timm_collab import CollabModel, CollaborativeLoss
from timm_collab.objective.baselines import MutualLearningLoss
from timm_collab.tree import HeadTree

from .cost_claims import print_claims
from .cost_rows import KEY, RESULTS, append, read
from .hand_written import by_hand, check
from .liveness import Stages
from .measure import Side, commit, in_turn, machine, multiply_adds, quartiles

PATTERNS = ('hierarchical', 'simple', 'instances')


@dataclass(frozen=True)
class Network:
    """A network and its batch.

    Args:
        name: The architecture.
        batch: Batch size.
        size: Side of the images.
        classes: Number of classes.
        line: Measure 1 to 8 heads of the pattern `simple`, instead of powers of two.
        channels_last: Whether tensors have the channels-last memory format.
    """

    name: str
    batch: int
    size: int = 224
    classes: int = 1000
    line: bool = False
    channels_last: bool = False


NETWORKS = {network.name: network for network in (
    Network('cifar_resnet32', 128, 32, classes=10, line=True),
    Network('resnet50', 8, line=True),
    Network('convnext_tiny', 2),
    Network('vit_small_patch16_224', 2),
    Network('efficientnet_b0', 4),
    Network('test_resnet', 128, 32, classes=10, channels_last=True),
)}


@dataclass(frozen=True)
class Cell:
    """A tree to measure; its rows are written together."""

    network: Network
    pattern: str
    heads: int

    @property
    def key(self) -> tuple[str, ...]:
        """The first columns of its rows."""
        network = self.network
        return network.name, str(network.batch), str(network.size), self.pattern, str(self.heads)

    @property
    def is_shown(self) -> bool:
        """Whether it is the tree with all comparisons: four heads, as in the paper."""
        return (self.pattern, self.heads) == ('hierarchical', 4)


class Separate(nn.Module):
    """Separate networks on the same batch.

    Args:
        nets: The networks.
    """

    def __init__(self, nets: list[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all networks, [H, B, C]."""
        return torch.stack([net(x) for net in self.nets])


def cells(networks: list[Network], patterns: list[str], heads: list[int] | None) -> Iterator[Cell]:
    """Trees to measure; one head is measured once, for the first pattern."""
    for network in networks:
        for pattern in patterns:
            every = range(1, 9) if network.line and pattern == 'simple' else (1, 2, 4, 8)
            for number in heads or every:
                if number > 1 or pattern == patterns[0]:
                    yield Cell(network, pattern if number > 1 else 'single', number)


class Bench:
    """The single network and the batch for all trees of a network.

    Args:
        network: The network.
    """

    def __init__(self, network: Network):
        torch.manual_seed(0)
        self.network = network
        self.format = torch.channels_last if network.channels_last else torch.contiguous_format
        plain = timm.create_model(network.name, num_classes=network.classes)
        shape = (network.batch, 3, network.size, network.size)
        self.x = torch.randn(shape).contiguous(memory_format=self.format)
        self.target_B = torch.randint(network.classes, (network.batch,))
        self.single = self.side(plain, nn.CrossEntropyLoss())
        self.work = multiply_adds(plain, self.x)
        self.parameters = sum(p.numel() for p in plain.parameters())
        wanted = {name for heads in (2, 4, 8) for name in self.grow('hierarchical', heads).tree.split_names}
        self.stages = Stages(self.single, [name for name, _ in plain.named_modules() if name in wanted])

    def side(self, model: nn.Module, objective: Any) -> Side:
        """A model and its training step."""
        return Side(model.to(memory_format=self.format), objective, self.x, self.target_B)

    def measure(self, cell: Cell, rounds: int) -> list[dict[str, Any]]:
        """Measure the rows of a tree."""
        model = self.grow(cell.pattern, cell.heads)
        tree = self.side(model, CollaborativeLoss())
        if cell.heads == 1:
            check(tree, self.side(model.prune(), nn.CrossEntropyLoss()))
        others = {'single': self.single, **(self._others(model) if cell.is_shown else {})}
        if 'by hand' in others:
            check(tree, others['by hand'])
        growth = sum(p.numel() for p in model.parameters()) / self.parameters
        work = {'multiply_adds': multiply_adds(model, self.x) / self.work}
        by_stages: list[float] = []

        def single_step() -> float:
            seconds = self.single.step()
            by_stages.append(self.stages.time_of(model.tree, growth))
            return seconds

        rows = []
        for name, other in others.items():  # in pairs: a third side would only make rounds longer
            is_single, more = name == 'single', 2 if name == 'by hand' else 1
            taken = in_turn([tree.step, single_step if is_single else other.step], more * rounds)
            columns = {**work, 'by_stages': quartiles(by_stages[1:])[1], 'parameters': growth} if is_single else {}
            rows.append(timed('step', name, taken, columns))
        rows.append(timed('forward', 'single', in_turn([tree.forward, self.single.forward], rounds), work))
        if cell.is_shown:
            pruned = self.side(model.prune(0), nn.CrossEntropyLoss())
            assert type(pruned.model) is type(self.single.model), f'{type(pruned.model)} is no plain network'
            for name, kept in (('kept head', tree), ('pruned', pruned)):
                rows.append(timed(name, 'single', in_turn([kept.infer, self.single.infer], 3 * rounds), {}))
        peak = tree.peak()
        peaks = {name: other.peak() for name, other in others.items() if name != 'single'}
        peaks.update({'single': self.stages.bytes_of(HeadTree()), 'predicted': self.stages.bytes_of(model.tree)})
        rows += [{'quantity': 'peak', 'against': name, 'unit': 'MiB', 'own': peak / 2**20, 'other': other / 2**20,
                  'ratio': peak / other} for name, other in peaks.items()]
        fixed = {**dict(zip(KEY, cell.key, strict=True)), 'tree': str(model.tree), 'commit': commit(), **machine()}
        return [{**row, **fixed} for row in rows]

    def _others(self, model: CollabModel) -> dict[str, Side]:
        hand = by_hand(model)
        nets = [timm.create_model(model.backbone, num_classes=model.num_classes) for _ in range(model.num_heads)]
        return {
            **({} if hand is None else {'by hand': self.side(hand, CollaborativeLoss())}),
            'separate': self.side(Separate(nets), MutualLearningLoss(temperature=1.)),
        }

    def grow(self, pattern: str, heads: int) -> CollabModel:
        """Create a tree of the network."""
        pattern = 'hierarchical' if heads == 1 else pattern
        return timm.create_model(
            f'collab_{self.network.name}', heads=heads, pattern=pattern, num_classes=self.network.classes)


def timed(quantity: str, against: str, pairs: list[tuple[float, ...]], columns: dict[str, float]) -> dict[str, Any]:
    """A row for pairs of seconds, of the tree and of the other side."""
    low, ratio, high = quartiles([own / other for own, other in pairs])
    own, other = (1e3 * quartiles(side)[1] for side in zip(*pairs, strict=True))
    return {'quantity': quantity, 'against': against, 'unit': 'ms', 'own': own, 'other': other, 'ratio': ratio,
            'low': low, 'high': high, 'rounds': len(pairs), **columns}


def main() -> None:
    """Measure the rows that the file lacks, and check the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument('--patterns', nargs='+', choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument('--heads', nargs='+', type=int, help='default: 1, 2, 4, 8, or 1 to 8')
    parser.add_argument('--rounds', type=int, default=3, help='rounds after the warm-up; five times as many for four'
                                                              ' hierarchical heads, ten times against the tree by hand')
    parser.add_argument('--batch-size', type=int, help="in place of the study's")
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--output', type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, got {args.rounds}')

    torch.set_num_threads(args.threads)
    known = read(args.output)
    for name, value in machine().items():
        if known and {row[name] for row in known} != {value}:
            parser.error(f'{args.output} was measured with {name} {known[0][name]}, this is {value}, which can not be'
                         ' compared: write another --output')
    done = {tuple(row[key] for key in KEY) for row in known}
    networks = [replace(each, batch=args.batch_size or each.batch) for each in map(NETWORKS.get, args.networks) if each]
    started, bench = time.monotonic(), None
    for cell in cells(networks, args.patterns, args.heads):
        if cell.key in done:
            continue
        if bench is None or bench.network != cell.network:
            bench = Bench(cell.network)
        rows = bench.measure(cell, args.rounds * (5 if cell.is_shown else 1))
        append(args.output, rows)
        step = rows[0]
        print(f'{time.monotonic() - started:6.0f} s  {cell.network.name}, {step["tree"]}: step {step["ratio"]:.3f}'
              f' ({step["low"]:.3f} to {step["high"]:.3f}), multiply-adds {step["multiply_adds"]:.3f}, by the stages'
              f' {step["by_stages"]:.3f}', flush=True)
    sys.exit(not print_claims(read(args.output)))


if __name__ == '__main__':
    main()
