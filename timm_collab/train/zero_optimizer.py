"""The optimizer inside DeepSpeed's ZeRO 1 and 2, its state saved and loaded whole.

DeepSpeed lays the weights of each group of an optimizer one after the other in one flat tensor, whole everywhere, of
which each process moves an equal part and keeps the state for it. A checkpoint is the same whether a run's state is
shared out or not, and goes on either way.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import require

COUNTS = frozenset({'step', 'mu_product'})
"""State of PyTorch's and timm's optimizers that is one number for a whole tensor."""


class ZeroOptimizer:
    """What moves the weights of DeepSpeed's engine; saves and loads state as an optimizer does that has it whole.

    Args:
        engine: The engine.
        parameters: Weights of the model by group, in the order in which the optimizer was given them.

    Raises:
        TrainError: They aren't where DeepSpeed is known to put them.
    """

    def __init__(self, engine: Any, parameters: list[list[nn.Parameter]]) -> None:
        self.engine = engine
        self.zero = engine.optimizer
        self.parameters = parameters
        self.flat: list[Tensor] = self.zero.bit16_groups_flat
        require(len(self.flat) == len(parameters) and all(
            parameter.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
            for flat, group in zip(self.flat, parameters, strict=True) for parameter in group
        ), 'this DeepSpeed keeps weights otherwise than those that were tried: install another, see docs/scaling.md')

    @property
    def optimizer(self) -> Optimizer:
        """PyTorch's optimizer; the only weight of each of its groups is this process's part of a flat tensor."""
        return self.zero.optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of weights with their learning rates."""
        return self.optimizer.param_groups

    @property
    def step_was_skipped(self) -> bool:
        """Whether gradients that are no numbers were thrown away, by every process."""
        return bool(self.zero.overflow)

    def step(self) -> None:
        """Clip the gradients, move the weights, and forget the gradients."""
        self.engine.step()

    def zero_grad(self) -> None:
        """Nothing: `step` did it."""

    def whole_state(self, keep: bool = True) -> dict[str, Any]:
        """State as of an optimizer that has it whole, tensors on the CPU, gathered one after the other.

        Every process has to ask for it.

        Args:
            keep: Whether this process wants them: None is in their place where it doesn't.
        """
        plain = self.optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for index, numbers in self._numbered():
            for name, value in plain['state'].get(index, {}).items():
                if isinstance(value, Tensor) and value.ndim:
                    value = gather(value)  # on a device that may not hold them all
                    value = value.cpu() if keep else None
                for number, parameter in zip(numbers, self.parameters[index], strict=True):
                    own = self._slice(value, index, parameter) if isinstance(value, Tensor) else value
                    state.setdefault(number, {})[name] = own
        groups = [{**plain['param_groups'][index], 'params': numbers} for index, numbers in self._numbered()]
        return {'state': state, 'param_groups': groups}

    def partitioned(self, state: dict[str, Any]) -> dict[str, Any]:
        """This process's part of a whole state, as `optimizer` takes it.

        Raises:
            TrainError: DeepSpeed can't hold it.
        """
        parts = {}
        for index, numbers in self._numbered():
            values = [state['state'].get(number, {}) for number in numbers]
            counts = [{name: each[name] for name in each.keys() & COUNTS} for each in values]
            require(all(each.keys() == values[0].keys() for each in values) and counts.count(counts[0]) == len(counts),
                    "some weights of this checkpoint were updated more often than others, and DeepSpeed can't go on"
                    ' from: launch with accelerate/ddp')
            parts[index] = {
                name: self._part([each[name] for each in values], index)
                if isinstance(value, Tensor) and name not in COUNTS else value
                for name, value in values[0].items()
            }
        groups = [{**state['param_groups'][index], 'params': [index]} for index, _ in self._numbered()]
        return {'state': parts, 'param_groups': groups}

    def reread_weights(self) -> None:
        """Go on from the model's weights, after they were loaded."""
        self.zero.refresh_fp32_params()

    def _numbered(self) -> Iterator[tuple[int, list[int]]]:
        """Each group, and what its weights are numbered in an optimizer that has them whole."""
        first = 0
        for index, group in enumerate(self.parameters):
            yield index, list(range(first, first + len(group)))
            first += len(group)

    def _slice(self, value: Tensor, index: int, parameter: nn.Parameter) -> Tensor:
        if not value.ndim:
            return value.clone()  # each weight has its own
        start = parameter.storage_offset() - self.flat[index].storage_offset()
        return value[start:start + parameter.numel()].view(parameter.shape)

    def _part(self, values: list[Tensor], index: int) -> Tensor:
        flat = self.flat[index]
        whole = torch.zeros(len(flat), dtype=values[0].dtype)
        for value, parameter in zip(values, self.parameters[index], strict=True):
            self._slice(whole, index, parameter).copy_(value)
        part = self.zero.single_partition_of_fp32_groups[index]
        start = len(part) * torch.distributed.get_rank()
        return whole[start:start + len(part)].to(flat.device, copy=True)
