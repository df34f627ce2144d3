from __future__ import annotations

import pytest

from timm_collab.study import Study

from . import toys


@pytest.fixture(scope='session')
def study(tmp_path_factory) -> Study:
    """The toy study."""
    return toys.study_in(tmp_path_factory.mktemp('study'))
