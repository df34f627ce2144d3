"""The estimate of a study's time on a GPU."""
from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import timm
import torch

from benchmarks.projection import main, operators, work
from timm_collab.study.grid import read_study
from timm_collab.train.record.cost import forward_multiply_adds

GRID = """
about: a test
keys: {model.name: collab_test_resnet, data.img_size: 32, data.in_chans: 1, epochs: 10, batch_size: 100}
methods:
  single: {keys: {model.heads: 1}}
  4 instances: {keys: {model.heads: 4, model.pattern: instances}}
baseline: single
seeds: [0, 1]
"""


def test_views_do_not_count_as_operators() -> None:
    x = torch.randn(4, 6)
    assert operators(lambda: (x.view(6, 4).t() @ x.unsqueeze(0).reshape(6, 4)).add_(1)) == 2


def test_the_estimate_is_the_sum_over_runs(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'grid.yaml').write_text(GRID)
    single, instances = (work(cell.config) for cell in read_study(
        tmp_path / 'grid.yaml', {'data.path': 'unread'}).cells if cell.seed == 0)
    plain = timm.create_model('test_resnet', num_classes=10, in_chans=1)
    assert single[1] == 3 * forward_multiply_adds(plain, (1, 32, 32)) and instances[1] == 4 * single[1]
    assert 3.5 < instances[0] / single[0] < 5  # the objective adds operators

    monkeypatch.setattr(sys, 'argv', [
        'projection', str(tmp_path / 'grid.yaml'), '--images', '360000', '--launch', '1000', '--rate', '0.001'])
    main()
    seconds = [36_000 * max(1e-3 * launched, 1e-7 * computed) for launched, computed in (single, instances)]
    found = re.search(r'4 runs, .*, (\d+) hours', capsys.readouterr().out)
    assert int(found[1]) == round(2 * sum(seconds) / 3600)
