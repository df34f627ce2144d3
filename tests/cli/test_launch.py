"""How `timm-collab train` starts: settings of the launch and exit statuses."""
from __future__ import annotations

import os
import subprocess

import pytest
import torch
from accelerate.commands.config import config_args

from timm_collab.cli import launch
from timm_collab.train.config.parse import parse_config
from timm_collab.train.errors import TrainError
from timm_collab.train.prepare import make_accelerator

from .conftest import RECIPE

SLURM = {
    'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_TASKS_PER_NODE': '2', 'SLURM_LOCALID': '1', 'SLURM_PROCID': '1',
    'SLURM_STEP_NODELIST': 'localhost', 'SLURM_JOB_ID': '4711',
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Simulate a machine with a number of GPUs, without saved settings, outside of a launch."""

    def make(gpus: int) -> None:
        for name in ('WORLD_SIZE', *SLURM):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
        monkeypatch.setattr(config_args, 'default_config_file', str(tmp_path / 'default_config.yaml'))

    return make


def processes(options: list[str] | None) -> int:
    if options is None:
        return 1
    assert options[0] == '--multi_gpu'
    return int(options[options.index('--num_processes') + 1])


@pytest.mark.parametrize(('gpus', 'asked', 'expected'), [
    (0, None, 1), (1, None, 1), (4, None, 4), (4, 2, 2), (4, 1, 1), (0, 2, 2),
])
def test_one_process_per_gpu(machine, gpus, asked, expected):
    machine(gpus)
    assert processes(launch.find_launch(asked, None)) == expected


def test_saved_settings_take_precedence_over_the_number_of_gpus(machine, tmp_path):
    machine(4)
    (tmp_path / 'default_config.yaml').write_text('num_processes: 3')
    assert launch.find_launch(None, None) == ['--config_file', str(tmp_path / 'default_config.yaml')]
    assert processes(launch.find_launch(2, None)) == 2
    options = launch.find_launch(8, 'accelerate/ddp')
    assert options[2:] == ['--num_processes', '8'] and options[1].endswith('recipes/accelerate/ddp.yaml')
    assert launch.find_launch(None, 'ddp') == options[:2]


@pytest.mark.parametrize(('gpus', 'asked', 'settings', 'message'), [
    (4, 5, None, '--num-processes 5: this machine has 4 GPUs'),
    (0, 0, None, '--num-processes must be at least 1, got 0'),
    (0, None, 'dpd', "--launch: no file 'dpd'.*did you mean 'ddp'"),
])
def test_invalid_launch_options(machine, gpus, asked, settings, message):
    machine(gpus)
    with pytest.raises(TrainError, match=message):
        launch.find_launch(asked, settings)


def test_a_rank_of_a_launch_is_not_launched_again(machine, monkeypatch):
    machine(4)
    monkeypatch.setenv('WORLD_SIZE', '4')
    assert launch.find_launch(None, None) is None
    with pytest.raises(TrainError, match='one of 4 of a launch already: leave out --num-processes'):
        launch.find_launch(4, None)


def test_slurm_variables_become_those_of_torch(machine):
    machine(0)
    environ = dict(SLURM)
    assert launch.join_launch(environ)
    expected = {'WORLD_SIZE': '2', 'RANK': '1', 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost',
                'MASTER_PORT': '24711', 'ACCELERATE_USE_CPU': 'true'}
    assert {name: environ[name] for name in expected} == expected
    assert not launch.join_launch({**SLURM, 'SLURM_STEP_NUM_TASKS': '1'})


def test_slurm_with_a_gpu_bound_to_each_task_and_with_too_few_tasks(machine):
    machine(1)
    environ = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '2(x4)'}
    assert launch.join_launch(environ)
    assert (environ['LOCAL_RANK'], environ['LOCAL_WORLD_SIZE'], 'ACCELERATE_USE_CPU' in environ) == ('0', '2', False)
    machine(8)
    with pytest.raises(TrainError, match=r'SLURM starts 2 tasks on a machine with 8 GPUs.*--ntasks-per-node=8'):
        launch.join_launch(dict(SLURM))


def test_first_machine_of_a_slurm_list(monkeypatch):
    assert launch._first_machine('node7,node8') == 'node7'
    with pytest.raises(TrainError, match=r"first of 'node\[1-4\]' can't be determined .*set MASTER_ADDR"):
        launch._first_machine('node[1-4]')

    def scontrol(command, **kwargs):
        assert command == ['scontrol', 'show', 'hostnames', 'node[1-4]']
        return subprocess.CompletedProcess(command, 0, 'node1\nnode2\n')

    monkeypatch.setattr(subprocess, 'run', scontrol)
    assert launch._first_machine('node[1-4]') == 'node1'


def test_exit_status_of_the_first_failed_rank(tmp_path):
    for number, (rank, code) in enumerate([('1', '0'), ('0', '75'), ('2', '1')]):
        (tmp_path / rank).write_text(code)
        os.utime(tmp_path / rank, ns=(number, number))
    assert launch._first_failure(tmp_path) == 75
    (tmp_path / '0').unlink()
    (tmp_path / '2').unlink()
    assert launch._first_failure(tmp_path) == 0


def test_invalid_recipe_is_reported_before_the_launch(machine, command, monkeypatch):
    machine(4)
    monkeypatch.setattr(launch, 'launch', lambda *_: pytest.fail('launched'))
    status, output, errors = command('train', *RECIPE, '--optim.lrr=1')
    assert (status, output, errors.count('\n')) == (2, '', 1)
    assert errors.startswith("error: unknown key 'optim.lrr'; did you mean 'optim.lr'")


def test_deepspeed_is_rejected(machine, tmp_path, monkeypatch):
    machine(4)
    settings = tmp_path / 'deepspeed.yaml'
    settings.write_text('distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {zero_stage: 2}\n')
    with pytest.raises(TrainError, match='DeepSpeed is not supported: launch with accelerate/fsdp2'):
        launch.launch(launch.find_launch(None, str(settings)), [])
    # As started by `accelerate launch` directly.
    monkeypatch.setenv('ACCELERATE_USE_DEEPSPEED', 'true')
    with pytest.raises(TrainError, match='DeepSpeed is not supported: launch with accelerate/fsdp2'):
        make_accelerator(parse_config(['--config=quickstart']))
