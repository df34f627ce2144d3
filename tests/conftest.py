"""One thread per process, and one seed for all that tests draw at random."""
import os
import time

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is loaded, and for the processes that tests start

import pytest
import torch

torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))  # tests are small; with `pytest -n 2` threads would compete
SEED = 'TIMM_COLLAB_SEED'


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed once, for the workers of `pytest -n 2` and for Hypothesis too."""
    seed = os.environ.setdefault(SEED, str(time.time_ns() % 2**32))
    if getattr(config.option, 'hypothesis_seed', None) is None:
        config.option.hypothesis_seed = seed


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed PyTorch, so that a test draws the same alone, in its file and on any worker of `pytest -n 2`."""
    torch.manual_seed(0)


def pytest_report_header() -> str:
    return f'random draws: {SEED}={os.environ[SEED]} repeats them'


@pytest.fixture(scope='session')
def draw_seed() -> int:
    """The seed of this test session, for what a test draws at random."""
    return int(os.environ[SEED])
