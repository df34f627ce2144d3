from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from timm_collab.train.loop import allocator

PROGRAM = """
import resource, runpy, sys

kept = runpy.run_path(sys.argv[1])['keep_freed_memory']()
for update in range(9):
    activations = [b'.' * 2**24 for _ in range(4)]
    del activations
    if update == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**variables: str) -> tuple[bool, int]:
    """Whether memory is kept, and how often pages had to be found in four updates after the fifth."""
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, allocator.__file__], env={**os.environ, **variables}, capture_output=True,
        text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == 'True', int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of the GNU C library')
def test_an_update_finds_the_memory_of_the_one_before():
    kept, faults = run()
    assert kept
    # Of 4 x 16 MiB in pages of 4 KiB, 16,384 an update, hardly any.
    assert faults < 100


@pytest.mark.parametrize('variables', [
    {'MALLOC_TRIM_THRESHOLD_': '131072'},
    {'GLIBC_TUNABLES': 'glibc.malloc.mmap_threshold=1048576'},
])
def test_what_the_user_chose_is_kept(variables: dict[str, str]) -> None:
    kept, faults = run(**variables)
    assert not kept and faults > 16_384


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of the GNU C library')
def test_other_settings_of_malloc_are_no_choice() -> None:
    assert run(MALLOC_ARENA_MAX='2', GLIBC_TUNABLES='glibc.malloc.tcache_count=7')[0] is True


def test_other_c_libraries_are_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert allocator.keep_freed_memory() is False
