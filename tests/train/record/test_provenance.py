from __future__ import annotations

import subprocess

import pytest
import torch

from timm_collab.train.record import provenance


def git(folder, *arguments):
    identity = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    subprocess.run(['git', '-C', str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_of_the_code_is_marked_dirty_where_files_differ(tmp_path, monkeypatch):
    code = tmp_path / 'timm_collab' / 'train' / 'record' / 'provenance.py'
    code.parent.mkdir(parents=True)
    code.write_text('1')
    monkeypatch.setattr(provenance, '__file__', str(code))
    assert provenance.commit() is None
    git(tmp_path, 'init')
    assert provenance.commit() is None  # nothing committed yet
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-m', 'a')
    git(tmp_path, 'tag', '-a', 'v1', '-m', 'a')
    head = subprocess.run(['git', '-C', str(tmp_path), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout
    assert head.startswith(provenance.commit()) and len(provenance.commit()) == 12
    code.write_text('2')
    assert provenance.commit() == f'{head[:12]}-dirty'


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert provenance.commit() is None


@pytest.mark.parametrize(('info', 'name'), [
    ('processor: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n', 'Some CPU @ 2 GHz'),
    (None, None),
])
def test_hardware_names_the_processor(tmp_path, monkeypatch, info, name):
    path = tmp_path / 'cpuinfo'
    if info is not None:
        path.write_text(info)
    monkeypatch.setattr(provenance, 'CPU_INFO', path)
    threads = torch.get_num_threads()
    said, _, rest = provenance.hardware(torch.device('cpu')).rpartition(', ')
    assert rest == (f'{threads} threads' if threads > 1 else '1 thread')
    assert said == name if name else said
