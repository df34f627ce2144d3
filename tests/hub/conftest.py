"""A Hub on the loopback that the real client talks to, and finished runs to publish, made without training."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.hub_server import HubServer, User
from timm_collab import CollabModel
from timm_collab.hub import ExportOptions, FinishedRun, push
from timm_collab.hub.export import write_folder
from timm_collab.train.config.parse import parse_config
from timm_collab.train.record.save import save_pruned

ROOT = Path(__file__).parents[2]
TOKEN = 'hf_' + 'SecretSecretSecret' * 2
MakeRun = Callable[..., Path]


@contextmanager
def running_hub(folder: Path) -> Iterator[HubServer]:
    """A Hub with the account `ann`, who is logged in; the client, and processes started from here, know no other."""
    with HubServer(folder / 'hub') as server, pytest.MonkeyPatch.context() as patch:
        server.tokens[TOKEN] = User('ann')
        for name, value in client_environment(server, folder / 'hf-home').items():
            patch.setenv(name, value)
        patch.setenv('HF_TOKEN', TOKEN)
        # What the client read from the environment when it was imported; its older releases in more than one place.
        known = {
            'ENDPOINT': server.url,
            'HUGGINGFACE_CO_URL_TEMPLATE': server.url + '/{repo_id}/resolve/{revision}/{filename}',
            'HF_HUB_CACHE': str(folder / 'hf-home' / 'hub'),
            'HF_TOKEN_PATH': str(folder / 'hf-home' / 'token'),
            'HF_HUB_DISABLE_XET': True,
            'HF_HUB_OFFLINE': False,
        }
        for name, module in list(sys.modules.items()):
            if name.startswith('huggingface_hub.'):
                for key in known.keys() & vars(module).keys():
                    patch.setattr(module, key, known[key])
        patch.setattr(push, 'WAIT', 0.01)
        yield server
        close = getattr(huggingface_hub, 'close_session', None)  # its connections lead to a server that is gone
        if close is not None:
            close()


@pytest.fixture
def hub(tmp_path) -> Iterator[HubServer]:
    with running_hub(tmp_path) as server:
        yield server


def client_environment(server: HubServer, home: Path) -> dict[str, str]:
    return {'HF_ENDPOINT': server.url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_OFFLINE': '0',
            'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_IMPLICIT_TOKEN': '0'}


def python(code: str, *argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which can import the package but doesn't unless the code says so."""
    return subprocess.run(
        [sys.executable, '-c', code, *argv],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def finished_run(
        path: Path,
        arch: str = 'test_resnet',
        tree: str | None = None,
        classes: int = 10,
        size: int | None = 32,
        in_chans: int = 1,
        kept_head: int = 1,
        labels: list[str] | None = None,
        with_tree: bool = True,
        **kwargs: Any,
) -> Path:
    """The folder of a finished run: weights as they were drawn, scores made up."""
    torch.manual_seed(0)
    model_args = {**kwargs, **({} if in_chans == 3 else {'in_chans': in_chans})}
    model = CollabModel(arch, tree=tree, num_classes=classes, kept_head=kept_head, **model_args)
    side = size or model.pretrained_cfg['input_size'][-1]
    data_config = dict(input_size=(in_chans, side, side), mean=(0.5,) * in_chans, std=(0.25,) * in_chans,
                       interpolation='bilinear', crop_pct=1.0, crop_mode='center')
    path.mkdir()
    save_pruned(model, path / 'pruned', torch.randn(2, in_chans, side, side), data_config, model_args, labels)
    if with_tree:
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        save_file(state, path / 'tree.safetensors', {'kept_head': str(kept_head)})
    write_record(path, arch, model, kept_head, classes, labels, data_config)
    return path


@pytest.fixture(scope='session')
def usual_run(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp('usual') / 'run')


@pytest.fixture(scope='session')
def usual_export(usual_run) -> Path:
    folder = usual_run.with_name('exported')
    write_folder(FinishedRun.read(usual_run), folder, ExportOptions(license='cc-by-4.0'))
    return folder


@pytest.fixture
def make_run(tmp_path, usual_run) -> MakeRun:
    """Make a finished run."""

    def make(name: str = 'run', **kwargs: Any) -> Path:
        return finished_run(tmp_path / name, **kwargs) if kwargs else shutil.copytree(usual_run, tmp_path / name)

    return make


@pytest.fixture
def exported(tmp_path, usual_export) -> Path:
    """An exported folder, as `export_run` leaves it but for the reload in another process."""
    return shutil.copytree(usual_export, tmp_path / 'exported')


def write_record(
        path: Path,
        arch: str,
        model: CollabModel,
        kept_head: int,
        classes: int,
        labels: list[str] | None,
        data_config: dict[str, Any],
) -> None:
    heads = model.num_heads
    config = parse_config([f'--model.name=collab_{arch}', f'--model.tree={model.tree}', '--data.path=builtin:digits'])
    (path / 'config.yaml').write_text(yaml.safe_dump(config.to_dict()))
    top1 = [90.0 + head for head in range(heads)]
    scores = {'top1_heads': top1, 'top1_consensus': 95.5, 'top1_kept': top1[kept_head], 'loss_heads': [0.5] * heads,
              'count': 500}
    summary = {
        'network': f'{heads}-head tree',
        'model': f'collab_{arch}',
        'tree': str(model.tree),
        'num_heads': heads,
        'kept_head': kept_head,
        'kept_head_rule': 'highest validation accuracy',
        'error_on': "split 'test'",
        'error_kept': 100 - top1[kept_head],
        'error_consensus': 4.5,
        'error_heads': [100 - each for each in top1],
        'test': scores,
        'val': scores,
        'best_epoch': {'epoch': 3, 'val': scores},
        'parameters': {
            'trained': sum(parameter.numel() for parameter in model.parameters()),
            'kept': sum(parameter.numel() for parameter in model.prune().parameters()),
        },
        'data': {'path': 'builtin:digits', 'num_classes': classes, 'train': 1000, 'val': 130,
                 'val_origin': "held out from split 'train'", 'test': 500, 'label_names': labels,
                 'preprocessing': data_config},
        'noise': {'kind': 'symmetric-exclude', 'rate': 0.4, 'column': None, 'realised_rate': 0.4, 'confusion': None},
        'seed': 0,
        'epochs': 5,
        'versions': {'torch': '2.15.0', 'timm': '1.0.31'},
        'num_processes': 1,
        'device': 'cpu',
        'train_seconds': 61.5,
        'load': f"import timm; model = timm.create_model('local-dir:{path}/pruned', pretrained=True)",
    }
    (path / 'summary.json').write_text(json.dumps(summary))
