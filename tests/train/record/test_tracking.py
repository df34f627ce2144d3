"""Trackers: what they log, that a resumed run goes on in the same place, that no token is printed."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.runs import summary_values
from timm_collab.train.__main__ import main
from timm_collab.train.errors import TrainError
from timm_collab.train.record import tracking
from timm_collab.train.record.summary import RunSummary
from timm_collab.train.record.tracking import Tracking, check_trackers, flatten

ROW = {'epoch': 3, 'lr': 0.1, 'val': {'top1_heads': [80.0, 90.0], 'top1_kept': 90.0, 'disagreement': None}}
SUMMARY = RunSummary.from_dict(summary_values(), 'a test')


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reading = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = reading.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def test_nested_rows_become_flat():
    assert flatten(ROW) == {
        'epoch': 3, 'lr': 0.1, 'val/top1_heads/0': 80.0, 'val/top1_heads/1': 90.0, 'val/top1_kept': 90.0,
    }
    assert flatten({'a': {'b': ['x', None]}, 'c': (), 'd': True}) == {'a/b': "['x', None]", 'c': '()', 'd': True}


def test_tensorboard_gets_every_epoch_and_a_resumed_run_goes_on(recipe, tmp_path):
    pytest.importorskip('tensorboard')
    config = recipe('--track=[tensorboard]', '--project=study')
    for epochs in (range(2), range(2, 4)):
        run = Tracking(Accelerator(cpu=True), config, tmp_path)
        for epoch in epochs:
            run.log({**ROW, 'epoch': epoch, 'lr': 1.0 / (1 + epoch)})
        run.finish(SUMMARY)
    logged = scalars(tmp_path / 'tracking' / 'study')
    assert logged['lr'] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3)), (3, 0.25)]
    assert logged['val/top1_heads/1'] == [(epoch, 90.0) for epoch in range(4)]
    assert logged['final/error_kept'][-1] == (5, 9.0)


def test_a_training_run_logs_its_metrics_and_those_of_the_single_network(recipe, tmp_path, monkeypatch):
    pytest.importorskip('tensorboard')
    from timm_collab.train.run import train
    summary = train(recipe('--track=[tensorboard]', '--compare_single=true', '--plots=false'))
    for folder, result in ((tmp_path / 'run', summary), (tmp_path / 'run' / 'single', summary.single)):
        row = json.loads((folder / 'metrics.jsonl').read_text())
        logged = scalars(folder / 'tracking' / 'timm-collab')
        assert logged['train_loss'] == [(0, pytest.approx(row['train_loss']))]
        assert logged['final/error_kept'] == [(1, pytest.approx(result.scores.kept))]
    assert len({(tmp_path / name / 'tracking' / 'id').read_text() for name in ('run', 'run/single')}) == 2


def test_a_run_keeps_its_id(recipe, tmp_path, monkeypatch):
    seen = []

    class Fake:
        name = 'wandb'

        def finish(self):
            seen.append('finished')

    monkeypatch.setattr(tracking, 'filter_trackers', lambda names, folder: names)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, 'log', lambda values, step: None)

    def start(project, config, init_kwargs):
        seen.append((project, init_kwargs['wandb']))
        accelerator.trackers = [Fake()]

    monkeypatch.setattr(accelerator, 'init_trackers', start)
    for _ in range(2):
        Tracking(accelerator, recipe('--track=[wandb]'), tmp_path).finish(SUMMARY)
    (project, first), done, (_, second), _ = seen
    assert (project, done) == ('timm-collab', 'finished')
    assert first == second and first['resume'] == 'allow' and len(first['id']) == 16


def test_trackio_prints_no_token(tmp_path):
    pytest.importorskip('trackio')
    code = (
        'import sys; from pathlib import Path; from accelerate import Accelerator\n'
        'from timm_collab.train.config.parse import parse_config\n'
        'from tests.runs import summary_values\n'
        'from timm_collab.train.record.summary import RunSummary\n'
        'from timm_collab.train.record.tracking import Tracking\n'
        "config = parse_config(['--config=quickstart', '--track=[trackio]'])\n"
        "run = Tracking(Accelerator(cpu=True), config, Path('.')); run.log({'epoch': 0, 'lr': 0.1})\n"
        "run.finish(RunSummary.from_dict(summary_values(), 'a test'))\n"
    )
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[3]),
                   'TRACKIO_DIR': str(tmp_path / 'trackio'), 'HF_HUB_OFFLINE': '1', 'HOME': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'token' not in (done.stdout + done.stderr).lower()
    assert list((tmp_path / 'trackio').rglob('*.db'))


def test_a_tracker_that_is_not_installed_is_refused_before_training(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, 'find_spec', lambda name: None)
    with pytest.raises(TrainError, match=r"track: wandb is not installed: pip install 'timm-collab\[tracking\]'"):
        check_trackers(['wandb'])
    status = main(['--config=quickstart', '--track=[tensorboard]', f'--output={tmp_path / "run"}'])
    assert status == 2 and 'tensorboard is not installed' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(('argv', 'message'), [
    (['--track=[tensorboard, tensorboard]'], 'track names a tracker twice'),
    (['--track=[clipboard]'], 'track must be a list of tensorboard, .* or .*, got clipboard'),
    (['--track=[tensorboard]', '--project='], 'project'),
])
def test_bad_trackers_are_refused(recipe, argv, message):
    with pytest.raises(TrainError, match=message):
        recipe(*argv)


def test_a_tracker_that_can_not_start_says_so_in_one_line(recipe, tmp_path, monkeypatch):
    accelerator = Accelerator(cpu=True)

    def refuse(*args, **kwargs):
        raise RuntimeError('no\nlogin')

    monkeypatch.setattr(accelerator, 'init_trackers', refuse)
    with pytest.raises(TrainError, match=r"tensorboard can't start \(RuntimeError: no login\)"):
        Tracking(accelerator, recipe('--track=[tensorboard]'), tmp_path)
