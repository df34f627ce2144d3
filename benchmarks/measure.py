"""Measure training steps: time in turns, memory, multiply-adds.

Shapes: H heads, B batch, C classes.
"""
from __future__ import annotations

import itertools
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

import timm_collab
from timm_collab.train.loop.allocator import keep_freed_memory

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # silences the profiler's log of each start and stop

_MARK = 'mark: '


@dataclass
class Side:
    """A model and its training step: forward, objective, backward and an update by SGD.

    Allocator settings and optimizer are those of the trainer.

    Args:
        model: Maps images to logits, [H, B, C] or [B, C].
        objective: Maps logits and class indices [B] to the loss.
        x: Images.
        target_B: Class indices.
    """

    model: nn.Module
    objective: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    target_B: Tensor
    marks: list[tuple[str, float]] = field(default_factory=list)
    """Label and time in seconds of points in the last step: `start`, `backward 0`, `end`, and those of hooks."""

    def __post_init__(self) -> None:
        on_cpu = self.x.device.type == 'cpu'  # where the trainer keeps freed memory and has a fused optimizer
        if on_cpu:
            keep_freed_memory()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1e-4, momentum=.9, weight_decay=1e-4, fused=on_cpu or None)

    def mark(self, label: str) -> None:
        """Record the time, and mark the point in a profile of the step."""
        with record_function(_MARK + label):
            self.marks.append((label, self.now()))

    def now(self) -> float:
        """Time in seconds, after synchronising the device."""
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> float:
        """Run a step in train mode and return its time in seconds."""
        self.model.train()
        self.marks.clear()
        start = self.now()
        self.optimizer.zero_grad(set_to_none=True)
        self.mark('start')
        self.objective(self.model(self.x), self.target_B).backward()
        self.mark('backward 0')
        self.optimizer.step()
        self.mark('end')
        return self.now() - start

    def forward(self) -> float:
        """Compute the logits of all heads in eval mode without gradients, and return the time in seconds."""
        self.model.eval()
        run = getattr(self.model, 'forward_heads', self.model)
        with torch.inference_mode():
            start = self.now()
            run(self.x)
            return self.now() - start

    def infer(self) -> float:
        """Run the model in eval mode, where a tree runs its kept head, and return the time in seconds."""
        self.model.eval()
        with torch.inference_mode():
            start = self.now()
            self.model(self.x)
            return self.now() - start

    def bytes_over_time(self) -> list[tuple[str | None, int]]:
        """Run a step and record its memory in use.

        This is the memory that torch's CPU allocator has allocated since the start of the step and not freed, as the
        profiler records it: activations, gradients and temporary buffers. Weights, momentum, images and allocations of
        libraries below torch are not included. The result is the same in each run, to the byte.

        Returns:
            Bytes in use after each change, with None, and at each mark, with its label.
        """
        if not self.optimizer.state:
            self.step()  # allocates the momentum
        self.optimizer.zero_grad(set_to_none=True)  # outside the profile, where it would count as freed memory
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step()
        events = [event for event in record.profiler.kineto_results.events()
                  if event.name() == '[memory]' or event.name().startswith(_MARK)]
        events.sort(key=lambda event: event.start_ns())
        levels = itertools.accumulate(0 if event.name().startswith(_MARK) else event.nbytes() for event in events)
        return [(event.name().removeprefix(_MARK) if event.name().startswith(_MARK) else None, level)
                for event, level in zip(events, levels, strict=True)]

    def peak(self) -> int:
        """Run a step and return its peak memory in bytes."""
        return max(level for _, level in self.bytes_over_time())


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of one forward pass in train mode."""
    model.train()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention kernels are not counted
        model(x[:2])  # a tree traces its network once per new size, which would be counted
        with FlopCounterMode(display=False) as counter:
            model(x[:2])
    return counter.get_total_flops() // 2


def in_turn(steps: Sequence[Callable[[], float]], rounds: int, warm_up: int = 1) -> list[tuple[float, ...]]:
    """Run each step once per round and return the seconds of each round after the warm-up.

    Caches and memory depend on the step before. Therefore every other round has a new random order, the same in each
    run, and the round after it has that order reversed.
    """
    draw = random.Random(0)
    order = list(range(len(steps)))
    found = []
    for turn in range(rounds + warm_up):
        order = order[::-1] if turn % 2 else draw.sample(order, len(order))
        seconds = {index: steps[index]() for index in order}
        found.append(tuple(seconds[index] for index in range(len(steps))))
    return found[warm_up:]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, median, high


def machine() -> dict[str, str]:
    """Processor, threads and versions of a measurement."""
    cpu = platform.processor() or platform.machine()
    if (info := Path('/proc/cpuinfo')).exists():
        names = [line for line in info.read_text().splitlines() if line.startswith('model name')]
        cpu = names[0].split(':')[1].strip() if names else cpu
    return {
        'cpu': f'{cpu}, {os.cpu_count()} cores',
        'threads': str(torch.get_num_threads()),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'timm_collab': timm_collab.__version__,
    }


def commit() -> str:
    """Commit of the checkout, with a plus if files differ from it."""
    root = Path(__file__).parents[1]
    try:
        head, changed = (
            subprocess.run(['git', *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in (['rev-parse', '--short=12', 'HEAD'],
                            ['status', '--porcelain', '--untracked-files=no', 'timm_collab', 'benchmarks/*.py'])
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return f'{head}+' if changed else head
