"""Resolve the requested tree for an architecture, and split the network for it."""
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
    """Read the requested tree; all checks that don't need the network.

    Args:
        spec: The tree, in any form that `HeadTree.of` takes, or None for a pattern.
        heads: The number of heads.
        backbone: Name of the architecture.
        kwargs: Arguments of the architecture.

    Returns:
        The tree, or None if there is no spec.

    Raises:
        HeadTreeError: The spec is invalid; the message lists the architecture's split points.
        ValueError: The architecture is unknown, or `heads` differs from the tree's number of heads.
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
    """Choose the tree to build, and split the architecture for it.

    Args:
        plain: A network of the architecture.
        backbone: Name of the architecture, for error messages.
        input_size: Shape of one input, (channels, height, width).
        tree: The requested tree, None to use `heads` and `pattern`.
        heads: Number of heads of the pattern.
        pattern: Name of the pattern. If the architecture can't be split between its stages, the tree forks at split
            points that divide its multiply-adds evenly.

    Raises:
        HeadTreeError: The pattern or the number of heads is invalid.
        SplitPointError: The network can't be split at a point of the tree; the message lists the split points.
        ValueError: The network can't be traced, or is not a classifier.
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
            f"can't split '{backbone}': {error}.{_nearest(plain, points, error.name)}"
            f" Its split points: {', '.join(points)}",
            error.name,
        ) from None
    except TraceError as error:
        raise ValueError(f"'{backbone}' can't be turned into a head tree: {error}") from error


def _nearest(plain: nn.Module, points: Sequence[str], name: str | None) -> str:
    """Describe the split points nearest to an invalid one: around its module, or else with a similar spelling."""
    order = {path: index for index, (path, _) in enumerate(plain.named_modules())}
    if name not in order:
        near = difflib.get_close_matches(name or '', points, 1)
        return f" Did you mean '{near[0]}'?" if near else ''
    if name in points:
        return ''
    # Modules are mostly registered in forward order, and a container ends after the modules inside it.
    around = [point for point in points if f'{name}.'.startswith(f'{point}.')]
    others = [point for point in points if point in order and point not in around]
    before = [point for point in others if order[point] < order[name]]
    after = around[:1] or [point for point in others if order[point] > order[name]]
    near = [*before[-1:], *after[:1]]
    if len(near) < 2:
        return f" The nearest split point is '{near[0]}'." if near else ''
    return f" The nearest split points are '{near[0]}' and '{near[1]}'."


def cut_for(plain: nn.Module, input_size: tuple[int, ...], tree: HeadTree) -> Chain:
    """Split an architecture for a tree, and check on the meta device that every path still computes logits.

    Raises:
        SplitPointError: The network can't be split at a point of the tree, or the points are in the wrong order.
        TraceError: The network can't be traced, or is not a classifier.
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
    """List the cuts on the path to a head, from the input to the logits."""
    return [0, *(chain.cut(tree.at(leaf[:depth]).split) for depth in range(len(leaf) + 1))]
