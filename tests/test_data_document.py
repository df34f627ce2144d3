"""The examples of docs/data.md: its trees are made as folders, and read as it says."""
from __future__ import annotations

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from benchmarks.documents import fill
from timm_collab.cli import main
from timm_collab.train.config import DataConfig
from timm_collab.train.inspect import inspect_data

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'data.md'
TREE = r'```text\n(?P<root>\w+)/\n(?P<tree>[^`]*)```\n'
EXAMPLES = [match.groupdict() for match in re.finditer(
    TREE + r'```result\n(?P<result>.*?)```', DOCUMENT.read_text(), re.DOTALL)]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'datasets-cache')


def make(root: Path, tree: str) -> None:
    """Make the folders and files of a tree: `name/`, `name/  N images` or a file, indented by two blanks per level."""
    path: list[str] = []
    rng = np.random.default_rng(0)
    for line in tree.splitlines():
        name, _, images = line.strip().partition('  ')
        path = path[:(len(line) - len(line.lstrip())) // 2 - 1] + [name]
        place = root.joinpath(*path)
        if not name.endswith('/'):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text('text')
            continue
        place.mkdir(parents=True, exist_ok=True)
        for number in range(int(images.split()[0]) if images else 0):
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(place / f'{number}.png')


@pytest.mark.parametrize('example', EXAMPLES, ids=[each['root'] for each in EXAMPLES])
def test_a_tree_is_read_as_the_page_says(example, tmp_path):
    make(tmp_path / example['root'], example['tree'])
    found = inspect_data(DataConfig(path=str(tmp_path / example['root'])))
    lines = [f'{role}: {", ".join(f"{name} {count}" for name, count in (counts.per_class or {}).items())}'
             for role, counts in found.splits.items()]
    if found.left_out:
        ordered = sorted(found.left_out.items(), key=lambda item: (-item[1], item[0]))
        lines.append(f'left out: {", ".join(f"{count} {reason}" for reason, count in ordered)}')
    assert lines == example['result'].splitlines()


def test_there_are_trees():
    assert len(EXAMPLES) == 4


def output(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints of the first tree."""
    tree = re.search(TREE, DOCUMENT.read_text(), re.DOTALL)
    assert tree is not None
    make(folder / tree['root'], tree['tree'])
    monkeypatch.chdir(folder)
    assert main(['inspect', tree['root']]) == 0
    return f'```text\n{capsys.readouterr().out}```'


def test_the_output_on_the_page_is_that_of_the_command(tmp_path, monkeypatch, capsys):
    assert fill(DOCUMENT, {'inspect: pets': output(tmp_path, monkeypatch, capsys)}, check=True) == ''
