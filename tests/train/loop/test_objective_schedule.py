from __future__ import annotations

import math

import pytest

from timm_collab import CollaborativeLoss
from timm_collab.train import TrainError
from timm_collab.train.loop.objective_schedule import (
    SHAPES,
    Schedule,
    beta_schedule,
    schedule_objective,
    temperature_schedule,
)


@pytest.mark.parametrize(('shape', 'quarter', 'half'), [
    ('linear', 0.25, 0.5),
    ('cosine', (1 - math.sqrt(0.5)) / 2, 0.5),
    ('gaussian', math.exp(-5 * 9 / 16), math.exp(-5 / 4)),
])
def test_a_number_goes_its_way_and_stays(shape: str, quarter: float, half: float) -> None:
    schedule = Schedule(start=4.0, end=2.0, epochs=8.0, shape=shape)
    assert schedule.at(2) == pytest.approx(4 - 2 * quarter)
    assert schedule.at(4) == pytest.approx(4 - 2 * half)
    assert schedule.at(8) == schedule.at(8.5) == schedule.at(1000) == 2.0
    values = [schedule.at(step / 10) for step in range(100)]
    assert values == sorted(values, reverse=True)
    assert schedule.at(0) == pytest.approx(4.0, abs=2 * 0.007)


@pytest.mark.parametrize('shape', SHAPES)
def test_no_epochs_is_a_constant(shape: str) -> None:
    assert [Schedule(1.0, 0.3, 0.0, shape).at(epochs) for epochs in (0, 0.5, 100)] == [0.3] * 3


def test_beta_falls_as_the_others_gain_weight(recipe) -> None:
    config = recipe('--objective.beta=0.2', '--objective.ramp_up_epochs=2', '--objective.ramp_up=cosine').objective
    assert [beta_schedule(config).at(epochs) for epochs in (0, 1, 2, 3)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


@pytest.mark.parametrize('start', [4.0, 0.5])
def test_the_temperature_goes_up_or_down(recipe, start: float) -> None:
    config = recipe('--objective.temperature=2', f'--objective.temperature_from={start}',
                    '--objective.temperature_epochs=2', '--objective.temperature_ramp=linear').objective
    values = [temperature_schedule(config).at(epochs) for epochs in (0, 1, 2, 9)]
    assert values == pytest.approx([start, (start + 2) / 2, 2.0, 2.0])
    criterion = CollaborativeLoss()
    schedule_objective(criterion, config, 1)
    assert criterion.temperature == pytest.approx((start + 2) / 2) and criterion.beta == 1 / 3


def test_by_default_nothing_moves(recipe) -> None:
    config = recipe('--objective.beta=0.3', '--objective.temperature=3').objective
    for epochs in (0, 0.1, 7):
        criterion = CollaborativeLoss()
        schedule_objective(criterion, config, epochs)
        assert (criterion.beta, criterion.temperature) == (0.3, 3.0)


@pytest.mark.parametrize(('keys', 'message'), [
    (['--objective.temperature_from=0', '--objective.temperature_epochs=1'],
     'objective.temperature_from must be greater than 0, got 0.0'),
    (['--objective.temperature_from=3'], 'needs both objective.temperature_from and objective.temperature_epochs'),
    (['--objective.temperature_epochs=3'], 'needs both objective.temperature_from and objective.temperature_epochs'),
    (['--objective.temperature_from=3', '--objective.temperature_epochs=-1'],
     'objective.temperature_epochs must be at least 0, got -1.0'),
])
def test_half_a_schedule_is_refused(recipe, keys: list[str], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        recipe(*keys)
