"""PyTorch's optimizers that move all weights in one kernel: where they are used, and where they can't be."""
from __future__ import annotations

from accelerate import Accelerator
from torch.optim import Optimizer

from ..config import TrainConfig
from ..errors import require

SGD = frozenset({'momentum', 'nesterov', 'sgd'})
"""timm's names of PyTorch's SGD."""


def _obstacles(config: TrainConfig, accelerator: Accelerator) -> dict[str, bool]:
    """What PyTorch's fused SGD does wrong, and whether the run would have it do so."""
    freezing = config.optim.freeze_trunk_epochs > 0
    return {
        'takes no weights that start to learn later, by optim.freeze_trunk_epochs': freezing,
        'spoils its momentum where fp16 overflows, as it does at first': accelerator.scaler is not None,
    }


def check_fused(config: TrainConfig, accelerator: Accelerator) -> None:
    """Refuse to fuse SGD where that goes wrong, without a word or in the middle of a run.

    Its momentum is one for all weights: it has to begin with all of them, and a step that is skipped because fp16
    overflowed leaves in it what isn't a gradient.

    Raises:
        TrainError: The recipe asks for that.
    """
    is_asked = config.optim.kwargs.get('fused') and config.optim.base_name in SGD
    for what, is_so in _obstacles(config, accelerator).items():
        require(not (is_asked and is_so), f"optim.kwargs {{fused: true}}: PyTorch's fused SGD {what}: leave it out")


def fuse(optimizer: Optimizer, config: TrainConfig, accelerator: Accelerator) -> None:
    """Have one of PyTorch's own optimizers move all its weights in one kernel, where the recipe leaves that open.

    That is done on CPUs; on GPUs PyTorch's default is one kernel for many weights already. What is computed is the same
    up to the rounding of a tensor's last few elements, so sharded weights, which end elsewhere, go without.

    Args:
        optimizer: Its groups are changed.
        config: The recipe.
        accelerator: Where it runs, with weights that are whole.
    """
    if accelerator.device.type != 'cpu' or any(_obstacles(config, accelerator).values()):
        return
    for group in optimizer.param_groups:
        if group.get('fused', False) is None and not group['foreach']:
            group['fused'] = True
