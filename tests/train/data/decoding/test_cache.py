from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors import SafetensorError

from timm_collab.train.data.decoding import cache
from timm_collab.train.data.decoding.cache import cache_folder, cached

TENSORS = {'images': torch.arange(1000, dtype=torch.uint8).view(10, 100), 'kept': torch.arange(10)}


def refuse() -> Any:
    raise AssertionError('built again')


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_second_run_reads_the_cache(tmp_path: Path) -> None:
    assert same(cached(tmp_path / 'new', 'key', lambda: TENSORS))
    assert same(cached(tmp_path / 'new', 'key', refuse))
    assert sorted(path.suffix for path in (tmp_path / 'new').iterdir()) == ['.lock', '.safetensors']


@pytest.mark.parametrize('damage', [
    lambda data: data[:-7], lambda data: data[:5], lambda data: b'', lambda data: data[:-1] + bytes([data[-1] ^ 1]),
])
def test_damaged_file_is_rebuilt(tmp_path: Path, damage: Any) -> None:
    cached(tmp_path, 'key', lambda: TENSORS)
    path = tmp_path / 'key.safetensors'
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match='key.safetensors is damaged'):
        assert same(cached(tmp_path, 'key', lambda: TENSORS))
    assert same(cached(tmp_path, 'key', refuse))


def test_unwritable_folder_and_full_disk_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').touch()
    with pytest.warns(UserWarning, match=r"can't be cached in .*file.*write --data.cache_dir"):
        assert same(cached(tmp_path / 'file' / 'folder', 'key', lambda: TENSORS))

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError('No space left on device')

    monkeypatch.setattr(cache, 'save_file', full)
    with pytest.warns(UserWarning, match='No space left'):
        assert same(cached(tmp_path, 'key', lambda: TENSORS))
    assert not list(tmp_path.glob('.key*')) and not list(tmp_path.glob('*.safetensors'))


def build_slowly(folder: Path) -> None:
    def build() -> dict[str, torch.Tensor]:
        with open(folder / 'builds', 'a') as file:
            file.write(f'{os.getpid()}\n')
        time.sleep(0.3)
        return TENSORS
    assert same(cached(folder, 'key', build))


def test_one_of_two_processes_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=build_slowly, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / 'builds').read_text().split()) == 1


def test_error_while_building_is_raised_and_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> Any:
        raise OSError('of the data')

    with pytest.raises(OSError, match='of the data'):
        cached(tmp_path, 'key', fail)
    assert same(cached(tmp_path, 'key', lambda: TENSORS))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', '/cache')
    assert cache_folder(None) == Path('/cache/timm_collab')
    assert cache_folder('') is None and cache_folder('~/x') == Path.home() / 'x'
