from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed

from timm_collab.train.data.random_streams import Draws, Purpose, between, generator, keyed_randomness, seed_generators


def test_draws_of_a_row_depend_on_its_key_alone() -> None:
    keys = [(3, index) for index in range(50)]
    alone = np.concatenate([Draws(7, [key]).uniform(Purpose.CROP, 6) for key in keys])
    assert np.array_equal(Draws(7, keys).uniform(Purpose.CROP, 6), alone)
    assert np.array_equal(Draws(7, keys[::-1]).uniform(Purpose.CROP, 6), alone[::-1])
    assert np.array_equal(Draws(7, keys).uniform(Purpose.CROP, 2), alone[:, :2])


@pytest.mark.parametrize(('seed', 'key', 'purpose'), [
    (8, (3, 5), Purpose.CROP), (7, (4, 5), Purpose.CROP), (7, (3, 6), Purpose.CROP), (7, (5, 3), Purpose.CROP),
    (7, (3, 5, 1), Purpose.CROP), (7, (3, 5), Purpose.HFLIP),
])
def test_draws_depend_on_every_part_of_the_key(seed: int, key: tuple[int, ...], purpose: Purpose) -> None:
    reference = Draws(7, [(3, 5)]).uniform(Purpose.CROP, 8)
    assert not np.any(reference == Draws(seed, [key]).uniform(purpose, 8))


def test_streams_never_change() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        'HOLD_OUT': ('generator', 1), 'SUBSET': ('generator', 2), 'ORDER': ('generator', 3),
        'STREAMED_ORDER': ('generator', 4), 'BALANCED': ('generator', 7), 'SUBSET_HELD_OUT': ('generator', 11),
        'NOISE': ('generator', 0x6C61626C), 'NOISE_HELD_OUT': ('generator', 12),
        'CROP': ('draws', 1), 'HFLIP': ('draws', 2), 'VFLIP': ('draws', 3), 'COLOR': ('draws', 4),
        'ERASE': ('draws', 5), 'REPLACE': ('draws', 6),
        'UPDATE': ('global', 'update'), 'MIXUP': ('global', 'mixup'),
    }
    expected = [0.8944383066876127, 0.2900758570055413, 0.6023510668113912]
    assert Draws(0, [(0, 0)]).uniform(Purpose.CROP, 3)[0].tolist() == expected
    assert generator(Purpose.ORDER, 7, 2).random() == np.random.default_rng((7, 3, 2)).random()
    assert generator(Purpose.NOISE, 7).random() == np.random.default_rng((7, 0x6C61626C)).random()


def test_draws_are_uniform_and_independent() -> None:
    count = 40_000
    keys = [(epoch, index) for epoch in range(4) for index in range(count // 4)]
    uniform = Draws(0, keys).uniform(Purpose.CROP, 3)
    assert uniform.min() >= 0 and uniform.max() < 1
    for column in uniform.T:
        expected = count / 64
        chi2 = ((np.bincount((64 * column).astype(int), minlength=64) - expected) ** 2 / expected).sum()
        assert chi2 < 63 + 5 * np.sqrt(2 * 63)
    # Between draws of a key, neighbouring indices and neighbouring epochs; a correlation deviates by 1 / sqrt(N).
    pairs = [(uniform[:, 0], uniform[:, 1]), (uniform[1:, 0], uniform[:-1, 0]),
             (uniform[:count // 4, 0], uniform[count // 4:count // 2, 0])]
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(a))


def test_between_is_uniform_including_both_ends() -> None:
    drawn = between(Draws(1, [(0, index) for index in range(9000)]).uniform(Purpose.CROP, 1), -1, 7)
    counts = np.bincount(drawn[:, 0] + 1)
    assert len(counts) == 9 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_keyed_randomness_restores_the_generators() -> None:
    def draw() -> tuple[float, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with keyed_randomness(0, 0, 0):
        inside = draw()
    assert draw() == expected != inside


def test_seed_generators_matches_accelerate() -> None:
    key = (3, Purpose.UPDATE, 1, 2, 0)
    seed_generators(torch.device('cpu'), *key)
    drawn = random.random(), np.random.rand(), torch.rand(3)
    set_seed(random.Random('3/update/1/2/0').getrandbits(32))
    assert drawn[:2] == (random.random(), np.random.rand())
    assert torch.equal(drawn[2], torch.rand(3))
    seed_generators(torch.device('cpu'), 3, 'update', 1, 3, 0)
    assert random.random() != drawn[0] and not torch.equal(torch.rand(3), drawn[2])
