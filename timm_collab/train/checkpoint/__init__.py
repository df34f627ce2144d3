"""Checkpoints of a run: written atomically, verified before they are loaded.

In: a nested state of tensors and plain data. Out: the same state, from the newest intact checkpoint. Pickles never
belong here, nor does any knowledge of what the state means.
"""
from .folder import CheckpointError, Checkpoints, Found
from .packing import pack, unpack

__all__ = ['CheckpointError', 'Checkpoints', 'Found', 'pack', 'unpack']
