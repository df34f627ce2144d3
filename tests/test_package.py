"""What holds for the package as a whole: its version, its public names, what imports what."""
from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import timm_collab

PACKAGE = Path(timm_collab.__file__).parent
MODULES = sorted(PACKAGE.rglob('*.py'))

# A module imports only from its left.
CHAIN = (
    'tree', 'meta', 'tracing', 'program', 'segments', 'split_points', 'plan', 'rescale', 'checkpointing', 'drawing',
    'weights', 'model', 'fused', 'loss', 'baselines', 'task', 'train', 'study', 'hub', 'cli',
)
LIBRARY = CHAIN[:CHAIN.index('train')]
CORE = {*LIBRARY, 'catalogue', 'download', 'heads', 'networks', 'noise', 'registry'}

# For each part of the package, what else of it may be imported there.
MAY_IMPORT = {part: set(CHAIN[:i]) for i, part in enumerate(CHAIN)} | {
    '__init__': CORE,
    '__main__': {'cli'},
    'catalogue': set(),
    'download': {'catalogue'},
    'heads': {'catalogue', 'download', 'model'},
    'networks': set(),
    'noise': set(),
    'registry': {'catalogue', 'download', 'tree', 'model', 'networks', 'task'},
    'sweep': {'__init__', 'meta', 'split_points', 'model'},
}
MAY_IMPORT['train'] |= {'__init__', 'noise', 'registry'}
MAY_IMPORT['hub'] |= {'__init__', 'catalogue', 'download'}
MAY_IMPORT['cli'] |= {'__init__'}

# Imported where they are needed, after a look whether they are there.
OPTIONAL = {'matplotlib', 'onnx', 'onnxscript'}
DISTRIBUTIONS = {'PIL': 'pillow', 'huggingface_hub': 'huggingface-hub', 'yaml': 'pyyaml'}


def part_of(path: Path) -> str:
    """The part of the package that a file belongs to: a module at the top, or a folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a file imports, wherever in the file."""
    package = ('timm_collab', *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(filter(None, (base, node.module)))
            yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def internal_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part of the package of every import from within the package; `__init__` is the package's own names."""
    parts = {part_of(module) for module in MODULES}
    for line, name in imports_of(path):
        if name.split('.')[0] == 'timm_collab':
            part = name.split('.')[1] if '.' in name else '__init__'
            yield line, part if part in parts else '__init__'


def test_version_is_the_installed_one() -> None:
    assert re.fullmatch(r'\d+\.\d+\.\d+([.\w]*)?', timm_collab.__version__)
    try:
        installed = metadata.version('timm-collab')
    except metadata.PackageNotFoundError:
        pytest.skip('timm-collab is imported from a checkout, not installed')
    assert timm_collab.__version__ == installed


@pytest.mark.parametrize('name', timm_collab.__all__)
def test_public_name_is_documented(name: str) -> None:
    value = getattr(timm_collab, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert len(inspect.getdoc(value) or '') > 40
        assert value.__doc__ is not None, f'{name} only inherits its docstring'


def test_promised_names_are_exported() -> None:
    promised = {'CollabModel', 'HeadTree', 'CollaborativeLoss', 'CollaborativeTask', 'split_points'}
    assert promised <= set(timm_collab.__all__)


def test_core_needs_neither_accelerate_nor_datasets() -> None:
    # A process of its own: here other tests may have imported either long ago.
    modules = ', '.join(f'timm_collab.{part}' for part in sorted(CORE))
    code = f'import sys, {modules}; print(*{{"accelerate", "datasets"}} & set(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT, f'give {path.name} its place in CHAIN, or beside it in MAY_IMPORT'
    allowed = MAY_IMPORT[part] | {part}
    against = [f'line {line}: {other}' for line, other in internal_imports(path) if other not in allowed]
    assert not against, f'{part} may import {sorted(MAY_IMPORT[part]) or "nothing of the package"}'


def test_contributing_lists_the_chain() -> None:
    text = (Path(__file__).parent.parent / 'CONTRIBUTING.md').read_text()
    rows = [row.removesuffix('.py').removesuffix('/') for row in re.findall(r'^\| `([\w./]+)` \|', text, re.MULTILINE)]
    assert tuple(rows[1:len(CHAIN) + 1]) == CHAIN


def test_networks_are_reached_through_the_registry_only() -> None:
    users = {part_of(path) for path in MODULES for _, part in internal_imports(path) if part == 'networks'}
    assert users - {'networks'} == {'registry'}


def test_what_is_imported_is_required() -> None:
    try:
        requirements = metadata.requires('timm-collab') or []
    except metadata.PackageNotFoundError:
        pytest.skip('timm-collab is imported from a checkout, not installed')
    required = {re.split(r'[<>=!~; \[]', line)[0] for line in requirements if 'extra ==' not in line}
    imported = {name.split('.')[0] for path in MODULES for _, name in imports_of(path)}
    third_party = {name for name in imported - sys.stdlib_module_names if name != 'timm_collab'}
    assert {DISTRIBUTIONS.get(name, name) for name in third_party - OPTIONAL} <= required
    extras = {re.split(r'[<>=!~; \[]', line)[0] for line in requirements if 'extra ==' in line}
    assert extras >= OPTIONAL
