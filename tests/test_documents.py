"""Tables in documents are those of their result files, and a check says so where they aren't."""
from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cost_report import DOCUMENT, blocks
from benchmarks.cost_rows import RESULTS, read
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
    fill(document, {'cost: one': '1', 'cost: two': '2\\2'}, check=True)


def test_a_check_shows_what_differs_and_writes_nothing(document: Path) -> None:
    with pytest.raises(DocumentError, match=r'(?s)result files say.*-old.*\+new'):
        fill(document, {'cost: one': '', 'cost: two': 'new'}, check=True)
    assert document.read_text() == TEXT


@pytest.mark.parametrize('names', [['one'], ['one', 'two', 'three']])
def test_every_block_needs_its_place_and_every_place_its_block(document: Path, names: list[str]) -> None:
    with pytest.raises(DocumentError, match=r'each of .* should be there once'):
        fill(document, {f'cost: {name}': 'new' for name in names})
    assert document.read_text() == TEXT


def test_a_table() -> None:
    assert table(['a', 'b'], [['1', '2']]) == '| a | b |\n| --- | --- |\n| 1 | 2 |'


def test_the_cost_study_is_in_its_document() -> None:
    fill(DOCUMENT, blocks(read(RESULTS)), check=True)
