"""Where an architecture can be split, which tensors pass there and what a split costs."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import unknown_architecture
from ..tree import INPUT, PREFIX
from .meta import meta_twin
from .program import CutTrace
from .segments import tensors_at
from .tracing import Trace, TraceError, trace


@dataclass(frozen=True)
class SplitPoint:
    """A place where a head tree can fork.

    Attributes:
        name: The module that it comes after, as written in a tree spec; `input` for the point before the first layer.
        shapes: Shape of each tensor that is passed on there, with -1 for sizes that depend on the batch size.
        params_after: Fraction of the network's parameters after it.
        macs_after: Fraction of the network's multiply-adds (at its default input size) after it.
        network_macs: Multiply-adds of the whole network for one image.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    params_after: float
    macs_after: float
    network_macs: int = 0

    @property
    def cost(self) -> float:
        """Multiply-adds of a tree that forks in two here, relative to the plain network."""
        return 1 + self.macs_after

    def __str__(self) -> str:
        return self.name


def split_points(model: str | nn.Module, **kwargs: Any) -> list[SplitPoint]:
    """List the split points of an architecture, in forward order.

    Stages and their blocks are listed. A tree may also split between the layers of a block, which are not listed.

    Args:
        model: Name of a timm architecture, with or without `collab_`, or a plain timm model.
        **kwargs: Arguments to create the architecture with, or that `model` was created with, such as `in_chans`.

    Raises:
        ValueError: There is no such architecture.
        TraceError: The network's forward can't be traced.
    """
    plain = create_without_weights(model, kwargs) if isinstance(model, str) else model
    size = default_input_size(plain, kwargs)
    twin = meta_twin(plain).eval().requires_grad_(False)  # the flop counter can't track parameters that are inputs
    expand = _repeated(twin)
    run = _trace(twin, expand, size, count_flops=True)
    wider = _trace(twin, expand, size, batch_size=3)
    ends: dict[int, str] = {}
    for path, end in run.ends.items():
        if end not in ends or path.count('.') < ends[end].count('.'):
            ends[end] = path
    positions = sorted(ends)
    names = (INPUT, *(ends[position] for position in positions))
    cuts, wider_cuts = CutTrace(run, positions), CutTrace(wider, positions)

    macs = [0] * cuts.num_parts
    for node, part in cuts.part.items():
        macs[part] += node.meta.get('flops', 0) // 2
    params, spans = _params_per_part(twin, cuts)
    points = []
    for cut, name in enumerate(names):
        if not sum(params[cut:]) or any(first < cut <= last for first, last in spans):
            continue
        points.append(SplitPoint(
            name,
            tuple(
                tuple(-1 if a != b else a for a, b in zip(narrow.shape, wide.shape, strict=True))
                for narrow, wide in zip(_live_tensors(cuts, cut), _live_tensors(wider_cuts, cut), strict=True)
            ),
            params_after=sum(params[cut:]) / max(sum(params), 1),
            macs_after=sum(macs[cut:]) / max(sum(macs), 1),
            network_macs=sum(macs) // 2,  # the trace has two images
        ))
    return points


