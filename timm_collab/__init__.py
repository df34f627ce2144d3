"""Collaborative learning for any timm architecture: train with several heads, deploy one, at no inference cost.

Importing the package registers `collab_<architecture>` with timm for every architecture.
"""
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
    'SplitPoint',
    'SplitPointError',
    'from_pretrained_tree',
    'list_heads',
    'load_head',
    'register_collab',
    'register_heads',
    'split_points',
]
