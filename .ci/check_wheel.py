"""Check that a built wheel holds the package, every recipe, the embedded data and the licence, and nothing else."""
from __future__ import annotations

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def expected_files() -> set[str]:
    """Names, inside the wheel, of what the checkout says must be there."""
    package = [path for path in (ROOT / 'timm_collab').rglob('*') if path.is_file() and '__pycache__' not in path.parts]
    recipes = list((ROOT / 'recipes').rglob('*.yaml'))
    hub = [path for path in (ROOT / 'hub').rglob('*') if path.is_file()]
    files = {path.relative_to(ROOT).as_posix() for path in package}
    files |= {f'timm_collab/{path.relative_to(ROOT).as_posix()}' for path in recipes}
    files |= {f'timm_collab/data/{path.relative_to(ROOT).as_posix()}' for path in hub}
    must = {
        'timm_collab/py.typed',
        'timm_collab/recipes/quickstart.yaml',
        'timm_collab/data/digits/README.md',
        'timm_collab/data/hub/card.md',
        'timm_collab/data/hub/heads.yaml',
        'timm_collab/data/digits/train.parquet',
        'timm_collab/data/digits/test.parquet',
    }
    if absent := must - files:
        raise SystemExit(f'missing in the checkout: {sorted(absent)}')
    return files


def main(wheel: Path) -> None:
    """Compare a wheel with the checkout.

    Args:
        wheel: The built file.
    """
    expected = expected_files()
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith('/')}
    meta = {name for name in found if '.dist-info/' in name}
    if not any(name.endswith('/licenses/LICENSE') for name in meta):
        raise SystemExit(f'{wheel.name} has no licence file')
    if missing := expected - found:
        raise SystemExit(f'missing in {wheel.name}: {sorted(missing)}')
    if surplus := found - meta - expected:
        raise SystemExit(f'in {wheel.name} but not in the checkout: {sorted(surplus)}')
    print(f'{wheel.name}: {len(found)} files, {wheel.stat().st_size / 1024:.0f} kB')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