def stage_boundaries(model: nn.Module) -> tuple[str, ...]:
    """Return the split points between a network's stages, in forward order.

    These are the modules of `feature_info` at which the resolution changes, except the last. If it never changes, as
    in a plain vision transformer, they are the ends of its first, second and third quarter.
    """
    info = [entry for entry in getattr(model, 'feature_info', None) or () if entry.get('module')]
    paths = {path for path, _ in model.named_modules()}
    info = [entry for entry in info if entry['module'] in paths]
    last_at = {entry.get('reduction'): entry['module'] for entry in info}
    if len(last_at) > 1:
        return tuple(dict.fromkeys(last_at.values()))[:-1]
    depth = len(info)
    quarters = dict.fromkeys(depth * quarter // 4 - 1 for quarter in (1, 2, 3))
    return tuple(info[index]['module'] for index in quarters if 0 <= index < depth)


def even_boundaries(points: Sequence[SplitPoint]) -> tuple[str, ...]:
    """Return the split points nearest to a quarter, a half and three quarters of the multiply-adds, in forward order.

    Two points that differ by at most 5 % of the multiply-adds count as one, so there may be fewer than three.
    """
    chosen: list[SplitPoint] = []
    inner = [point for point in points if point.name != INPUT and point.macs_after < 1]
    for share in (.75, .5, .25):
        if chosen:
            inner = [point for point in inner if point.macs_after < chosen[-1].macs_after - .05]
        if inner:
            chosen.append(min(inner, key=lambda point: abs(point.macs_after - share)))
    return tuple(point.name for point in chosen)


def default_input_size(model: nn.Module, kwargs: dict[str, Any]) -> tuple[int, int, int]:
    """Return the shape of one input, (channels, height, width), of a network created with these arguments."""
    channels, *size = getattr(model, 'pretrained_cfg', {}).get('input_size', (3, 224, 224))
    channels = kwargs.get('in_chans') or channels
    size = kwargs.get('img_size') or size
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def check_backbone(backbone: str) -> None:
    """Check that a backbone is a timm architecture, or the location of a model such as `hf-hub:user/name`.

    Raises:
        ValueError: It is neither; the message names architectures with a similar spelling.
    """
    if timm.is_model(backbone) or backbone.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')):
        return
    raise ValueError(unknown_architecture(backbone))


def create_without_weights(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Create a network of an architecture, on the meta device if its constructor allows it."""
    name = name.removeprefix(PREFIX)
    check_backbone(name)
    try:
        with torch.device('meta'):
            return timm.create_model(name, **kwargs)
    except (RuntimeError, NotImplementedError):  # the constructor computes with its weights
        return timm.create_model(name, **kwargs)


def _repeated(twin: nn.Module) -> set[str]:
    """Return the modules to expand: containers, and stages that consist mostly of repeated blocks."""
    sizes = {path: sum(p.numel() for p in module.parameters()) for path, module in twin.named_modules()}
    expand = set()
    for path, module in twin.named_modules():
        parent = path.rpartition('.')[0]
        if not path or (parent and parent not in expand):
            continue
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            expand.add(path)
            continue
        blocks = sum(sizes[f'{path}.{name}'] for name, child in module.named_children() if _is_stack(child))
        if _is_stack(module) or 2 * blocks > sizes[path]:
            expand.add(path)
    return expand


def _is_stack(module: nn.Module) -> bool:
    """Whether all child modules have one type, and at least one has submodules of its own."""
    types = {type(child) for child in module.children()}
    layers = all(not list(child.children()) for child in module.children())
    return len(types) == 1 and not layers


def _trace(twin: nn.Module, expand: set[str], size: tuple[int, ...], **options: Any) -> Trace:
    """Trace, and stop expanding each module whose inside turns out to be untraceable."""
    while True:
        try:
            return trace(twin, expand, size, **options)
        except TraceError as error:
            inside = {path for path in expand if f'{path}.'.startswith(f'{error.module_path}.')}
            if not error.module_path or not inside:
                raise
            expand -= inside


def _params_per_part(twin: nn.Module, cuts: CutTrace) -> tuple[list[int], list[tuple[int, int]]]:
    """Count the parameters of each part, and list the first and last part that use each tensor."""
    users: dict[int, tuple[Tensor, set[int]]] = {}
    for part, path in cuts.uses():
        for tensor in tensors_at(twin, path):
            users.setdefault(id(tensor), (tensor, set()))[1].add(part)
    params = [0] * cuts.num_parts
    for tensor, parts in users.values():
        if isinstance(tensor, nn.Parameter):
            params[min(parts)] += tensor.numel()
    return params, [(min(parts), max(parts)) for _, parts in users.values()]


def _live_tensors(cuts: CutTrace, cut: int) -> list[Tensor]:
    values = [node.meta['fresh'] for node in cuts.live_nodes(cut)]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
