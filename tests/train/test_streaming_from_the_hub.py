"""Training on a data set of the Hub, here one on this machine, without fetching it first."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_server.data_sets import COMMIT, DataSetServer

ROOT = Path(__file__).parents[2]
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names: {names}
  splits:
{splits}
---
"""
# The reader waits before it tries again, 20 times by default.
CODE = """
import sys, datasets
datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 1
datasets.config.STREAMING_READ_RETRY_INTERVAL = 1
from timm_collab.train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def hub(tmp_path, digit_shards):
    folder = tmp_path / 'repository'
    shutil.copytree(digit_shards, folder)
    names = json.dumps({str(label): str(label) for label in range(10)})
    splits = '\n'.join(
        f'  - name: {name}\n    num_examples: {count}\n    num_bytes: {count}'
        for name, count in (('train', 128), ('validation', 40), ('test', 40)))
    (folder / 'README.md').write_text(CARD.format(names=names, splits=splits))
    with DataSetServer(folder, 'user/digits') as server:
        yield server


@pytest.fixture
def train(hub, tmp_path):
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HF_ENDPOINT': hub.endpoint,
            'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_DISABLE_XET': '1', 'CUDA_VISIBLE_DEVICES': '',
        }
        for name in ('HF_HUB_OFFLINE', 'HF_DATASETS_CACHE', 'HF_DATASETS_OFFLINE', 'HF_TOKEN'):
            environment.pop(name, None)
        return subprocess.run(
            [sys.executable, '-c', CODE, '--model.name=collab_test_resnet', '--model.heads=2',
             '--data.path=user/digits', '--data.img_size=16', '--data.in_chans=1', '--batch_size=32', '--epochs=2',
             '--data.streaming=true', '--plots=false', '--data.workers=1', '--checkpoint.every_updates=1',
             f'--output={tmp_path / "run"}', *argv],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)

    return run


def test_it_trains_on_what_the_card_says(hub, train, tmp_path):
    done = train()
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads((tmp_path / 'run' / 'summary.json').read_text())['data']
    assert (data['train'], data['val'], data['test']) == (128, 40, 40)
    assert data['label_names'] == [str(label) for label in range(10)]
    shards = {f'train-{index:05d}-of-00004.parquet' for index in range(4)}
    assert shards | {'validation.parquet', 'test.parquet'} <= hub.fetched()
    assert all(f'/resolve/{COMMIT}/' in path for method, path in hub.requests if path.endswith('.parquet'))
    kept = [path.name for path in (tmp_path / 'home').rglob('*') if 'train-0' in path.name]
    assert kept == []


@pytest.mark.slow
def test_a_file_that_is_not_served_ends_the_run_which_goes_on_later(hub, train, tmp_path):
    hub.broken.add('train-00002-of-00004.parquet')
    done = train('--data.shuffle_buffer=1', '--data.lanes=1')
    assert done.returncode == 2
    message = ' '.join(done.stderr.split())
    assert "error: split 'train' can't be read on" in message
    assert 'the same command resumes from the last checkpoint' in message
    assert not (tmp_path / 'run' / 'summary.json').exists()
    hub.broken.clear()
    done = train('--data.shuffle_buffer=1', '--data.lanes=1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'resuming after' in done.stdout or 'starting from the beginning' in done.stdout
