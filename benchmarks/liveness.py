"""Predict time and memory of a step of a head tree from a step of the single network.

The step of the single network is recorded per stage, the part between two modules after which a tree may fork: the
memory in use at the start and end of its forward and backward pass, the peak in between, and the time of both. A tree
runs a stage once per node, forward from the root to the heads and backward in the opposite order. Therefore

- the time is the sum over the stages, each as often as it runs, and the optimizer's time scales with the parameters;
- the memory in use rises when a stage has run forward and falls when it has run backward. The prediction is the largest
  value over the step.

The prediction uses the shape of a tree and none of its code.
"""
from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from timm_collab.tree import INPUT, HeadTree

from .measure import Side


@dataclass(frozen=True)
class Span:
    """Change of the memory in use over a part of the step, in bytes.

    Args:
        grows: Difference between its end and its start.
        peak: Largest difference to its start.
    """

    grows: int
    peak: int


class Stages:
    """Record of the single network's step per stage.

    Args:
        side: The network and its step.
        cuts: Names of the modules after which a stage ends, in forward order.
    """

    def __init__(self, side: Side, cuts: Sequence[str]):
        self.side = side
        self.cuts = [INPUT, *cuts]
        self._gradient: dict[int, int] = {0: 0}
        self._freed: dict[int, int] = {0: 0}
        modules = [side.model.get_submodule(cut) for cut in cuts]
        for number, module in enumerate([*modules, side.model], 1):
            module.register_forward_hook(self._follow(number))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part of the last step: stages by number, `objective` and `optimizer`."""
        at = dict(self.side.marks)
        last = len(self.cuts)
        forward = [at['start'], *(at[f'forward {number}'] for number in range(1, last + 1))]
        backward = [at[f'backward {number}'] for number in range(last + 1)]
        stages = {
            str(number): forward[number] - forward[number - 1] + backward[number - 1] - backward[number]
            for number in range(1, last + 1)
        }
        return {**stages, 'objective': backward[last] - forward[last], 'optimizer': at['end'] - at['backward 0']}

    def time_of(self, tree: HeadTree, parameters: float) -> float:
        """Predicted time of a tree's step, relative to the last step of the single network.

        Args:
            tree: The tree.
            parameters: Its number of parameters, relative to the single network.
        """
        seconds = self.seconds()
        runs = {'objective': tree.num_heads, 'optimizer': parameters, **self.runs(tree)}
        return sum(runs[part] * each for part, each in seconds.items()) / sum(seconds.values())

    def runs(self, tree: HeadTree) -> Counter[str]:
        """Number of times that a tree runs each stage."""
        runs: Counter[str] = Counter()
        for path, node in tree.walk():
            start = tree.at(path[:-1]).split if path else None
            runs.update(str(stage) for stage in self._stages_between(start, node.split))
        return runs

    def bytes_of(self, tree: HeadTree) -> int:
        """Predicted peak memory of a tree's step, in bytes."""
        spans = self._spans
        level = _Level()

        def forward(node: HeadTree, start: str | None) -> None:
            for stage in self._stages_between(start, node.split):
                level.add(spans[f'forward {stage}'])
            for child in node.children:
                forward(child, node.split)

        def backward(node: HeadTree, start: str | None) -> None:
            stages = self._stages_between(start, node.split)
            for index, child in enumerate(reversed(node.children)):
                backward(child, node.split)
                if index:  # its gradient is added to that of the previous children
                    level.now -= self._gradient[stages.stop - 1]
                if index < len(node.children) - 1:  # other children need what the single network frees here
                    level.now += self._freed[stages.stop - 1]
            for stage in reversed(stages):
                level.add(spans[f'backward {stage - 1}'])

        forward(tree, None)
        objective = spans[f'backward {len(self.cuts)}']
        level.add(Span(tree.num_heads * objective.grows, tree.num_heads * objective.peak))
        backward(tree, None)
        level.add(spans['end'])
        return level.peak

    def _stages_between(self, start: str | None, stop: str | None) -> range:
        """Numbers of the stages between two cuts; None stands for the start and the end of the network."""
        first = self.cuts.index(start) + 1 if start is not None else 1
        return range(first, (self.cuts.index(stop) if stop is not None else len(self.cuts)) + 1)

    @cached_property
    def _spans(self) -> dict[str, Span]:
        """Memory of each part of the step, by the mark at its end."""
        spans = {}
        start = level = peak = 0
        for label, level in self.side.bytes_over_time():
            peak = max(peak, level)
            if label is not None:
                spans[label] = Span(level - start, peak - start)
                start = peak = level
        return spans

    def _follow(self, number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        """A hook that marks the end of a stage's forward and the start of its backward."""
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            if not output.requires_grad:
                return  # not a training step
            self.side.mark(f'forward {number}')
            size, storage = output.untyped_storage().nbytes(), weakref.ref(output.untyped_storage())

            def before_backward(gradient: Tensor) -> None:
                self.side.mark(f'backward {number}')
                self._gradient[number] = gradient.untyped_storage().nbytes()
                self._freed[number] = size if storage() is None else 0

            output.register_hook(before_backward)

        return after


@dataclass
class _Level:
    """Memory in use and its peak, in bytes."""

    now: int = 0
    peak: int = 0

    def add(self, span: Span) -> None:
        self.peak = max(self.peak, self.now + span.peak)
        self.now += span.grows
