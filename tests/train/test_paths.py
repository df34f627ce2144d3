from __future__ import annotations

import os
from pathlib import Path

import pytest

from timm_collab.train.paths import atomic


def write_and_fail(path: Path, text: str) -> None:
    with atomic(path) as partial:
        partial.write_text(text)
        raise RuntimeError


def test_a_file_is_there_completely_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / 'folder' / 'file.txt'
    with atomic(path) as partial:
        assert partial.parent == path.parent
        partial.write_text('first')
        assert not path.exists()
    assert path.read_text() == 'first'
    with pytest.raises(RuntimeError):
        write_and_fail(path, 'second')
    assert path.read_text() == 'first'
    assert [each.name for each in path.parent.iterdir()] == ['file.txt']


def test_a_folder_is_there_completely_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / 'folder'
    leftover = tmp_path / '.folder.partial'
    leftover.mkdir()
    (leftover / 'of a killed process').touch()
    with atomic(path) as partial:
        partial.mkdir()
        (partial / 'file.txt').write_text('content')
    assert [each.name for each in path.iterdir()] == ['file.txt']
    assert [each.name for each in tmp_path.iterdir()] == ['folder']


def test_a_folder_that_holds_something_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / 'folder'
    path.mkdir()
    (path / 'file.txt').write_text('content')
    with pytest.raises(OSError, match='not empty'), atomic(path) as partial:
        partial.mkdir()
    assert (path / 'file.txt').read_text() == 'content'
    assert not partial.exists()


def test_everything_is_on_disk_before_it_is_moved(tmp_path: Path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr('timm_collab.train.paths._sync', lambda path: calls.append(path.name))
    replace = os.replace
    monkeypatch.setattr('os.replace', lambda source, target: (calls.append('replace'), replace(source, target)))
    with atomic(tmp_path / 'folder') as partial:
        partial.mkdir()
        (partial / 'file.txt').write_text('content')
    assert calls == ['.folder.partial', 'file.txt', 'replace', tmp_path.name]
