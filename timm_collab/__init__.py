"""Collaborative learning for any timm architecture: train with several heads, deploy one, at no inference cost.

Importing the package registers `collab_<architecture>` for every architecture of timm.
"""
from .catalogue import CatalogueError, PublishedHead, list_heads
from .download import DownloadError
from .heads import HeadEnsemble, from_pretrained_tree, load_head
from .loss import CollaborativeLoss
from .model import CollabModel
from .registry import register_collab, register_heads
from .segments import SplitPointError
from .split_points import SplitPoint, split_points
from .task import CollaborativeTask
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
