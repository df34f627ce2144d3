"""How `timm-collab train` starts: in this process, or as those of `accelerate launch`, their exit status kept."""
from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

from ..train.errors import TrainError, nearest, one_line, require

EXIT_FOLDER = 'TIMM_COLLAB_EXIT_FOLDER'
"""Where each rank leaves its exit status: the launcher of torch turns every one of them into 1."""

SAVING_SECONDS = 120
"""How long ranks may take to save after a signal, where the launcher of torch can be told (else it gives them 30 s)."""


def find_launch(num_processes: int | None, settings: str | None) -> list[str] | None:
    """The options of `accelerate launch` for this machine, None to train in this process.

    Raises:
        TrainError: Contradicting or impossible wishes.
    """
    require(num_processes is None or num_processes >= 1, f'--num-processes must be at least 1, got {num_processes}')
    if join_launch(os.environ):
        require(num_processes is None and settings is None,
                f'this process is one of {os.environ["WORLD_SIZE"]} of a launch already: leave out'
                f' {"--launch" if num_processes is None else "--num-processes"}')
        return None
    if settings is not None:
        chosen = [] if num_processes is None else ['--num_processes', str(num_processes)]
        return ['--config_file', str(_find_settings(settings)), *chosen]

    import torch
    from accelerate.commands.config.config_args import default_config_file
    if num_processes is None and Path(default_config_file).is_file():
        return ['--config_file', str(default_config_file)]
    gpus = torch.cuda.device_count()
    count = num_processes or max(gpus, 1)
    require(not gpus or count <= gpus, f'--num-processes {count}: this machine has {gpus} GPU{"s" * (gpus > 1)}')
    if count == 1:
        return None
    options = {'num_processes': count, 'num_machines': 1, 'mixed_precision': 'no', 'dynamo_backend': 'no',
               'main_process_port': 0}
    # Without GPUs too: what `--cpu` starts is one process, however many it is told.
    return ['--multi_gpu', *(word for name, value in options.items() for word in (f'--{name}', str(value)))]


def join_launch(environ: MutableMapping[str, str]) -> bool:
    """Whether this process is a rank of a launch; of a SLURM step its place is made known to torch.

    Raises:
        TrainError: A SLURM step that would leave GPUs idle, or whose first machine can't be found out.
    """
    if 'WORLD_SIZE' in environ:
        return True
    tasks = int(environ.get('SLURM_STEP_NUM_TASKS', 1))
    if tasks == 1:
        return False

    import torch
    here = int(environ['SLURM_STEP_TASKS_PER_NODE'].split(',')[0].split('(')[0])
    gpus = torch.cuda.device_count()
    require(gpus <= here, f'SLURM starts {here} task{"s" * (here > 1)} on a machine with {gpus} GPUs: ask for one a'
                          f' GPU, --ntasks-per-node={gpus}')
    local = int(environ['SLURM_LOCALID'])
    environ.update({
        'WORLD_SIZE': str(tasks),
        'RANK': environ['SLURM_PROCID'],
        # SLURM may have bound each task to a GPU of its own, the only one that it sees.
        'LOCAL_RANK': str(local % gpus if gpus else local),
        'LOCAL_WORLD_SIZE': str(here),
    })
    environ.setdefault('MASTER_ADDR', _first_machine(environ['SLURM_STEP_NODELIST']))
    environ.setdefault('MASTER_PORT', str(20000 + int(environ['SLURM_JOB_ID']) % 10000))
    if not gpus:
        environ.setdefault('ACCELERATE_USE_CPU', 'true')
    return True


def _first_machine(machines: str) -> str:
    if '[' not in machines:
        return machines.split(',')[0]
    try:
        listed = subprocess.run(
            ['scontrol', 'show', 'hostnames', machines], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise TrainError(f"the first of '{machines}' can't be found out ({error}): set MASTER_ADDR to it") from error
    return listed.stdout.split()[0]


def _find_settings(name: str) -> Path:
    from ..train.config.recipes import LAUNCH, shipped_recipes
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes(LAUNCH)
    known = shipped | {each.removeprefix(f'{LAUNCH}/'): file for each, file in shipped.items()}
    require(name in known, f"--launch: no file '{name}': write the path of a YAML file that `accelerate config` made,"
                           f' or one of {", ".join(shipped)}{nearest(name, known)}')
    return known[name]


def launch(options: Sequence[str], arguments: Sequence[str]) -> int:
    """Train in the processes of `accelerate launch`, and wait for them; signals reach every one.

    Args:
        options: For `accelerate launch`.
        arguments: The recipe, on a command line.

    Returns:
        Exit status of the first process that failed, 0 if none did.
    """
    import torch
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parser = accelerate_launch.launch_command_parser()
    args = parser.parse_args([*options, '-m', 'timm_collab.cli.rank', *arguments])
    try:
        checked, *_ = accelerate_launch._validate_launch_command(args)
    except ValueError as error:
        raise TrainError(f'accelerate launch refuses its settings: {one_line(error)}') from error
    require(not checked.use_deepspeed, 'training with DeepSpeed is not supported: launch with accelerate/fsdp2, which'
                                       ' shards weights, gradients and optimizer state')
    if not (checked.multi_gpu or checked.use_fsdp):
        # One process: it takes the place of this one, and with it its signals and its exit status.
        command, environment = accelerate_launch.prepare_simple_launcher_cmd_env(checked)
        sys.stdout.flush()
        os.execve(command[0], command, environment)

    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # its table of tracebacks says nothing
    with tempfile.TemporaryDirectory(prefix='timm-collab-') as folder, _environment({
        EXIT_FOLDER: folder,
        'TORCH_ELASTIC_SHUTDOWN_TIMEOUT': str(SAVING_SECONDS),
        **({} if torch.cuda.is_available() else {'ACCELERATE_USE_CPU': 'true'}),
    }):
        try:
            accelerate_launch.launch_command(args)
            return 0
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            code = failure.exitcode
            return _first_failure(Path(folder)) or (128 - code if code < 0 else code)
        except SignalException as error:
            return _first_failure(Path(folder)) or 128 + error.sigval


def _first_failure(folder: Path) -> int:
    """Exit status of the process that left first with one other than 0; 0 if none did."""
    left = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    return next((code for file in left if (code := int(file.read_text()))), 0)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
