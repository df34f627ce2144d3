"""What the documents point to is there."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]


def test_each_feature_names_a_test_that_is_there() -> None:
    rows = [line for line in (ROOT / 'docs' / 'features.md').read_text().splitlines() if line.startswith('| ')][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', row)
        assert named, f'no test named: {row}'
        for file, test in named:
            assert f'\ndef {test}(' in (ROOT / file).read_text(), f'{file} has no {test}'


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#]*)#?([^)]*)\)', document.read_text()):
        linked = document.parent / target if target else document
        assert linked.exists(), f'{document.name}: {target}'
        if anchor:
            headings = [
                re.sub(r'[^\w -]', '', line.lstrip('# ').lower()).replace(' ', '-')
                for line in linked.read_text().splitlines() if line.startswith('#')
            ]
            assert anchor in headings, f'{document.name}: #{anchor}'
