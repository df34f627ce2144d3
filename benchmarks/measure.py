"""What benchmarks of training steps share: a model and its step, sides that take it in turn, their memory and work.

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

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler reports every start and stop

_MARK = 'mark: '


@dataclass
class Side:
    """A model and the training step that it's measured by: forward, objective, backward and an update by SGD.

    Memory and update are as the trainer has them.

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
    """Where the last step was when, in seconds: `start`, `backward 0`, `end`, and whatever hooks add."""

    def __post_init__(self) -> None:
        on_cpu = self.x.device.type == 'cpu'  # there the trainer keeps freed memory and moves all weights in one kernel
        if on_cpu:
            keep_freed_memory()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1e-4, momentum=.9, weight_decay=1e-4, fused=on_cpu or None)

    def mark(self, label: str) -> None:
        """Note the time, and in a profile of the step the place."""
        with record_function(_MARK + label):
            self.marks.append((label, self.now()))

    def now(self) -> float:
        """Seconds on a clock, after the device has done all it was given."""
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> float:
        """Make a step in train mode and return how long it took, in seconds."""
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
        """Compute the logits of all heads in eval mode, without gradients, and return how long it took, in seconds."""
        self.model.eval()
        run = getattr(self.model, 'forward_heads', self.model)
        with torch.inference_mode():
            start = self.now()
            run(self.x)
            return self.now() - start

    def infer(self) -> float:
        """Compute what the model gives in eval mode, of a tree the kept head, and return how long it took."""
        self.model.eval()
        with torch.inference_mode():
            start = self.now()
            self.model(self.x)
            return self.now() - start

    def bytes_over_time(self) -> list[tuple[str | None, int]]:
        """Make a step and follow the bytes that it holds.

        Counted is what torch's CPU allocator has handed out since the step began and hasn't got back, as the profiler
        records it: activations, gradients and what operators need in between, without weights, their momentum, images
        and what libraries below torch allocate by themselves. It is the same, to the byte, in every run.

        Returns:
            The bytes held after each change, with None, and at each mark, with its label.
        """
        if not self.optimizer.state:
            self.step()  # the momentum is made once
        self.optimizer.zero_grad(set_to_none=True)  # outside: it would count as bytes given back
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self.step()
        events = [event for event in record.profiler.kineto_results.events()
                  if event.name() == '[memory]' or event.name().startswith(_MARK)]
        events.sort(key=lambda event: event.start_ns())
        levels = itertools.accumulate(0 if event.name().startswith(_MARK) else event.nbytes() for event in events)
        return [(event.name().removeprefix(_MARK) if event.name().startswith(_MARK) else None, level)
                for event, level in zip(events, levels, strict=True)]

    def peak(self) -> int:
        """Make a step and return the most bytes that it held at once."""
        return max(level for _, level in self.bytes_over_time())


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of one forward pass in train mode."""
    model.train()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the attention of accelerators' own kernels isn't counted
        model(x[:2])  # a tree follows its network at a size that is new to it, which would count
        with FlopCounterMode(display=False) as counter:
            model(x[:2])
    return counter.get_total_flops() // 2


def in_turn(steps: Sequence[Callable[[], float]], rounds: int, warm_up: int = 1) -> list[tuple[float, ...]]:
    """Take each step once a round and return the seconds of the rounds that count.

    What ran before a step matters: it leaves caches and memory as it used them. So the order is drawn anew for every
    other round, the same in every run, and taken backwards in the round after it.
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
    """Where and with what figures are taken."""
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
    """The commit that is measured, with a plus where files differ from it."""
    root = Path(__file__).parents[1]
    try:
        head, changed = (
            subprocess.run(['git', *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in (['rev-parse', '--short=12', 'HEAD'],
                            ['status', '--porcelain', '--untracked-files=no', 'timm_collab', 'benchmarks/*.py'])
        )
    except (OSError, subprocess.CalledProcessError):
        return ''
    return head + '+' * bool(changed)
