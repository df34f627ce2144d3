"""What holds for the package as a whole: its version, its public names, what imports what."""
from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

import timm_collab

PACKAGE = Path(timm_collab.__file__).parent
MODULES = sorted(PACKAGE.rglob('*.py'))

# The rooms of the package, from the ground up: a module imports from its own room and from those before it.
# `__init__` is what `timm_collab` itself exports.
ROOMS = (
    'tree', 'errors', 'split', 'model', 'objective', 'pretrained', 'registry', '__init__',
    'train/errors', 'train/paths', 'train/config', 'train/build', 'train/distributed', 'train/data', 'train/metrics',
    'train/checkpoint', 'train/record', 'train/inspect', 'train/loop', 'train/prepare', 'train/run', 'train/validate',
    'train/__init__', 'train/__main__',
    'study', 'hub', 'cli', 'sweep', '__main__',
)
LIBRARY = ROOMS[:ROOMS.index('__init__')]

# Rooms side by side: what stands before them and yet is nothing they may know.
APART = {
    'objective': {'split', 'model'},
    'train/metrics': {'train/data', 'train/distributed', 'train/build'},
    'train/checkpoint': {'train/data', 'train/metrics', 'train/build'},
    'hub': {'study'},
    'train/inspect': {'train/metrics', 'train/checkpoint', 'train/record', 'train/distributed'},
    'sweep': {room for room in ROOMS if room.startswith('train/')} | {'study', 'hub', 'cli'},
}

# Rooms whose names `timm_collab` exports on first use.
LAZY = {'__init__': {'train/record'}}

# Imported where they are needed, after a look whether they are there.
OPTIONAL = {'matplotlib', 'onnx', 'onnxscript'}
DISTRIBUTIONS = {'PIL': 'pillow', 'huggingface_hub': 'huggingface-hub', 'yaml': 'pyyaml'}


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, given as its names below the package: a folder or file at the top, or one in `train/`."""
    depth = 2 if parts[:1] == ('train',) else 1
    return '/'.join(parts[:depth]) if parts[:depth] != ('train',) else 'train/__init__'


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


def room_of_file(path: Path) -> str:
    return room_of(path.relative_to(PACKAGE).with_suffix('').parts)


def internal_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import from within the package."""
    known = set(ROOMS)
    for line, name in imports_of(path):
        first, *parts = name.split('.')
        if first == 'timm_collab':
            room = room_of(tuple(parts)) if parts else '__init__'
            if room not in known:  # a name that `__init__.py` exports
                room = 'train/__init__' if parts[:1] == ['train'] else '__init__'
            yield line, room


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
    promised = {'CollabModel', 'HeadTree', 'CollaborativeLoss', 'CollaborativeTask', 'split_points', 'load_run'}
    assert promised <= set(timm_collab.__all__)


def test_core_needs_neither_accelerate_nor_datasets() -> None:
    # A process of its own: here other tests may have imported either long ago.
    modules = ', '.join(['timm_collab', *(f'timm_collab.{room}' for room in LIBRARY)])
    code = f'import sys, {modules}; print(*{{"accelerate", "datasets"}} & set(sys.modules))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize('path', MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    room = room_of_file(path)
    assert room in ROOMS, f'give {path.name} its place in ROOMS'
    allowed = {*ROOMS[:ROOMS.index(room) + 1]} - APART.get(room, set()) | LAZY.get(room, set())
    against = [f'line {line}: {other}' for line, other in internal_imports(path) if other not in allowed]
    assert not against, f'{room} may import only from {sorted(allowed - {room})}'


def test_no_circle_of_files() -> None:
    """Rooms go one way by their order; the files within a room must too."""
    modules = {'.'.join(('timm_collab', *path.relative_to(PACKAGE).with_suffix('').parts)): path for path in MODULES}
    modules = {name.removesuffix('.__init__'): path for name, path in modules.items()}
    graph = {}
    for name, path in modules.items():
        wanted = {each if each in modules else each.rpartition('.')[0] for _, each in imports_of(path)}
        graph[name] = {each for each in wanted if each in modules and each != name}
    # A package's `__init__` collects what its files offer, which none of them takes from there.
    for name in [name for name, path in modules.items() if path.name == '__init__.py']:
        graph[name] = {each for each in graph[name] if not each.startswith(f'{name}.')}
    order = tuple(TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert set(order) == set(modules)


def test_the_map_in_contributing_is_that_of_the_code() -> None:
    text = (Path(__file__).parent.parent / 'CONTRIBUTING.md').read_text()
    block = re.search(r'```\ntimm_collab/\n(.*?)```', text, re.DOTALL)
    assert block is not None
    path, rooms = [], []
    for line in block[1].splitlines():
        match = re.match(r'( +)([\w./]+)', line)
        if match and len(match[1]) in (2, 4):
            path[len(match[1]) // 2 - 1:] = [match[2].rstrip('/').removesuffix('.py')]
            rooms.append('/'.join(path))
    shown = [room for room in ROOMS if not room.endswith('__init__') and '__main__' not in room]
    assert [room for room in rooms if room != 'train'] == shown
    assert len(block[1].splitlines()) <= 45, 'it should fit one screen'


def test_a_folder_says_what_comes_in_what_goes_out_and_what_does_not_belong() -> None:
    for path in MODULES:
        if path.name == '__init__.py' and path.parent != PACKAGE and 'commands' not in path.parts:
            text = ast.get_docstring(ast.parse(path.read_text())) or ''
            if path.parent.name == 'networks':
                continue
            assert 'In: ' in text and 'Out: ' in text, f'{path}: say what comes in and what goes out'
            assert re.search(r'\b(never|[Nn]othing|[Nn]one)\b', text), f'{path}: say what does not belong there'


def test_networks_are_reached_through_the_registry_only() -> None:
    for path in MODULES:
        if 'networks' not in path.parts and path.name != 'registry.py':
            assert not [name for _, name in imports_of(path) if '.model.networks' in name], path


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
