"""Write the tables and plots of studies into the documents, from the committed results.

The text between `<!-- study: NAME -->` and `<!-- end -->` in a document is generated from the grid
`benchmarks/studies/NAME.yaml` and the runs in `benchmarks/results/NAME/runs.csv` only. The plots go to
`docs/results/NAME/` and store a fingerprint of the text that they belong to.

    python -m benchmarks.results            # update what has changed
    python -m benchmarks.results --check    # write nothing, fail if anything is out of date
"""
from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.documents import DocumentError, block_names, fill
from timm_collab.study import Row, Study, draw_pictures, pictures_of, read_rows, read_study, report_text
from timm_collab.train import TrainError
from timm_collab.train.record.plots import HOW_TO_GET, can_plot

ROOT = Path(__file__).parents[1]
KIND = 'study'
FINGERPRINT = 'Source'  # a keyword of the PNG specification
HEADING_LEVEL = 3


class Results:
    """Documents, and the results that their blocks are generated from.

    Args:
        root: The folder with `benchmarks/studies`, `benchmarks/results` and `docs`.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.grids = root / 'benchmarks' / 'studies'
        self.results = root / 'benchmarks' / 'results'
        self.documents = sorted((root / 'docs').glob('*.md'))
        self._known: dict[str, tuple[Study, list[Row]]] = {}

    def update(self, write: bool) -> list[str]:
        """Update documents and plots, or check that they are up to date.

        Args:
            write: Whether to update.

        Returns:
            A line for each part that was out of date.

        Raises:
            TrainError: A block names no study or no results.
            DocumentError: A block has no end.
        """
        stale: list[str] = []
        self._known.clear()
        for path in self.documents:
            names = [name.removeprefix(f'{KIND}: ') for name in block_names(path, KIND)]
            made = {name: self._block(name, path) for name in names}
            if fill(path, {f'{KIND}: {name}': block for name, block in made.items()}, check=not write):
                stale.append(f'{self._short(path)}: its tables differ from the results')
            for name, block in made.items():
                stale += self._pictures(name, path, block, write)
        for path in sorted(self.results.glob('*/runs.csv')):
            if path.parent.name not in self._known:
                stale.append(f'{self._short(path.parent)}: not in any document')
        return stale

    def _read(self, name: str) -> tuple[Study, list[Row]]:
        if name not in self._known:
            # The path of the data doesn't matter for finished runs.
            study = read_study(self.grids / f'{name}.yaml', {'data.path': 'not read'})
            self._known[name] = (study, read_rows(study, self._runs(name)))
        return self._known[name]

    def _block(self, name: str, document: Path) -> str:
        """Text of a study's block in a document."""
        study, rows = self._read(name)
        folder = self._picture_folder(name, document)
        pictures = {picture: _link(folder / f'{picture}.png', document) for picture in pictures_of(study, rows)}
        return report_text(study, rows, pictures, _link(self._runs(name), document), HEADING_LEVEL)

    def _pictures(self, name: str, document: Path, block: str, write: bool) -> list[str]:
        """Draw the plots of a block whose text has changed; returns a line for each that was out of date."""
        folder, fingerprint = self._picture_folder(name, document), hashlib.sha256(block.encode()).hexdigest()
        paths = [document.parent / link for link in re.findall(r'!\[[^]]*\]\(([^)]*)\)', block)]
        stale = [f'{self._short(path)}: is missing or shows other results'
                 for path in paths if _fingerprint(path) != fingerprint]
        stale += [f'{self._short(path)}: not in any document'
                  for path in sorted(folder.glob('*.png')) if path not in paths]
        if write and stale:
            if not can_plot():
                raise TrainError(HOW_TO_GET)
            for path in folder.glob('*.png'):
                path.unlink()
            draw_pictures(*self._read(name), folder, {FINGERPRINT: fingerprint})
        return stale

    def _runs(self, name: str) -> Path:
        return self.results / name / 'runs.csv'

    def _picture_folder(self, name: str, document: Path) -> Path:
        return document.parent / document.stem / name

    def _short(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _fingerprint(path: Path) -> str | None:
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(FINGERPRINT)


def _link(path: Path, document: Path) -> str:
    return Path(os.path.relpath(path, document.parent)).as_posix()


def main(argv: Sequence[str] | None = None) -> int:
    """Update or check; the exit status is 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, and fail if anything is out of date')
    args = parser.parse_args(argv)
    try:
        stale = Results().update(write=not args.check)
    except (TrainError, DocumentError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for line in stale:
        print(line if args.check else f'{line}: updated')
    if args.check and stale:
        print('run python -m benchmarks.results and commit the changes', file=sys.stderr)
    return 1 if args.check and stale else 0


if __name__ == '__main__':
    sys.exit(main())
