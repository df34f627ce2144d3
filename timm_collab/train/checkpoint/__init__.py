"""Checkpoints of a run: whole or absent, verified before they are trusted, and never a pickle."""
from .folder import CheckpointError, Checkpoints, Found
from .packing import pack, unpack

__all__ = ['CheckpointError', 'Checkpoints', 'Found', 'pack', 'unpack']
