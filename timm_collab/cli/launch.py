"""Start `timm-collab train` in this process or through `accelerate launch`, and keep the exit status of its ranks.

Run as a program, this module is one rank of a launch.
"""
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
"""Environment variable with the folder for the ranks' exit statuses: torch's launcher turns each of them into 1."""

SAVING_SECONDS = 120
"""Time for ranks to save after a signal. Releases of torch without this setting allow 30 s."""


def find_launch(num_processes: int | None, settings: str | None) -> list[str] | None:
    """Options of `accelerate launch` for this machine.

    Args:
        num_processes: Number of processes, default one per GPU.
        settings: File of `accelerate config`, or the name of a shipped one.

    Returns:
        The options, None to train in this process.

    Raises:
        TrainError: The arguments contradict each other, or this machine can't satisfy them.
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
    require(not gpus or count <= gpus,
            f'--num-processes {count}: this machine has {gpus} {"GPUs" if gpus > 1 else "GPU"}')
    if count == 1:
        return None
    options = {'num_processes': count, 'num_machines': 1, 'mixed_precision': 'no', 'dynamo_backend': 'no',
               'main_process_port': 0}
    # Also without GPUs: `--cpu` starts a single process, whatever the number.
    return ['--multi_gpu', *(word for name, value in options.items() for word in (f'--{name}', str(value)))]


def join_launch(environ: MutableMapping[str, str]) -> bool:
    """Whether this process is a rank of a launch. In a SLURM step, sets the variables that torch reads.

    Args:
        environ: Environment variables; changed in a SLURM step.

    Raises:
        TrainError: A SLURM step would leave GPUs idle, or its first machine can't be determined.
    """
    if 'WORLD_SIZE' in environ:
        return True
    tasks = int(environ.get('SLURM_STEP_NUM_TASKS', 1))
    if tasks == 1:
        return False

    import torch
    here = int(environ['SLURM_STEP_TASKS_PER_NODE'].split(',')[0].split('(')[0])
    gpus = torch.cuda.device_count()
    require(gpus <= here, f'SLURM starts {here} {"tasks" if here > 1 else "task"} on a machine with {gpus} GPUs: ask'
                          f' for one per GPU, --ntasks-per-node={gpus}')
    local = int(environ['SLURM_LOCALID'])
    environ.update({
        'WORLD_SIZE': str(tasks),
        'RANK': environ['SLURM_PROCID'],
        # SLURM may have bound each task to its own GPU, the only one that it sees.
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
        raise TrainError(f"the first of '{machines}' can't be determined ({error}): set MASTER_ADDR to it") from error
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
    """Train in processes of `accelerate launch` and wait for them. They receive the signals that this process gets.

    Args:
        options: Options of `accelerate launch`.
        arguments: Options of the training command.

    Returns:
        Exit status of the first process that failed, 0 if none did.
    """
    import torch
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from ..train.distributed.sharding import refuse_deepspeed

    parser = accelerate_launch.launch_command_parser()
    args = parser.parse_args([*options, '-m', 'timm_collab.cli.launch', *arguments])
    try:
        checked, *_ = accelerate_launch._validate_launch_command(args)
    except ValueError as error:
        raise TrainError(f'accelerate launch refuses its settings: {one_line(error)}') from error
    refuse_deepspeed(checked.use_deepspeed)
    if not (checked.multi_gpu or checked.use_fsdp):
        # A single process replaces this one, which keeps signals and exit status.
        command, environment = accelerate_launch.prepare_simple_launcher_cmd_env(checked)
        sys.stdout.flush()
        os.execve(command[0], command, environment)

    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)  # hides a table of empty tracebacks
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
    """Exit status of the first rank that failed, 0 if none did."""
    ended = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    return next((code for file in ended if (code := int(file.read_text()))), 0)


def run_rank() -> int:
    """Train as one rank, and leave its exit status for the launching process.

    Returns:
        Exit status, 1 after an exception.
    """
    from ..train.__main__ import main
    folder = os.environ.get(EXIT_FOLDER)
    code = 1
    try:
        code = main()
    except Exception:
        # A rank that lost the others raises torch's error for that, which would hide the first rank's.
        if not folder or not any(Path(folder).iterdir()):
            raise
    finally:
        if folder:
            rank = os.environ['RANK']
            partial = Path(folder).with_name(f'{Path(folder).name}-{rank}')
            partial.write_text(str(code))
            partial.replace(Path(folder, rank))
    return code


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


if __name__ == '__main__':
    sys.exit(run_rank())
