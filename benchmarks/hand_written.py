"""Training step of a head tree against the same tree written by hand, and of a tree of one head against the network.

By hand is an ordinary module that calls the plain network's own layers one after the other, with `rescale_gradient`
where it forks and `torch.stack` at the end. Both sides hold the same weights; that their logits are equal and the
gradients of the trunk close is checked before anything is measured.

A step is `zero_grad`, forward, objective and backward; the plain network's objective is torch's cross-entropy. The two
sides take it in turn in one process, each first in every other round; the ratio is the median over the rounds.

Memory is the peak of what torch's CPU allocator handed out since the step began and hasn't got back, as the profiler
records each allocation in one more step: activations, gradients and what operators need in between, without weights,
images and what libraries below torch allocate by themselves. It is the same number, to the byte, in every run.

    python benchmarks/hand_written.py --threads 2
    python benchmarks/hand_written.py --case cifar_resnet32 --rounds 40
"""
from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import timm_collab
from timm_collab import CollaborativeLoss
from timm_collab.rescale import rescale_gradient

BOUND = 1.02


class CifarResNet(nn.Module):
    """`layer1:2,layer2:2` of a CIFAR ResNet.

    Args:
        nets: The plain network of each head, whose modules move here.
    """

    tree = 'layer1:2,layer2:2'

    def __init__(self, nets: list[Any]):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nets[0].conv1, nets[0].bn1, nets[0].act1
        self.layer1 = nets[0].layer1
        self.layer2 = nn.ModuleList([nets[0].layer2, nets[2].layer2])
        self.layer3 = nn.ModuleList([net.layer3 for net in nets])
        self.global_pool, self.head_drop = nets[0].global_pool, nets[0].head_drop
        self.fc = nn.ModuleList([net.fc for net in nets])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all heads `[H, B, C]`."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = rescale_gradient(self.layer1(x), 1 / 2)
        logits_BC = []
        for branch in range(2):
            y = rescale_gradient(self.layer2[branch](x), 1 / 2)
            for head in (2 * branch, 2 * branch + 1):
                z = self.head_drop(self.global_pool(self.layer3[head](y)))
                logits_BC.append(self.fc[head](z))
        return torch.stack(logits_BC)


class ResNet(nn.Module):
    """`layer2:2,layer3:2` of a ResNet.

    Args:
        nets: The plain network of each head, whose modules move here.
    """

    tree = 'layer2:2,layer3:2'

    def __init__(self, nets: list[Any]):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nets[0].conv1, nets[0].bn1, nets[0].act1
        self.maxpool = nets[0].maxpool
        self.layer1, self.layer2 = nets[0].layer1, nets[0].layer2
        self.layer3 = nn.ModuleList([nets[0].layer3, nets[2].layer3])
        self.layer4 = nn.ModuleList([net.layer4 for net in nets])
        self.global_pool = nets[0].global_pool
        self.fc = nn.ModuleList([net.fc for net in nets])

    def forward(self, x: Tensor) -> Tensor:
        """Logits of all heads `[H, B, C]`."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        x = rescale_gradient(self.layer2(self.layer1(x)), 1 / 2)
        logits_BC = []
        for branch in range(2):
            y = rescale_gradient(self.layer3[branch](x), 1 / 2)
            for head in (2 * branch, 2 * branch + 1):
                logits_BC.append(self.fc[head](self.global_pool(self.layer4[head](y))))
        return torch.stack(logits_BC)


CASES: dict[str, tuple[Any, int]] = {'cifar_resnet32': (CifarResNet, 128), 'resnet50': (ResNet, 8)}
"""For each architecture its tree by hand and the batch size."""


@dataclass
class Side:
    """A model and the step it is measured by."""

    model: Any
    objective: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    target: Tensor

    def step(self) -> float:
        """Make a step and return how long it took, in seconds."""
        start = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        self.objective(self.model(self.x), self.target).backward()
        return time.perf_counter() - start

    def peak(self) -> int:
        """Make a step and return the most bytes that it held at once."""
        self.model.zero_grad(set_to_none=True)  # outside: it would count as bytes given back
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step()
        events = [event for event in record.profiler.kineto_results.events() if event.name() == '[memory]']
        events.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in events))


def check(tree: Side, other: Side) -> None:
    """Make sure that both sides compute the same, after which either has made a step.

    Raises:
        AssertionError: Parameters, logits or a gradient of the trunk differ.
    """
    logits_HBC, expected = tree.model(tree.x).detach(), other.model(other.x).detach()
    assert torch.equal(logits_HBC, expected.reshape_as(logits_HBC)), 'the logits differ'
    sizes = [sum(p.numel() for p in side.model.parameters()) for side in (tree, other)]
    assert sizes[0] == sizes[1], f'{sizes[0]} parameters and {sizes[1]}'
    tree.step()
    other.step()
    for name, parameter in tree.model.nodes['trunk'].named_parameters():
        torch.testing.assert_close(parameter.grad, other.model.get_parameter(name).grad)


def compare(label: str, tree: Side, other: Side, rounds: int) -> None:
    """Measure both sides and print a row each for time and memory."""
    check(tree, other)
    pairs = []
    for index in range(rounds + 1):
        first, second = (tree, other) if index % 2 else (other, tree)
        seconds = {id(first): first.step(), id(second): second.step()}
        pairs.append((seconds[id(tree)], seconds[id(other)]))
    pairs = pairs[1:]  # with the step in `check` each side has made two that don't count
    ratio = statistics.median(of_tree / of_other for of_tree, of_other in pairs)
    ms = [1e3 * statistics.median(side) for side in zip(*pairs, strict=True)]
    print(f'| {label} | step, ms | {ms[1]:.1f} | {ms[0]:.1f} | {ratio:.3f} | {BOUND:.2f} |', flush=True)
    mib = [side.peak() / 2**20 for side in (tree, other)]
    print(f'| {label} | peak, MiB | {mib[1]:.2f} | {mib[0]:.2f} | {mib[0] / mib[1]:.3f} | {BOUND:.2f} |', flush=True)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', nargs='+', choices=list(CASES), default=list(CASES))
    parser.add_argument('--rounds', type=int, default=20, help='pairs of steps that count, after two that do not')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, got {args.rounds}')

    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler reports every start and stop
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f'median of {args.rounds} rounds, cpu, torch {torch.__version__}, timm {timm.__version__},'
          f' timm-collab {timm_collab.__version__}, {torch.get_num_threads()} threads')
    print('| what | measured | other | tree | tree / other | bound |')
    print('|---|---|---|---|---|---|')
    for arch in args.case:
        by_hand, batch_size = CASES[arch]
        tree = timm.create_model(f'collab_{arch}', tree=by_hand.tree).train()
        single = timm.create_model(f'collab_{arch}', heads=1).train()
        x = torch.randn(batch_size, *tree.pretrained_cfg['input_size'])
        target = torch.randint(tree.num_classes, (batch_size,))
        hand = by_hand([tree.prune(head) for head in range(tree.num_heads)]).train()
        objective = CollaborativeLoss()
        label = f'{arch}, batch {batch_size}'
        for what, model, other, of_other in (
                (f'{tree.num_heads} heads against by hand', tree, hand, objective),
                ('1 head against the plain network', single, single.prune(), nn.CrossEntropyLoss()),
        ):
            sides = Side(model, objective, x, target), Side(other, of_other, x, target)
            compare(f'{label}, {what}', *sides, rounds=args.rounds)


if __name__ == '__main__':
    main()
