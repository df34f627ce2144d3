"""Activation checkpointing with the same BatchNorm statistics as an ordinary step."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, *values: Any, **kwargs: Any) -> Any:
    """Run a module, keep only its inputs and recompute it in the backward pass.

    The recomputation would count the batch twice in the running statistics of every BatchNorm, so it freezes them.

    Args:
        module: The module to run.
        values: Its inputs.
        kwargs: More inputs, without a gradient.
    """
    if torch.compiler.is_compiling():
        return checkpoint(module, *values, use_reentrant=False, **kwargs)
    return checkpoint(
        module,
        *values,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _frozen_statistics(module)),
        **kwargs,
    )


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    norms: list[Any] = [m for m in module.modules() if getattr(m, 'track_running_stats', False) and m.training]
    saved = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0., None
    try:
        yield
    finally:
        for norm, momentum, num_batches in saved:
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
