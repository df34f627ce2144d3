"""Work that one process does for all, and what the others learn of it."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from ..errors import TrainError, found_everywhere

T = TypeVar('T')


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Have the main process do something; every process returns what it returned.

    Args:
        accelerator: The processes.
        work: What to do; its result is small and travels to the others.

    Raises:
        TrainError: It raised one: then every process raises it, and none waits for another.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except TrainError as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        outcome = broadcast_object_list(outcome)
    if outcome[1] is not None:
        with found_everywhere():
            raise outcome[1]
    return outcome[0]


def share_tensors(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every process the main process's tensors, one at a time, on the CPU; no shared file system is needed.

    Args:
        accelerator: The processes.
        tensors: The tensors on the main process; what others pass is ignored.
    """
    if accelerator.num_processes == 1:
        return tensors
    kinds = on_main(accelerator, lambda: {name: (each.dtype, each.shape) for name, each in tensors.items()})
    shared = {}
    for name, (dtype, shape) in kinds.items():
        tensor = tensors[name] if accelerator.is_main_process else torch.empty(shape, dtype=dtype)
        shared[name] = broadcast(tensor.to(accelerator.device)).cpu()
    return shared


@contextmanager
def on_main_only(accelerator: Accelerator, manager: AbstractContextManager[Any]) -> Iterator[None]:
    """Open a context on the main process; where that raises a `TrainError`, every process raises it."""
    with ExitStack() as stack:
        on_main(accelerator, lambda: stack.enter_context(manager) and None)
        yield


def leave() -> None:
    """Part from the other processes; one that just ends may be torn down while it still talks to them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
