"""Collaborative learning for any timm architecture: train with several heads, deploy one, at no inference cost.

Importing the package registers `collab_<architecture>` with timm for every architecture.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .model.collab_model import CollabModel
from .objective.loss import CollaborativeLoss
from .objective.task import CollaborativeTask
from .pretrained.catalogue import CatalogueError, PublishedHead, list_heads
from .pretrained.download import DownloadError
from .pretrained.load import HeadEnsemble, from_pretrained_tree, load_head
from .registry import register_collab, register_heads
from .split.points import SplitPoint, split_points
from .split.segments import SplitPointError
from .tree import HeadTree, HeadTreeError

if TYPE_CHECKING:
    from .train.record.finished_run import Run, load_run

__version__ = '0.1.0'

__all__ = [
    'CatalogueError',
    'CollabModel',
    'CollaborativeLoss',
    'CollaborativeTask',
    'DownloadError',
    'HeadEnsemble',
    'HeadTree',
    'HeadTreeError',
    'PublishedHead',
    'Run',
    'SplitPoint',
    'SplitPointError',
    'from_pretrained_tree',
    'list_heads',
    'load_head',
    'load_run',
    'register_collab',
    'register_heads',
    'split_points',
]


def __getattr__(name: str) -> Any:
    if name in ('Run', 'load_run'):
        # Imported on first use, as the library itself doesn't need the training package.
        from importlib import import_module
        return getattr(import_module('.train.record.finished_run', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
