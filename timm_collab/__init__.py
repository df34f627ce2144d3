"""Collaborative learning for any timm architecture: train with several heads, deploy one, at no inference cost.

Importing the package registers `collab_<architecture>` for every architecture of timm.
"""
from .loss import CollaborativeLoss
from .model import CollabModel
from .registry import register_collab
from .segments import SplitPointError
from .split_points import SplitPoint, split_points
from .task import CollaborativeTask
from .tree import HeadTree, HeadTreeError

__version__ = '0.1.0'

__all__ = [
    'CollabModel',
    'CollaborativeLoss',
    'CollaborativeTask',
    'HeadTree',
    'HeadTreeError',
    'SplitPoint',
    'SplitPointError',
    'register_collab',
    'split_points',
]
