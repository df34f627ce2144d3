"""Documents match the committed results, and the check fails if they don't."""
from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.documents import DocumentError
from benchmarks.results import Results, main
from tests.study import toys
from timm_collab.study import read_study
from timm_collab.study.rows import write_rows
from timm_collab.train import TrainError
from timm_collab.train.record.plots import can_plot

ROOT = Path(__file__).parents[2]
TEXT = """# What was found

Before.

<!-- study: toy -->
<!-- end -->

After.
"""


@pytest.fixture
def results(tmp_path):
    """A repository with one document and one study."""
    toys.study_in(tmp_path / 'benchmarks' / 'studies')
    (tmp_path / 'benchmarks' / 'results' / 'toy').mkdir(parents=True)
    write_rows(toys.rows(), tmp_path / 'benchmarks' / 'results' / 'toy' / 'runs.csv')
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'found.md').write_text(TEXT)
    return Results(tmp_path)


@pytest.mark.parametrize('grid', sorted((ROOT / 'benchmarks' / 'studies').glob('*.yaml')), ids=lambda path: path.stem)
def test_every_grid_is_valid(grid):
    study = read_study(grid, {'data.path': 'somewhere'})
    assert study.about and study.baseline == 'single'
    for setting in study.settings:
        assert {cell.seed for cell in study.cells if cell.setting == setting} == set(study.seeds)


def test_documents_match_their_results():
    assert Results().update(write=False) == []


@pytest.mark.skipif(not can_plot(), reason='needs matplotlib')
def test_documents_are_up_to_date_until_results_change(results):
    document = results.root / 'docs' / 'found.md'
    before = results.update(write=False)
    assert before[0] == 'docs/found.md: its tables differ from the results'
    assert before[1:] == [f'docs/found/toy/{name}.png: is missing or shows other results'
                          for name in ('errors', 'gain', 'noise')]
    assert document.read_text() == TEXT and not (results.root / 'docs' / 'found').exists()
    assert results.update(write=True) == before
    text = document.read_text()
    assert text.startswith('# What was found\n\nBefore.\n') and text.endswith('<!-- end -->\n\nAfter.\n')
    assert '\n### 40 %\n' in text and '| tree | 3 | 23.00 ± 3.00 | 22.00 ± 3.00 | -2.00 ± 2.48 |' in text
    assert '](found/toy/gain.png)' in text and '](../benchmarks/results/toy/runs.csv)' in text
    assert results.update(write=False) == []

    document.write_text(text.replace('22.00', '21.00'))
    assert results.update(write=False) == before[:1]
    results.update(write=True)
    assert document.read_text() == text

    rows = toys.rows()
    write_rows(rows[1:], results.root / 'benchmarks' / 'results' / 'toy' / 'runs.csv')
    assert results.update(write=False) == before
    results.update(write=True)
    (results.root / 'docs' / 'found' / 'toy' / 'gain.png').rename(results.root / 'docs' / 'found' / 'toy' / 'old.png')
    assert results.update(write=False) == [before[2], 'docs/found/toy/old.png: not in any document']
    results.update(write=True)
    assert results.update(write=False) == []


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('<!-- end -->', '', 'a block begins with <!-- study: NAME --> and ends with <!-- end -->'),
    ('study: toy', 'study: other', "no study '.*other.yaml'"),
])
def test_invalid_blocks_are_rejected(results, old, new, message):
    (results.root / 'docs' / 'found.md').write_text(TEXT.replace(old, new))
    with pytest.raises((TrainError, DocumentError), match=message):
        results.update(write=True)


def test_results_in_no_document_are_reported(results):
    (results.root / 'docs' / 'found.md').write_text('# Nothing\n')
    assert results.update(write=False) == ['benchmarks/results/toy: not in any document']


def test_the_command_fails_if_a_check_fails(results, monkeypatch, capsys):
    monkeypatch.setattr('benchmarks.results.Results', lambda: results)
    assert main(['--check']) == 1
    captured = capsys.readouterr()
    assert 'docs/found.md: its tables' in captured.out and 'run python -m benchmarks.results' in captured.err
