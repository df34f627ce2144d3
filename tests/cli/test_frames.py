"""The way from the command line to the objective is short enough to be followed in a debugger."""
from __future__ import annotations

import inspect
from pathlib import Path

import timm_collab
from timm_collab.cli import main
from timm_collab.objective.loss import CollaborativeLoss

PACKAGE = Path(timm_collab.__file__).parent
MOST = 8


def test_frames_from_the_command_to_the_objective(tmp_path, monkeypatch):
    frames: list[str] = []
    evaluate = CollaborativeLoss.evaluate

    def record(self, logits_HBC, target, *others):
        if not frames:
            for frame in reversed(inspect.stack(context=0)[1:]):
                path = Path(frame.filename)
                if path.is_relative_to(PACKAGE):
                    frames.append(f'{path.relative_to(PACKAGE).as_posix()}: {frame.function}')
        return evaluate(self, logits_HBC, target, *others)

    monkeypatch.setattr(CollaborativeLoss, 'evaluate', record)
    assert main(['train', '--config=quickstart', '--epochs=1', '--compare_single=false', '--compare_plain=false',
                 '--plots=false', '--data.max_train_samples=64', f'--output={tmp_path / "run"}']) == 0
    print(*frames, sep='\n')  # noqa: T201  (shown by `pytest -rP`)
    assert frames[0] == 'cli/__init__.py: main'
    assert [frame.partition(': ')[2] for frame in frames[-5:]] == [
        'train', 'fit', 'train_one_epoch', 'train_step', 'forward']
    assert len(frames) <= MOST, frames
