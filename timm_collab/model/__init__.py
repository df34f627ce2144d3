"""The head tree as a network: trunk and branches of one architecture, and pruning back to the plain network.

In: the name of an architecture and a `HeadTree`. Out: `CollabModel`, which computes the logits of all heads and prunes
to a plain timm model. Losses, data and training never belong here. `networks/` has the networks of the paper that are
not in timm.
"""
from .collab_model import CollabModel

__all__ = ['CollabModel']
