"""Weights, gradients and optimizer state shared out over the processes, by PyTorch's FSDP2 as Accelerate launches it.

Each node of a tree is gathered while it runs, so that of all branches one at a time is whole. What is saved is whole:
a checkpoint is the same whether a run is sharded or not, and goes on either way.

What makes a run exact is as unsharded: the order of the sums is FSDP2's, everything random is the recipe's.
"""
from __future__ import annotations

import os
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model, is_torch_version
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ..config import TrainConfig
from ..errors import TrainError, one_line, require

T = TypeVar('T')

OPTIMIZERS = frozenset({
    'adabelief', 'adadelta', 'adam', 'adamax', 'adamc', 'adamw', 'adan', 'adanw', 'adopt', 'adoptw', 'lamb', 'lambw',
    'larc', 'lars', 'lion', 'madgrad', 'madgradw', 'momentum', 'nadam', 'nadamw', 'nesterov', 'nlarc', 'nlars',
    'radabelief', 'radam', 'radamw', 'rmsprop', 'rmsproptf', 'sgd', 'sgdc',
})
"""Optimizers of timm whose every step is that of unsharded weights, and whose state is shaped like the weights."""

TORCH = '2.9'
"""The oldest torch that they were compared with; older ones shard on GPUs alone, where no test could look."""


def check_sharding(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse what isn't proven to be exact with sharded weights, and sharding that was asked for but isn't there.

    Raises:
        TrainError: One of those.
    """
    asked = os.environ.get('ACCELERATE_USE_FSDP', 'false').lower() == 'true'
    require(not asked or accelerator.is_fsdp2,
            'FSDP was asked for, but these processes would train without it or with its first version: it needs GPUs'
            ' and `fsdp_version: 2`, as in --launch accelerate/fsdp2')
    if not accelerator.is_fsdp2:
        return
    require(is_torch_version('>=', TORCH), f'FSDP2 is proven with torch {TORCH} or later: update it, or launch with'
                                           ' accelerate/ddp')
    plugin = accelerator.state.fsdp_plugin
    for is_on, what, instead in (
        (accelerator.mixed_precision == 'fp16', 'mixed_precision fp16', 'write bf16'),
        (isinstance(plugin.cpu_offload, CPUOffloadPolicy), 'fsdp_offload_params', 'leave it out'),
        (plugin.activation_checkpointing, 'fsdp_activation_checkpointing', 'write --grad_checkpointing true instead'),
        (accelerator.parallelism_config, 'a parallelism_config', 'leave it out'),
        (config.compile, 'compile', 'leave it out'),
        (config.objective.kind == 'gated', 'objective.kind gated', 'its gate is no part of the model: launch with'
                                                                   ' accelerate/ddp'),
        (config.optim.clip_grad is not None and config.optim.clip_mode == 'agc', 'optim.clip_mode agc',
         'clip by norm or value'),
        (config.optim.name.lower() not in OPTIMIZERS, f'optim.name {config.optim.name}',
         f'write one of {", ".join(sorted(OPTIMIZERS))}, or launch with accelerate/ddp'),
    ):
        require(not is_on, f'{what} is not proven with FSDP2: {instead}')
    plugin.cpu_ram_efficient_loading = False  # every process draws the same weights, or reads them
    # Autocast alone decides what is computed in which precision, as it does without sharding; batch normalisation
    # would refuse weights in half precision beside its statistics.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def shard_copy(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a model that no optimizer updates, the way Accelerate shards the one that is trained."""
    fsdp2_prepare_model(accelerator, model)


def whole(state: T, keep: bool = True) -> T:
    """Nested state with every sharded tensor gathered on the CPU, one after the other; every process has to ask for it.

    What is not sharded is passed through, and not copied.

    Args:
        state: The state.
        keep: Whether this process wants them: None is in their place where it doesn't.
    """
    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()  # on a device that may not hold them all
        return tensor.cpu() if keep else None

    return tree_map(gathered, state)


def shared_out(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A model's whole state, sharded as its parameters are."""
    own = model.state_dict()
    return {name: _like(value, own[name]) for name, value in state.items()}


def optimizer_shared_out(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, sharded as the parameters are that it belongs to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return {**state, 'state': {
        index: {name: _like(value, parameters[index]) for name, value in values.items()}
        for index, values in state['state'].items()
    }}


def _like(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def explain(error: Exception) -> TrainError:
    """What to say of a network that FSDP2 can't shard."""
    return TrainError(f"FSDP2 can't shard this network: {one_line(error)}; launch with accelerate/ddp")
