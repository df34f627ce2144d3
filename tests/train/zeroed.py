"""`python -m tests.train.zeroed` trains as `python -m timm_collab.train`, with DeepSpeed on CPUs.

Accelerate uses DeepSpeed on GPUs only. DeepSpeed works on CPUs too, so the processes say that theirs are GPUs; all that
differs then from a run on GPUs is who carries the tensors, gloo in place of NCCL.
"""
from __future__ import annotations

import sys

from accelerate.commands import launch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from timm_collab.train.__main__ import main
from timm_collab.train.recipes import LAUNCH, shipped_recipes


def settings() -> dict[str, str]:
    """The variables that `accelerate launch` sets for the shipped settings, and the one for CPUs."""
    file = str(shipped_recipes(LAUNCH)['accelerate/deepspeed'])
    args, *_ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(['--config_file', file, '--main_process_port', '0', 'script.py']))
    args.deepspeed_fields_from_accelerate_config = ''
    _, made = prepare_deepspeed_cmd_env(args)
    ours = {name: value for name, value in made.items() if 'DEEPSPEED' in name}
    return {**ours, 'ACCELERATE_USE_CPU': 'false', 'DS_ACCELERATOR': 'cpu'}


def pretend() -> None:
    """Have Accelerate take these processes for those of GPUs; to be called before anything asks for an accelerator."""
    from deepspeed import ops
    ops.__compatible_ops__['deepspeed_shm_comm'] = False  # compiled when it is first used, in place of gloo
    PartialState(cpu=True)
    PartialState._shared_state['distributed_type'] = DistributedType.DEEPSPEED


if __name__ == '__main__':
    pretend()
    sys.exit(main(sys.argv[1:]))
