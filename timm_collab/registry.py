"""The door for timm: what importing the package adds to it.

Every architecture that timm lists is also `collab_<architecture>` in `timm.create_model`, and timm's
`ClassificationTask` of a head tree is a `CollaborativeTask`. So timm's own training script trains head trees as it is:
`train.py --device-modules timm_collab --model collab_resnet50`.
"""
from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from timm.models import _registry, list_models, register_model
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from timm.task import ClassificationTask, TrainingTask

from .errors import unknown_architecture
from .model.collab_model import CollabModel
from .model.networks import cifar_densenet, cifar_resnet  # noqa: F401  (importing them registers them)
from .objective.task import CollaborativeTask
from .pretrained.catalogue import CATALOGUE, CatalogueError, PublishedHead, add_heads, read_catalogue, shipped_folder
from .pretrained.download import WEIGHTS, fetch_head
from .tree import PREFIX

__all__ = ['register_collab', 'register_heads']

# Read by timm's register_model, which takes a new model's pretrained tags from its module.
default_cfgs: dict[str, DefaultCfg] = {}
_heads: dict[str, PublishedHead] = {}


def register_collab(arch: str) -> Callable[..., CollabModel]:
    """Register `collab_<arch>`, with the pretrained tags of `arch`, as a timm entry point.

    All that timm lists when `timm_collab` is imported are registered already; call this for one registered later.

    Args:
        arch: Name of a registered architecture.

    Returns:
        The entry point. It takes the arguments of `CollabModel`, and those of the architecture.
    """

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> CollabModel:
        cfg = kwargs.get('pretrained_cfg')
        if isinstance(cfg, str) and (head := _heads.get(f'{arch}.{cfg}')) is not None:
            kwargs = {**head.model_args, **kwargs}
            # Loaded here, for timm wouldn't hold what it loads against the catalogue's checksum.
            cfg = {**head.pretrained_cfg, 'architecture': arch, 'tag': cfg}
            cfg |= {'file': str(fetch_head(head) / WEIGHTS)} if pretrained else {}
        kwargs['pretrained_cfg'] = _of_backbone(cfg)
        return CollabModel(arch, pretrained=pretrained, **kwargs)

    name = PREFIX + arch
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = __name__
    entrypoint.__doc__ = f'{arch} with several heads, see `timm_collab.CollabModel`.'
    if (known := _registry._model_default_cfgs.get(arch)) is not None:
        default_cfgs[name] = DefaultCfg(
            tags=deque(known.tags),
            cfgs={tag: _registry._model_pretrained_cfgs[f'{arch}.{tag}' if tag else arch] for tag in known.tags},
            is_pretrained=known.is_pretrained,
        )
    setattr(sys.modules[__name__], name, entrypoint)
    register_model(entrypoint)
    return entrypoint


def register_heads(catalogue: str | Path) -> None:
    """Make the heads of a catalogue known, as those of the package are.

    They are then listed by `list_heads`, loaded by `load_head`, and pretrained tags of `collab_<architecture>`.

    Args:
        catalogue: The `heads.yaml`.

    Raises:
        CatalogueError: Something in it can't be.
    """
    heads = read_catalogue(Path(catalogue))
    for name, head in heads.items():
        if PREFIX + head.architecture not in _registry._model_entrypoints:
            raise CatalogueError(f'{name}: {unknown_architecture(head.architecture)}')
        if PREFIX + name in _registry._model_pretrained_cfgs and name not in _heads:
            raise CatalogueError(f'{name}: timm has weights of that name: choose another tag')
    for name, head in heads.items():
        model, tag = PREFIX + head.architecture, PREFIX + name
        # timm takes the tags of a model when the model is registered, and has no way of its own to add one later.
        _registry._model_pretrained_cfgs[tag] = replace(
            PretrainedCfg(**head.pretrained_cfg),
            architecture=model,
            tag=head.tag,
            hf_hub_id=f'{head.repo}@{head.revision}' if head.repo else None,
            file=None if head.folder is None else str(head.folder / WEIGHTS),
        )
        _registry._model_has_pretrained.add(tag)
        if name not in _heads:
            _registry._model_with_tags[model].append(tag)
        _heads[name] = head
    add_heads(heads)


def _of_backbone(cfg: str | dict[str, Any] | PretrainedCfg | None) -> str | dict[str, Any] | None:
    """A pretrained cfg as the plain architecture has it: a pruned head is no `collab_` architecture."""
    if cfg is None or isinstance(cfg, str):
        return cfg
    cfg = asdict(cfg) if isinstance(cfg, PretrainedCfg) else dict(cfg)
    if cfg.get('architecture'):
        cfg['architecture'] = cfg['architecture'].removeprefix(PREFIX)
    return cfg


def _task_for(cls: type[TrainingTask], *args: Any, **kwargs: Any) -> TrainingTask:
    """The constructor of timm's tasks, which can't train a head tree: their losses are for `[B, C]` logits.

    timm's training script has no other place to choose the task in.

    Raises:
        TypeError: A task of timm's that has no counterpart here, for a head tree.
    """
    student = args[0] if args else kwargs.get('student_model', kwargs.get('model'))
    if not isinstance(student, CollabModel) or not cls.__module__.startswith('timm.'):
        return object.__new__(cls)
    if cls is not ClassificationTask:
        raise TypeError(f"timm's {cls.__name__} can't train a head tree: its loss takes [B, C] logits, those of a tree"
                        ' are [H, B, C]. Write CollaborativeTask(model, criterion), or give it model.prune()')
    return object.__new__(CollaborativeTask)


TrainingTask.__new__ = _task_for
for _arch in list_models(exclude_filters=f'{PREFIX}*'):
    register_collab(_arch)
if (_shipped := shipped_folder()) is not None:
    register_heads(_shipped / CATALOGUE)
