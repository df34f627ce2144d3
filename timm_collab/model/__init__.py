"""The head tree as a network: trunk and branches of one architecture, and the way back to the plain network.

In: the name of an architecture and a `HeadTree`. Out: `CollabModel`, which gives the logits of all heads and prunes to
a plain timm model. Losses, data and training never belong here. `networks/` holds the paper's networks that timm lacks.
"""
from .collab_model import CollabModel

__all__ = ['CollabModel']
