from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from timm_collab.study import Study

from . import toys
from .test_rows import OLD

TRAINER = """#!/bin/sh
# -m timm_collab.train --config RECIPE --output FOLDER ...
test -e {folder}/running && echo "$6" >> {folder}/overlapped
touch {folder}/running
echo "$6" >> {folder}/started
case "$6" in *{fails}*) rm {folder}/running; echo 'error: out of luck'; exit 2;; esac
mkdir -p "$6" && cp "$4" "$6/config.yaml" && cp {folder}/summary.json "$6/summary.json"
rm {folder}/running
"""


@pytest.fixture(scope='session')
def study(tmp_path_factory) -> Study:
    """The toy study."""
    return toys.study_in(tmp_path_factory.mktemp('study'))


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Replace the trainer by a script that fails for run folders that contain a word."""

    def make(fails: str = 'nowhere') -> Path:
        script = tmp_path / 'trainer'
        script.write_text(TRAINER.format(folder=shlex.quote(str(tmp_path)), fails=fails))
        script.chmod(0o755)
        (tmp_path / 'summary.json').write_text(json.dumps(OLD))
        monkeypatch.setattr(sys, 'executable', str(script))
        return tmp_path / 'started'

    return make
