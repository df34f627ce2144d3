"""From what was asked for to the tree that an architecture grows, and the cuts that the tree needs."""
from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from ..tree import INPUT, HeadTree, HeadTreeError, Path
from .points import check_backbone, even_boundaries, split_points, stage_boundaries
from .segments import Chain, SplitPointError
from .tracing import TraceError


def read_tree(
        spec: HeadTree | str | Mapping[str, Any] | None,
        heads: int | None,
        backbone: str,
        kwargs: Mapping[str, Any],
) -> HeadTree | None:
    """The tree that was asked for, None where a number of heads was; all that can be judged without the network.

    Args:
        spec: The tree, in any of its forms.
        heads: The number of heads.
        backbone: Name of the architecture.
        kwargs: Arguments of the architecture.

    Raises:
        HeadTreeError: A bad spec; the message lists the architecture's split points.
        ValueError: An unknown architecture, or a number of heads that isn't the tree's.
    """
    check_backbone(backbone)
    if spec is None:
        return None
    try:
        tree = HeadTree.of(spec)
    except HeadTreeError as error:
        points = ', '.join(map(str, split_points(backbone, **kwargs)))
        raise HeadTreeError(f"{error}. Split points of '{backbone}': {points}") from None
    if heads not in (None, tree.num_heads):
        raise ValueError(f"tree '{tree}' has {tree.num_heads} heads, not {heads}: leave heads out")
    return tree


def plan_tree(
        plain: nn.Module,
        backbone: str,
        input_size: tuple[int, ...],
        tree: HeadTree | None,
        heads: int,
        pattern: str,
) -> tuple[HeadTree, Chain]:
    """The tree to grow, and the architecture cut for it.

    Args:
        plain: A network of the architecture.
        backbone: Its name, for messages.
        input_size: Shape of one input, (channels, height, width).
        tree: The tree asked for, None for the pattern's.
        heads: The number of heads of the pattern's.
        pattern: Its name. Where the architecture can't be split between its stages, the tree forks at split points
            that divide its multiply-adds evenly.

    Raises:
        HeadTreeError: A pattern or number of heads that can't be.
        SplitPointError: A split where there's no split point; the message lists those there are.
        ValueError: A network that can't be followed, or is no classifier.
    """
    channels, *img_size = input_size
    listed = functools.partial(split_points, plain, in_chans=channels, img_size=img_size)
    try:
        if tree is not None:
            return tree, cut_for(plain, input_size, tree)
        boundaries = stage_boundaries(plain)
        if len(boundaries) > 1:
            tree = HeadTree.preset(heads, pattern, boundaries)
            with suppress(SplitPointError):
                return tree, cut_for(plain, input_size, tree)
        tree = HeadTree.preset(heads, pattern, even_boundaries(listed()) or boundaries)
        return tree, cut_for(plain, input_size, tree)
    except SplitPointError as error:
        points = [point.name for point in listed()]
        raise SplitPointError(
            f"can't split '{backbone}' so: {error}.{_nearest(plain, points, error.name)}"
            f" Its split points: {', '.join(points)}",
            error.name,
        ) from None
    except TraceError as error:
        raise ValueError(f"'{backbone}' can't be made a head tree: {error}") from error


def _nearest(plain: nn.Module, points: Sequence[str], name: str | None) -> str:
    """A sentence on the split points next to one that isn't: around its module or, of no module, spelled alike."""
    order = {path: index for index, (path, _) in enumerate(plain.named_modules())}
    if name not in order:
        near = difflib.get_close_matches(name or '', points, 1)
        return f" Did you mean '{near[0]}'?" if near else ''
    if name in points:
        return ''
    # Modules are registered in the order of the forward but for few, and what contains a module ends after it.
    around = [point for point in points if f'{name}.'.startswith(f'{point}.')]
    others = [point for point in points if point in order and point not in around]
    before = [point for point in others if order[point] < order[name]]
    after = around[:1] or [point for point in others if order[point] > order[name]]
    near = [*before[-1:], *after[:1]]
    if len(near) < 2:
        return f" The nearest split point is '{near[0]}'." if near else ''
    return f" The nearest split points are '{near[0]}' and '{near[1]}'."


def cut_for(plain: nn.Module, input_size: tuple[int, ...], tree: HeadTree) -> Chain:
    """Cut an architecture for a tree, and check on the meta device that every path still computes logits.

    Raises:
        SplitPointError: A split where there's no split point, or splits in the wrong order.
        TraceError: A network that can't be followed, or is no classifier.
    """
    chain = Chain(plain, tree.split_names, input_size)
    paths = dict.fromkeys(tuple(cuts_to(chain, tree, leaf)) for leaf in tree.leaves)
    for cuts in paths:
        for start, stop in itertools.pairwise(cuts):
            if stop < start:
                late, early = chain.names[start - 1], (INPUT, *chain.names)[stop]
                raise SplitPointError(f"'{early}' comes before '{late}' in the network: swap them", early)
        chain.check(cuts)
    return chain


def cuts_to(chain: Chain, tree: HeadTree, leaf: Path) -> list[int]:
    """The cuts on the way to a head, from the input to the logits."""
    return [0, *(chain.cut(tree.at(leaf[:depth]).split) for depth in range(len(leaf) + 1))]
