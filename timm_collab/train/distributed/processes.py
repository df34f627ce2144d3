"""Work that the main process does for all processes, and how the others get its results, errors and tensors."""
from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from ..errors import TrainError, found_everywhere, one_line

T = TypeVar('T')


def run_on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Run a function on the main process; every process returns its result.

    Args:
        accelerator: The processes.
        work: The function; its result is small and is sent to the other processes.

    Raises:
        TrainError: The function raised one, and so does every process, so that none waits for another. After any other
            error of the function, the main process raises that error and the other processes a `TrainError`.
    """
    outcome: list[Any] = [None, None]
    unexpected: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except TrainError as error:
            outcome[1] = error
        except Exception as error:
            unexpected = error
            outcome[1] = TrainError(f'the main process failed: {type(error).__name__}: {one_line(error)}')
    if accelerator.num_processes > 1:
        outcome = broadcast_object_list(outcome)
    if unexpected is not None:
        raise unexpected
    if outcome[1] is not None:
        with found_everywhere():
            raise outcome[1]
    return outcome[0]


@contextmanager
def enter_on_main(accelerator: Accelerator, manager: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context on the main process; if that raises a `TrainError`, every process raises it."""
    with ExitStack() as stack:
        run_on_main(accelerator, lambda: stack.enter_context(manager) and None)
        yield


def broadcast_tensors(accelerator: Accelerator, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Send the main process's tensors to every process, one at a time, onto the CPU; needs no shared file system.

    Args:
        accelerator: The processes.
        tensors: The tensors, on the main process; what the others pass is ignored.
    """
    if accelerator.num_processes == 1:
        return tensors
    layouts = run_on_main(accelerator, lambda: {name: (each.dtype, each.shape) for name, each in tensors.items()})
    received = {}
    for name, (dtype, shape) in layouts.items():
        tensor = tensors[name] if accelerator.is_main_process else torch.empty(shape, dtype=dtype)
        received[name] = broadcast(tensor.to(accelerator.device)).cpu()
    return received


def leave_process_group() -> None:
    """Leave the group of processes; one that just exits may be torn down while it still communicates."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # gloo's threads end with the last reference to the group. One is in the wrapped model, which may be part of a
        # cycle; threads that outlive the interpreter now and then abort a process that has finished.
        gc.collect()
