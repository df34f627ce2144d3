"""Two processes that share each batch train as one does."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
RECIPE = [
    # no batch statistics: those are of each process's part
    '--model.name=collab_test_vit', '--model.tree=blocks.1:[blocks.3:2 | head]', '--model.kwargs={img_size: 32}',
    '--data.path=builtin:digits', '--data.in_chans=1', '--data.img_size=32', '--data.max_train_samples=256',
    '--data.test_split=null', '--augment.crop=pad', '--noise.rate=0.2', '--epochs=2', '--batch_size=64',
    '--optim.name=adamw', '--optim.lr=1e-3', '--optim.clip_grad=1.0', '--ema.decay=0.9', '--grad_accum_steps=2',
    '--optim.freeze_trunk_epochs=1', '--cpu_threads=1',
]


def run(folder: Path, processes: int, *argv: str) -> subprocess.CompletedProcess[str]:
    launcher = [
        '-m', 'accelerate.commands.launch', '--num_processes', str(processes), '--num_machines', '1',
        '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0',
        *(['--multi_gpu'] if processes > 1 else ['--cpu']), '-m', 'timm_collab.train',
    ]
    environment = {
        **os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true',
        'HF_DATASETS_CACHE': str(folder / 'cache'), 'HF_HUB_OFFLINE': '1', 'CUDA_VISIBLE_DEVICES': '',
    }
    return subprocess.run(
        [sys.executable, *launcher, *RECIPE, f'--output={folder / str(processes)}', *argv],
        capture_output=True, text=True, env=environment, cwd=folder, timeout=300,
    )


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp('processes')
    for processes in (1, 2):
        done = run(folder, processes)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / '1', folder / '2'


def test_both_ranks_took_part(runs: tuple[Path, Path]) -> None:
    summaries = [json.loads((folder / 'summary.json').read_text()) for folder in runs]
    assert [summary['num_processes'] for summary in summaries] == [1, 2]
    assert summaries[0]['noise'] == summaries[1]['noise']
    assert (runs[0] / 'train_labels.csv').read_text() == (runs[1] / 'train_labels.csv').read_text()


def test_the_curves_and_the_weights_are_those_of_one_process(runs: tuple[Path, Path]) -> None:
    one, two = (
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()] for folder in runs
    )
    assert [row['epoch'] for row in one] == [row['epoch'] for row in two] == [0, 1]
    for a, b in zip(one, two, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-4)
        assert a['train_hard_heads'] == pytest.approx(b['train_hard_heads'], rel=1e-3)
        assert a['val']['loss_heads'] == pytest.approx(b['val']['loss_heads'], rel=1e-3)
        assert a['val']['count'] == b['val']['count']
    kept = [json.loads((folder / 'summary.json').read_text())['kept_head'] for folder in runs]
    assert kept[0] == kept[1]
    weights = [load_file(folder / 'pruned' / 'model.safetensors') for folder in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-2, atol=2e-3)


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, 2, '--batch_size=60', '--grad_accum_steps=4')
    assert done.returncode != 0
    assert 'must be a multiple of their number, 2 times grad_accum_steps, 4' in done.stderr
    assert not (tmp_path / '2').exists()


def test_the_gate_of_an_ensemble_is_one_for_all_ranks(tmp_path: Path) -> None:
    rows = []
    for processes in (1, 2):
        done = run(tmp_path, processes, '--objective.kind=gated', '--data.max_train_samples=128', '--optim.lr=0.01')
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = (tmp_path / str(processes) / 'metrics.jsonl').read_text().splitlines()
        rows.append([json.loads(line) for line in metrics])
    for a, b in zip(*rows, strict=True):
        assert a['train_loss'] == pytest.approx(b['train_loss'], rel=1e-3)
        assert a['train_soft_heads'] == pytest.approx(b['train_soft_heads'], rel=1e-2, abs=1e-3)
