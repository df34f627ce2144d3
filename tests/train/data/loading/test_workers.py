"""How many worker processes `data.workers: auto` starts."""
from __future__ import annotations

import pytest

from timm_collab.train.data.loading import workers


class Images:
    """A number of images that each take a number of seconds to load, by a clock that nothing else moves."""

    def __init__(self, count: int, seconds: float, clock: list[float]) -> None:
        self.count = count
        self.seconds = seconds
        self.clock = clock

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        assert 0 <= index < self.count
        self.clock[0] += self.seconds if index else 60.0  # the first one takes long
        return index


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    return now


@pytest.mark.parametrize(('count', 'seconds', 'processes', 'expected'), [
    (1000, 0.01, 1, 5), (100, 0.01, 1, 0), (1000, 0.0001, 1, 0), (30_000, 0.0001, 1, 5), (1000, 0.01, 8, 0),
    (3, 1.0, 1, 5), (1, 1.0, 1, 5),
])
def test_workers_are_started_where_a_pass_takes_seconds(monkeypatch, clock, count, seconds, processes, expected):
    monkeypatch.setattr(workers, 'spare_cores', lambda: 5)
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    images = Images(count, seconds, clock)
    assert workers.num_workers(images, 'auto') == expected
    assert workers.num_workers(images, 2) == 2
    monkeypatch.setattr(workers, 'spare_cores', lambda: 0)
    assert workers.num_workers(images, 'auto') == 0


@pytest.mark.parametrize(('cores', 'local', 'quota', 'expected'), [
    (1, '1', 'max 100000', 0), (8, '1', 'max 100000', 7), (64, '1', 'max 100000', 16), (64, '8', 'max 100000', 7),
    (64, '1', '400000 100000', 3), (64, '2', '1250000 100000', 5), (2, '4', 'max 100000', 0),
])
def test_spare_cores_are_those_of_the_share_of_the_process(monkeypatch, tmp_path, cores, local, quota, expected):
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', local)
    (tmp_path / 'cpu.max').write_text(quota + '\n')
    monkeypatch.setattr(workers, 'CPU_QUOTA', tmp_path / 'cpu.max')
    assert workers.spare_cores() == expected


def test_a_stream_has_workers_if_it_is_long(monkeypatch):
    monkeypatch.setattr(workers, 'spare_cores', lambda: 5)
    assert [workers.stream_workers(count, 'auto') for count in (4999, 5000)] == [0, 5]
    assert workers.stream_workers(100, 3) == 3
