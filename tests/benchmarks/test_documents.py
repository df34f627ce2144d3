"""Blocks of documents are generated from result files, and a check finds differences."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import cost_report
from benchmarks.cost_rows import read
from benchmarks.documents import DocumentError, fill, table

TEXT = """# Title

<!-- cost: one -->
<!-- end -->

By hand.

<!-- study: other -->
stays
<!-- end -->
<!-- cost: two -->
old
older
<!-- end -->
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / 'document.md'
    path.write_text(TEXT)
    return path


def test_blocks_are_filled_and_nothing_else(document: Path) -> None:
    fill(document, {'cost: one': '1\n', 'cost: two': '2\\2'})
    filled = TEXT.replace('one -->\n', 'one -->\n1\n').replace('old\nolder\n', '2\\2\n')
    assert document.read_text() == filled
    assert fill(document, {'cost: one': '1', 'cost: two': '2\\2'}, check=True) == ''


def test_a_check_shows_differences_and_writes_nothing(document: Path) -> None:
    differed = fill(document, {'cost: one': '', 'cost: two': 'new'}, check=True)
    assert differed.splitlines()[-3:] == ['-old', '-older', '+new']
    assert document.read_text() == TEXT


@pytest.mark.parametrize('names', [['one'], ['one', 'two', 'three']])
def test_blocks_and_texts_must_match(document: Path, names: list[str]) -> None:
    with pytest.raises(DocumentError, match=r'each of .* should be there once'):
        fill(document, {f'cost: {name}': 'new' for name in names})
    assert document.read_text() == TEXT


def test_a_table() -> None:
    assert table(['a', 'b'], [['1', '2']]) == '| a | b |\n| --- | --- |\n| 1 | 2 |'


def test_the_document_matches_the_cost_study(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cost_report.DOCUMENT.read_bytes()
    monkeypatch.setattr(sys, 'argv', ['cost_report', '--check'])
    cost_report.main()  # exits if they differ
    assert cost_report.DOCUMENT.read_bytes() == before


def test_a_changed_row_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = cost_report.RESULTS.read_text().splitlines()
    rows[1] = rows[1].replace(f",{read(cost_report.RESULTS)[0]['ratio']},", ',77.5,', 1)
    (tmp_path / 'cost.csv').write_text('\n'.join(rows) + '\n')
    monkeypatch.setattr(sys, 'argv', ['cost_report', '--check', '--results', str(tmp_path / 'cost.csv')])
    with pytest.raises(SystemExit, match=r'(?s)differs from its result files.*\+.*77\.50'):
        cost_report.main()


def test_plots_are_drawn_from_the_rows(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    cost_report.draw(read(cost_report.RESULTS), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['memory.png', 'step.png']
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in tmp_path.iterdir())
