"""Where an architecture can be split, what crosses there and what a split costs."""
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
from .segments import CutView, held_tensors
from .tracing import Trace, TraceError, trace


@dataclass(frozen=True)
class SplitPoint:
    """A place where a head tree can fork.

    Attributes:
        name: The module after which it lies, as a tree spec takes it; `input` for the place before the first.
        shapes: Shape of each tensor that crosses, -1 for a size that depends on the batch's.
        params_after: Share of the network's parameters that lies after it.
        macs_after: Share of the network's multiply-adds (at its default input size) that lies after it.
        network_macs: All multiply-adds of the network for one image.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    params_after: float
    macs_after: float
    network_macs: int = 0

    @property
    def cost(self) -> float:
        """Multiply-adds of a two-way split here, relative to the plain network's."""
        return 1 + self.macs_after

    def __str__(self) -> str:
        return self.name


def split_points(model: str | nn.Module, **kwargs: Any) -> list[SplitPoint]:
    """List the split points of an architecture, in forward order.

    Stages and the blocks in them are listed, not the layers inside a block, though a tree may split there too.

    Args:
        model: Name of a timm architecture, with or without `collab_`, or a plain timm model.
        **kwargs: Arguments that the architecture is, or a given `model` was, created with: `in_chans`, `img_size`, ...

    Raises:
        ValueError: No such architecture.
        TraceError: The network's forward can't be followed.
    """
    plain = create_without_weights(model, kwargs) if isinstance(model, str) else model
    size = default_input_size(plain, kwargs)
    twin = meta_twin(plain).eval().requires_grad_(False)  # the flop counter can't follow a parameter that is an input
    expand = _repeated(twin)
    run = _trace(twin, expand, size, count_flops=True)
    wider = _trace(twin, expand, size, batch_size=3)
    ends: dict[int, str] = {}
    for path, end in run.ends.items():
        if end not in ends or path.count('.') < ends[end].count('.'):
            ends[end] = path
    positions = sorted(ends)
    names = (INPUT, *(ends[position] for position in positions))
    view, wider_view = CutView(run, positions), CutView(wider, positions)

    macs = [0] * view.parts
    for node, part in view.part.items():
        macs[part] += node.meta.get('flops', 0) // 2
    params, spans = _spread(twin, view)
    points = []
    for cut, name in enumerate(names):
        if not sum(params[cut:]) or any(first < cut <= last for first, last in spans):
            continue
        points.append(SplitPoint(
            name,
            tuple(
                tuple(-1 if a != b else a for a, b in zip(narrow.shape, wide.shape, strict=True))
                for narrow, wide in zip(_crossing(view, cut), _crossing(wider_view, cut), strict=True)
            ),
            params_after=sum(params[cut:]) / max(sum(params), 1),
            macs_after=sum(macs[cut:]) / max(sum(macs), 1),
            network_macs=sum(macs) // 2,  # of two images
        ))
    return points


def stage_boundaries(model: nn.Module) -> tuple[str, ...]:
    """The split points between a network's stages, in forward order.

    They are the modules of `feature_info` at which the resolution changes, without the last; where it never does, as
    in a plain vision transformer, the ends of its first, second and third quarter.
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
    """The split points nearest to a quarter, a half and three quarters of the multiply-adds, in forward order.

    Where a network has few of them, two that are alike (5 % of the multiply-adds apart or less) count as one.
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
    """Shape of one input of a network made with these arguments, (channels, height, width)."""
    channels, *size = getattr(model, 'pretrained_cfg', {}).get('input_size', (3, 224, 224))
    channels = kwargs.get('in_chans') or channels
    size = kwargs.get('img_size') or size
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def check_backbone(backbone: str) -> None:
    """See that a backbone can be one: an architecture of timm, or where a model of one lies, as `hf-hub:user/name`.

    Raises:
        ValueError: It's neither; the message names architectures that are spelled alike.
    """
    if timm.is_model(backbone) or backbone.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')):
        return
    raise ValueError(unknown_architecture(backbone))


def create_without_weights(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """A network of an architecture, on the meta device where its constructor allows that."""
    name = name.removeprefix(PREFIX)
    check_backbone(name)
    try:
        with torch.device('meta'):
            return timm.create_model(name, **kwargs)
    except (RuntimeError, NotImplementedError):  # constructors that compute with their weights
        return timm.create_model(name, **kwargs)


def _repeated(twin: nn.Module) -> set[str]:
    """The modules worth looking into: containers, and stages that are mostly a container of alike blocks."""
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
    """Whether its modules are all of one kind, and more than single layers."""
    kinds = {type(child) for child in module.children()}
    layers = all(not list(child.children()) for child in module.children())
    return len(kinds) == 1 and not layers


def _trace(twin: nn.Module, expand: set[str], size: tuple[int, ...], **options: Any) -> Trace:
    """Trace, leaving whole each module that turns out not to be followed inside."""
    while True:
        try:
            return trace(twin, expand, size, **options)
        except TraceError as error:
            inside = {path for path in expand if f'{path}.'.startswith(f'{error.module_path}.')}
            if not error.module_path or not inside:
                raise
            expand -= inside


def _spread(twin: nn.Module, view: CutView) -> tuple[list[int], list[tuple[int, int]]]:
    """Parameters of each elementary stretch, and the first and last that use one tensor."""
    users: dict[int, tuple[Tensor, set[int]]] = {}
    for part, path in view.fetches():
        for tensor in held_tensors(twin, path):
            users.setdefault(id(tensor), (tensor, set()))[1].add(part)
    params = [0] * view.parts
    for tensor, parts in users.values():
        if isinstance(tensor, nn.Parameter):
            params[min(parts)] += tensor.numel()
    return params, [(min(parts), max(parts)) for _, parts in users.values()]


def _crossing(view: CutView, cut: int) -> list[Tensor]:
    values = [node.meta['fresh'] for node in view.crossing(cut)]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
