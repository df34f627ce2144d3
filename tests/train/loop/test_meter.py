from __future__ import annotations

import json
import math
import time

import pytest
import torch
from accelerate import Accelerator

from timm_collab.train.loop.meter import ExplodedLossError, LoaderClock, LossMeter


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.rand(7, 3 + 2 * 3, generator=torch.Generator().manual_seed(0)) * 3


def test_means_do_not_depend_on_when_they_are_looked_at(rows):
    results = []
    for looks in ({6}, {0, 1, 2, 3, 4, 5, 6}, {2, 6}):
        meter = LossMeter(Accelerator(cpu=True), epoch=0)
        for step, row in enumerate(rows):
            meter.add(row)
            if step in looks:
                assert meter.check() is False
        results.append((meter.loss, meter.score, meter.terms()))
    assert results[0] == results[1] == results[2]
    loss, top1, (hard, soft) = results[0]
    expected = rows.double().mean(dim=0).tolist()
    found = [loss, top1['given'], top1['clean'], *hard, *soft]
    assert found == pytest.approx(expected, rel=1e-12) and len(hard) == len(soft) == 3


def test_goes_on_from_its_state(rows):
    whole, first, second = (LossMeter(Accelerator(cpu=True), epoch=0) for _ in range(3))
    for step, row in enumerate(rows):
        whole.add(row)
        (first if step < 4 else second).add(row)
        if step == 3:
            first.check()
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    whole.check(), second.check()
    assert (second.loss, second.terms(), second.checked) == (whole.loss, whole.terms(), 7)


def test_one_process_tells_all(rows):
    meter = LossMeter(Accelerator(cpu=True), epoch=0)
    assert meter.check(True) is True and meter.check(False) is False
    assert math.isnan(meter.loss) and math.isnan(meter.score['clean'])
    meter.add(rows[0])
    assert meter.check(True) is True and meter.loss == pytest.approx(rows[0, 0].item())


@pytest.mark.parametrize(('value', 'message'), [
    (math.nan, r'the loss is nan at epoch 5, step 2 \(both from 0\): lower optim.lr'),
    (math.inf, r'the loss is inf at epoch 5, step 2'),
    (250.0, r'the loss is 250, over max_loss 100, at epoch 5, step 2'),
])
def test_an_exploded_loss_names_the_update(rows, value, message):
    meter = LossMeter(Accelerator(cpu=True), epoch=5, limit=100.0)
    rows[2, 0] = value
    for row in rows:
        meter.add(row)
    with pytest.raises(ExplodedLossError, match=message) as raised:
        meter.check()
    assert (raised.value.epoch, raised.value.step) == (5, 2)


def test_the_clock_counts_the_time_until_batches_arrive(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])

    def loader():
        for batch in range(3):
            now[0] += 2.0
            yield batch
        now[0] += 0.5

    clock, seen = LoaderClock(torch.device('cpu'), seconds=1.0), []
    for batch in clock.timed(loader()):
        seen.append(batch)
        now[0] += 100.0
        if batch == 1:
            assert clock.collect() == 5.0
    assert seen == [0, 1, 2] and clock.collect() == clock.seconds == 7.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_the_clock_counts_the_time_without_work():
    device = torch.device('cuda')
    matrix = torch.randn(8192, 8192, device=device)

    def loader():
        for _ in range(4):
            time.sleep(0.05)
            yield None

    def waited(work: int) -> float:
        clock = LoaderClock(device)
        for _ in clock.timed(loader()):
            for _ in range(work):
                matrix @ matrix
        return clock.collect()

    waited(1)
    assert 0.19 < waited(0) < 0.3
    assert waited(100) < 0.15  # two seconds of work are queued before each wait ends: only the first shows
