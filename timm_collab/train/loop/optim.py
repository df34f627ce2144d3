"""How weights move: optimizer, learning rate schedule, fused kernels, and a trunk that is frozen at first."""
from __future__ import annotations

from typing import Any

import timm.optim
import timm.scheduler
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from ...model import CollabModel
from ..config import EmaConfig, OptimConfig, SchedConfig, TrainConfig
from ..errors import TrainError, nearest, one_line, require

SGD = frozenset({'momentum', 'nesterov', 'sgd'})
"""timm's names of PyTorch's SGD."""


def build_optimizer(model: CollabModel, config: OptimConfig, criterion: nn.Module | None = None) -> Optimizer:
    """Create timm's optimizer of that name, for the model and for parameters of the objective, if it has any.

    Raises:
        TrainError: There is no such optimizer, it doesn't take the arguments, or there is no trunk to freeze.
    """
    require(not config.freeze_trunk_epochs or any(True for _ in model.nodes['trunk'].parameters()),
            'optim.freeze_trunk_epochs: these heads share no layers, there is no trunk to freeze')
    known = timm.optim.list_optimizers()
    require(config.base_name in known,
            f"optim.name: timm has no optimizer '{config.name}'{nearest(config.name, known)}")
    info = timm.optim.get_optimizer_info(config.base_name)
    require(not info.second_order,
            f"optim.name '{config.name}' needs second derivatives, which this trainer doesn't compute: take another")
    for has, argument in ((info.has_betas, 'betas'), (info.has_eps, 'eps')):  # timm drops them silently
        require(has or argument not in config.kwargs, f"optim.kwargs: '{config.name}' has no {argument}: leave it out")
    try:
        optimizer = timm.optim.create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
            layer_decay_min_scale=config.layer_decay_min_scale,
            **config.kwargs,
        )
    except Exception as error:  # whatever it raises on such arguments, or without a GPU or another package
        raise TrainError(f"optimizer '{config.name}' can't be made: {one_line(error)}") from error
    if criterion is not None and (parameters := list(criterion.parameters())):
        optimizer.add_param_group({'params': parameters})
    return optimizer


def build_scheduler(optimizer: Optimizer, config: SchedConfig, epochs: int, updates_per_epoch: int) -> Any | None:
    """Create timm's scheduler of that name, to be stepped with `step_update`; None for `none`.

    The optimizer's groups get their share of the learning rate, by `layer_decay`, from timm's scheduler or here.
    """
    if config.name == 'none':
        for group in optimizer.param_groups:
            group['lr'] *= group.get('lr_scale', 1.)
        return None
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=config.name,
        num_epochs=epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        decay_epochs=config.decay_epochs,
        decay_milestones=config.decay_milestones,
        decay_rate=config.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler


def build_ema(
        model: CollabModel, config: EmaConfig, updates_per_epoch: int, accelerator: Accelerator) -> ModelEmaV3 | None:
    """Copy the model for the moving average of its weights, before Accelerate wraps it; None without an average."""
    if not config.is_on:
        return None
    sharded = accelerator.is_fsdp2
    decay = config.decay_per_update(updates_per_epoch)
    # Sharded weights beside unsharded buffers can't be averaged by foreach kernels.
    ema = ModelEmaV3(model, decay=decay, use_warmup=config.warmup, foreach=not sharded)
    if not sharded:  # else the shards are moved
        ema.to(accelerator.device)
    return ema


def check_fused(config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse PyTorch's fused SGD where it goes wrong, silently or in the middle of a run.

    It has one momentum state for all weights, so all of them must learn from the first step on. A step that is skipped
    because fp16 overflowed leaves uninitialised memory in the momentum.

    Raises:
        TrainError: The recipe asks for that.
    """
    is_asked = config.optim.kwargs.get('fused') and config.optim.base_name in SGD
    for problem, occurs in _fused_sgd_problems(config, accelerator).items():
        require(not (is_asked and occurs), f"optim.kwargs {{fused: true}}: PyTorch's fused SGD {problem}: leave it out")


def fuse(optimizer: Optimizer, config: TrainConfig, accelerator: Accelerator) -> None:
    """Switch PyTorch's own optimizers to their fused kernel on CPUs, unless the recipe decides.

    On GPUs PyTorch's default (`foreach`) already updates many weights per kernel. Results are the same up to the
    rounding of a tensor's last few elements. Shards of a tensor would round other elements, so sharded weights are not
    fused.

    Args:
        optimizer: Its parameter groups are changed.
        config: The recipe.
        accelerator: Where it runs, with unsharded weights.
    """
    if accelerator.device.type != 'cpu' or any(_fused_sgd_problems(config, accelerator).values()):
        return
    for group in optimizer.param_groups:
        if group.get('fused', False) is None and not group['foreach']:
            group['fused'] = True


def _fused_sgd_problems(config: TrainConfig, accelerator: Accelerator) -> dict[str, bool]:
    """What PyTorch's fused SGD does wrong, and whether it would happen in this run."""
    freezes = config.optim.freeze_trunk_epochs > 0
    return {
        'takes no weights that start to learn later, by optim.freeze_trunk_epochs': freezes,
        'spoils its momentum where fp16 overflows, as it does at first': accelerator.scaler is not None,
    }


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state in the dtype that it was saved in; PyTorch casts it to that of the weights.

    Whether kernels are fused is left as it is, whatever the saved optimizer used.
    """
    kernels: list[dict[str, Any]] = [
        {name: group[name] for name in ('foreach', 'fused') if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, kernels, strict=True):
        group.update(own)
    loaded = optimizer.state_dict()['state']
    for index, values in state['state'].items():
        for name, value in values.items():
            loaded[index][name] = tree_map(
                lambda saved, cast: saved.to(cast.device) if isinstance(saved, Tensor) else saved,
                value, loaded[index][name])


class FrozenTrunk:
    """Freezes the trunk of a tree during the first epochs: its weights and the statistics of its batch norms.

    Frozen weights have no gradient when the optimizer steps, so it skips them: no update, no weight decay, no momentum.
    What is frozen depends on the epoch alone, so a resumed run does the same.

    In one process, no gradient is computed for the trunk. `DistributedDataParallel` waits in every step for the
    gradient of each parameter that required one when it was made. So with several processes the gradients are computed
    and dropped.

    Args:
        model: The model, not wrapped.
        epochs: Number of epochs in which the trunk stays frozen.
        distributed: Whether several processes average their gradients.
    """

    def __init__(self, model: CollabModel, epochs: int, distributed: bool) -> None:
        self.trunk = model.nodes['trunk']
        self.epochs = epochs
        self.distributed = distributed
        self.frozen = False

    def begin_epoch(self, epoch: int) -> None:
        """Freeze or unfreeze the trunk; call it at the start of each epoch (from 0), after `model.train()`."""
        self.frozen = epoch < self.epochs
        if self.epochs and not self.distributed:
            self.trunk.requires_grad_(not self.frozen)
        if self.frozen:
            # Batch norms only: a whole trunk in eval mode would lose its dropout and could take another branch.
            for module in self.trunk.modules():
                if getattr(module, 'track_running_stats', False):
                    module.eval()

    def drop_gradients(self) -> None:
        """Drop the gradients of a frozen trunk; call it before gradients are clipped and the optimizer steps."""
        if self.frozen:
            for parameter in self.trunk.parameters():
                parameter.grad = None
