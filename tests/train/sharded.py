"""`python -m tests.train.sharded` trains as `python -m timm_collab.train`, with FSDP2 on CPUs.

Accelerate shards what is trained on GPUs only. PyTorch shards on CPUs too, so the processes say that theirs are GPUs;
all that differs then from a run on GPUs is who carries the tensors, gloo in place of NCCL, and how it ends.
"""
from __future__ import annotations

import gc
import sys

from accelerate.commands import launch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.device_mesh import DeviceMesh

from timm_collab.train.__main__ import main
from timm_collab.train.config.recipes import LAUNCH, shipped_recipes


def settings() -> dict[str, str]:
    """The variables that `accelerate launch` sets for the shipped settings."""
    file = str(shipped_recipes(LAUNCH)['accelerate/fsdp2'])
    args, *_ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(['--config_file', file, 'script.py']))
    made = prepare_multi_gpu_env(args)
    return {name: value for name, value in made.items() if name.startswith('FSDP_') or name == 'ACCELERATE_USE_FSDP'}


def pretend() -> None:
    """Have Accelerate take these processes for those of GPUs; to be called before anything asks for an accelerator."""
    PartialState(cpu=True)
    PartialState._shared_state['distributed_type'] = DistributedType.MULTI_GPU


def let_go() -> None:
    """Have gloo's threads end before the interpreter does: one that still frees a tensor then aborts the process.

    They end with the last reference to their group (NCCL's when it is destroyed). PyTorch's caches of layouts hold the
    mesh of the shards as long as the process lives, and the mesh holds the group.
    """
    for each in gc.get_objects():
        if type(each) is DeviceMesh:  # isinstance wakes the deprecations of everything else
            vars(each).get('_pg_registry', {}).clear()
    gc.collect()


if __name__ == '__main__':
    pretend()
    status = main()
    let_go()
    sys.exit(status)
