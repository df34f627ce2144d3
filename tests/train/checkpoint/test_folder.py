"""Checkpoints survive faults: damaged files, a full disk and killed processes."""
from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch

from timm_collab.train.checkpoint import CheckpointError, Checkpoints, folder, unpack

FILES = ['tensors.safetensors', 'state.json', 'manifest.json']


def state(number: int) -> dict:
    return {'number': number, 'weight': torch.full((50, 50), float(number))}


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """Three checkpoints, the first with the best score."""
    made = Checkpoints(tmp_path / 'checkpoints', keep_last=3, keep_best=1)
    for number, score in ((10, 90.0), (20, 70.0), (30, 80.0)):
        made.save(state(number), number, score)
    return made


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.path.iterdir())


def test_newest_checkpoint_is_loaded(checkpoints):
    found = checkpoints.newest()
    again = unpack(found.plain, found.tensors)
    assert again['number'] == 30 and torch.equal(again['weight'], state(30)['weight'])
    assert found.path.name == 'update-000000030' == checkpoints.last_name() and found.set_aside == []
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FILES)


def test_no_checkpoint_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / 'none').newest() is None
    assert Checkpoints(tmp_path / 'none').last_name() is None


def test_last_and_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1)
    scores = [50.0, 90.0, 60.0, None, 90.0, 70.0, None]
    for number, score in enumerate(scores, start=1):
        checkpoints.save(state(number), number, score)
    assert names(checkpoints) == ['update-000000002', 'update-000000006', 'update-000000007']  # earlier of equals


def test_best_checkpoint_is_not_kept_unless_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=0)
    for number in (1, 2, 3):
        checkpoints.save(state(number), number, float(-number))
    assert names(checkpoints) == ['update-000000003']


def damage(path, how: str) -> None:
    if how == 'missing':
        path.unlink()
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'cut':
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize('how', ['missing', 'empty', 'cut', 'one bit'])
@pytest.mark.parametrize('name', FILES)
def test_damaged_checkpoint_is_renamed_and_the_previous_one_loaded(checkpoints, name, how):
    damage(checkpoints.path / 'update-000000030' / name, how)
    found = checkpoints.newest()
    assert unpack(found.plain, found.tensors)['number'] == 20
    [(aside, reason)] = found.set_aside
    assert aside.name == 'update-000000030.damaged' and aside.is_dir()
    assert name in reason and 'update-000000030' in reason
    # The resumed run reaches the same update again.
    checkpoints.save(state(30), 30)
    assert unpack(*(lambda it: (it.plain, it.tensors))(checkpoints.newest()))['number'] == 30


def test_error_if_all_checkpoints_are_damaged_deletes_nothing(checkpoints):
    for path in list(checkpoints.path.iterdir()):
        damage(path / 'tensors.safetensors', 'cut')
    for _ in range(2):  # the second time, all have been renamed
        with pytest.raises(CheckpointError, match=r"every checkpoint in '.*' is damaged .*restore one from a backup"):
            checkpoints.newest()
    assert names(checkpoints) == [f'update-0000000{number}.damaged' for number in (10, 20, 30)]


def test_another_format_is_not_taken_for_damage(checkpoints):
    path = checkpoints.path / 'update-000000030' / 'manifest.json'
    manifest = json.loads(path.read_text())
    del manifest['sha256']
    manifest['format'] = 2
    manifest['sha256'] = folder._own_sha256(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match='has format 2, this version reads 1: resume with the version'):
        checkpoints.newest()
    assert path.exists()


@pytest.mark.parametrize('point', ['timm_collab.train.checkpoint.folder.save_file', 'os.fsync', 'os.replace'])
def test_full_disk_leaves_the_last_checkpoint_intact(checkpoints, monkeypatch, point):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(point, full)
    with pytest.raises(CheckpointError, match=r"can't be written \(.*No space left on device\); the last one,"
                                              r" 'update-000000030', is intact: free disk space, then run the same"):
        checkpoints.save(state(40), 40)
    monkeypatch.undo()
    assert names(checkpoints) == ['update-000000010', 'update-000000020', 'update-000000030']
    assert checkpoints.newest().plain['number'] == 30


def test_partial_checkpoint_of_a_killed_process_is_ignored(checkpoints):
    shutil.copytree(checkpoints.path / 'update-000000010', checkpoints.path / '.update-000000040.partial')
    assert checkpoints.newest().plain['number'] == 30
    checkpoints.clear_partial()
    assert names(checkpoints) == ['update-000000010', 'update-000000020', 'update-000000030']


def test_unsupported_state_is_refused_before_anything_is_written(checkpoints):
    with pytest.raises(TypeError, match="can't hold 'hook'"):
        checkpoints.save({'hook': print}, 40)
    assert checkpoints.newest().plain['number'] == 30
    assert not [*checkpoints.path.glob('.*')]
