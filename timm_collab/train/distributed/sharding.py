"""Weights, gradients and optimizer state sharded over the processes, by PyTorch's FSDP2 as Accelerate launches it.

`TrainState` has Accelerate shard the model by the module classes that the launch settings name. In
`recipes/accelerate/fsdp2.yaml` this is `Segment`, so that one node of the tree at a time is gathered while it runs.
Checkpoints hold gathered tensors: they are the same files whether a run is sharded or not, and a run resumes either
way.

Everything random is the recipe's, as without sharding; only the order of sums is FSDP2's.
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
"""timm's optimizers whose steps equal those on unsharded weights, and whose state has the weights' shapes."""

TORCH = '2.9'
"""The oldest torch that they were compared with; older ones shard on GPUs only, where no test has run."""


def refuse_deepspeed(is_asked: bool) -> None:
    """Refuse a launch with DeepSpeed.

    Raises:
        TrainError: This is one.
    """
    require(not is_asked, 'training with DeepSpeed is not supported: launch with accelerate/fsdp2, which shards'
                          ' weights, gradients and optimizer state')


def check_sharding(accelerator: Accelerator, config: TrainConfig) -> None:
    """Refuse what was not shown to be exact with sharded weights, and sharding that was requested but is not in use.

    Raises:
        TrainError: The recipe or the launch settings ask for one of these.
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
        require(not is_on, f'{what} is not supported with FSDP2: {instead}')
    plugin.cpu_ram_efficient_loading = False  # every process draws or reads the same weights
    # Autocast alone chooses the precision, as without sharding. Batch norms would refuse half-precision weights beside
    # float32 statistics.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()


def shard_model(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a model that no optimizer updates, in the way that Accelerate shards the trained one."""
    fsdp2_prepare_model(accelerator, model)


def copy_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights by name to host memory; shards are copied where they are."""
    return {
        name: tensor.detach().clone() if isinstance(tensor, DTensor) else tensor.detach().to('cpu', copy=True)
        for name, tensor in state.items()
    }


def gather_state(state: T, keep: bool = True) -> T:
    """Gather every sharded tensor of a nested state on the CPU, one after the other; every process has to call it.

    Unsharded tensors are passed through and not copied.

    Args:
        state: The state.
        keep: Whether this process keeps the gathered tensors; if not, None stands in their place.
    """
    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()  # on the device, which may not have room for all of them at once
        return tensor.cpu() if keep else None

    return tree_map(gathered, state)


def shard_model_state(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Shard a gathered state dict as the model's parameters are sharded."""
    own = model.state_dict()
    return {name: _shard_like(value, own[name]) for name, value in state.items()}


def shard_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Shard a gathered optimizer state as the parameters are sharded that it belongs to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    return {**state, 'state': {
        index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
        for index, values in state['state'].items()
    }}


def _shard_like(value: Any, parameter: Tensor) -> Any:
    if not (isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def sharding_error(error: Exception) -> TrainError:
    """The error for a network that FSDP2 can't shard."""
    return TrainError(f"FSDP2 can't shard this network: {one_line(error)}; launch with accelerate/ddp")
