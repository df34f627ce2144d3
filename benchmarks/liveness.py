"""What a step of a head tree must cost, told from a step of the single network alone.

The single network's step is followed stage by stage, a stage being what lies between two modules after which a tree may
fork: how many bytes are held when its forward and its backward begin and end, how many more in between, and how long
either takes. A tree runs each stage as often as it has nodes there, forward from the root to the heads one after the
other and backward in the opposite order, so

- its time is that of each stage, as many times, and the optimizer's by the parameters;
- what it holds rises by what a stage keeps whenever one has run forward and falls when that one has run backward: the
  trunk once, each branch once. The peak is the highest point on that way.

Nothing here looks at the code of trees, but for their shape.
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
    """Bytes held over a part of the step.

    Args:
        grows: By how much they are more at its end than at its start.
        peak: The most that they are above its start.
    """

    grows: int
    peak: int


class Stages:
    """The single network, followed stage by stage.

    Args:
        side: The network and its step.
        cuts: Names of the modules between two stages, in the order of the forward.
    """

    def __init__(self, side: Side, cuts: Sequence[str]):
        self.side = side
        self.cuts = [INPUT, *cuts]
        self._gradient: dict[int, int] = {0: 0}
        self._let_go: dict[int, int] = {0: 0}
        modules = [side.model.get_submodule(cut) for cut in cuts]
        for number, module in enumerate([*modules, side.model], 1):
            module.register_forward_hook(self._follow(number))

    def seconds(self) -> dict[str, float]:
        """Time of each part of the step that the network made last: its stages, by number, and `optimizer`."""
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
        """Time of a tree's step, as a multiple of the single network's last one.

        Args:
            tree: The tree.
            parameters: How many times the parameters of the single network it has.
        """
        seconds = self.seconds()
        runs = {'objective': tree.num_heads, 'optimizer': parameters, **self.runs(tree)}
        return sum(runs[part] * each for part, each in seconds.items()) / sum(seconds.values())

    def runs(self, tree: HeadTree) -> Counter[str]:
        """How often a tree has each stage."""
        runs: Counter[str] = Counter()
        for path, node in tree.walk():
            start = tree.at(path[:-1]).split if path else None
            runs.update(str(stage) for stage in self._stages_between(start, node.split))
        return runs

    def bytes_of(self, tree: HeadTree) -> int:
        """The most bytes that a tree's step holds at once."""
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
                if index:  # its gradient is added to that of the children before it
                    level.now -= self._gradient[stages.stop - 1]
                if index < len(node.children) - 1:  # the other children need what the single network lets go of here
                    level.now += self._let_go[stages.stop - 1]
            for stage in reversed(stages):
                level.add(spans[f'backward {stage - 1}'])

        forward(tree, None)
        objective = spans[f'backward {len(self.cuts)}']
        level.add(Span(tree.num_heads * objective.grows, tree.num_heads * objective.peak))
        backward(tree, None)
        level.add(spans['end'])
        return level.peak

    def _stages_between(self, start: str | None, stop: str | None) -> range:
        """The numbers of the stages from one cut to another; None is where the network begins and ends."""
        first = self.cuts.index(start) + 1 if start is not None else 1
        return range(first, (self.cuts.index(stop) if stop is not None else len(self.cuts)) + 1)

    @cached_property
    def _spans(self) -> dict[str, Span]:
        """What each part of the step holds, by the mark that it ends at."""
        spans = {}
        start = level = peak = 0
        for label, level in self.side.bytes_over_time():
            peak = max(peak, level)
            if label is not None:
                spans[label] = Span(level - start, peak - start)
                start = peak = level
        return spans

    def _follow(self, number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        """A hook that marks where a stage ends in the forward and begins in the backward."""
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            if not output.requires_grad:
                return  # no training step
            self.side.mark(f'forward {number}')
            size, storage = output.untyped_storage().nbytes(), weakref.ref(output.untyped_storage())

            def before_backward(gradient: Tensor) -> None:
                self.side.mark(f'backward {number}')
                self._gradient[number] = gradient.untyped_storage().nbytes()
                self._let_go[number] = size if storage() is None else 0

            output.register_hook(before_backward)

        return after


@dataclass
class _Level:
    """Bytes held now, and the most that were."""

    now: int = 0
    peak: int = 0

    def add(self, span: Span) -> None:
        self.peak = max(self.peak, self.now + span.peak)
        self.now += span.grows
