"""Check an exported folder, file by file, before it is uploaded."""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from ..errors import one_line
from ..pretrained.download import sha256_of
from ..train.paths import CARD, MODEL_CONFIG, PLOTS, RECIPE, SUMMARY, TREE, WEIGHTS
from ..train.record.summary import RunSummary
from .errors import HubError, require
from .options import check_license
from .weights import tensor_names

PLACEHOLDER = b'hf-hub:user/name'
MAX_WEIGHTS = 50 * 10**9  # the Hub's own limit per file
MAX_TEXT = 10 * 10**6  # the Hub stores larger files as LFS objects
_TOKEN = re.compile(rb'hf_[A-Za-z0-9]{20,}')
_PICKLES = {'.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt', '.tar', '.pt2', '.npy', '.npz', '.joblib'}


@dataclass(frozen=True)
class Upload:
    """A checked folder.

    Args:
        folder: The folder.
        files: Its files, relative to it.
        config: timm's config.
        card: The model card.
    """

    folder: Path
    files: list[str]
    config: dict[str, Any]
    card: bytes

    def content(self, file: str) -> Path | bytes:
        """Content to upload: the path of the file, or the text of the card with the repository's name in it."""
        return self.card if file == CARD else self.folder / file

    def size(self, file: str) -> int:
        """Size of a file in bytes."""
        return len(self.card) if file == CARD else (self.folder / file).stat().st_size

    def listing(self) -> list[str]:
        """A line per file and one for the total."""
        sizes = [(self.size(file), file) for file in self.files]
        rows = [*sizes, (sum(size for size, _ in sizes), f'in {len(sizes)} files')]
        return [f'{size:>14,} bytes  {name}' for size, name in rows]


def check_folder(folder: Path, token: str | None = None, repo: str | None = None) -> Upload:
    """Check a folder.

    Args:
        folder: Folder written by `export_run`.
        token: Access token that no file may contain.
        repo: Repository to name in the card.

    Raises:
        HubError: A file is missing, damaged, too large, of an unexpected type, or contains an access token.
    """
    require(folder.is_dir(), f"no exported head in '{folder}': there is no such folder")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if not path.is_dir())
    for file in files:
        _check_file(folder / file, file, token)
    for file in (CARD, MODEL_CONFIG, WEIGHTS, SUMMARY):
        require(file in files, f"'{folder}' is no exported head: it has no {file}; make one with timm-collab export")
    config = json.loads((folder / MODEL_CONFIG).read_text(encoding='utf-8'))
    check_label_names(config.get('label_names'), config['num_classes'], f"label_names of '{folder / MODEL_CONFIG}'")
    exported = RunSummary.read(folder / SUMMARY).export
    require(exported is not None and exported.sha256 == sha256_of(folder / WEIGHTS),
            f"'{folder / WEIGHTS}' is not the file that was checked when it was exported: export the run again")
    card = ModelCard.load(folder / CARD).data
    check_license(card.license, card.license_name, card.license_link)
    text = (folder / CARD).read_bytes()
    return Upload(folder, files, config, text if repo is None else text.replace(PLACEHOLDER, f'hf-hub:{repo}'.encode()))


def check_label_names(names: Sequence[str] | None, num_classes: int, origin: str) -> None:
    """Check that there is a name for each class.

    Raises:
        HubError: Names are missing, empty or too many.
    """
    require(names is None or len(names) == num_classes,
            f'{origin}: {len(names or ())} names for {num_classes} classes: write one for each, in their order')
    require(names is None or all(isinstance(name, str) and name for name in names), f'{origin}: a name is empty')


def _check_file(path: Path, name: str, token: str | None) -> None:
    suffix = path.suffix.lower()
    require(not path.is_symlink(), f"'{path}' is a link: put the file itself there")
    require(suffix not in _PICKLES, f"'{path}' can hold pickled code, which runs when it is loaded: only safetensors"
                                    ' are published; move it out of the folder')
    parsers: dict[str, Callable[[Path], object]] = {
        CARD: lambda file: ModelCard.load(file),
        MODEL_CONFIG: _json,
        SUMMARY: _json,
        RECIPE: lambda file: yaml.safe_load(file.read_text(encoding='utf-8')),
        WEIGHTS: tensor_names,
        TREE: tensor_names,
        'LICENSE': lambda file: file.read_text(encoding='utf-8'),
    }
    plot = re.fullmatch(rf'{PLOTS}/[\w.-]+\.(png|svg)', name)
    require(name in parsers or plot, f"'{path}' is no file of an exported head: move it out of the folder")
    limit = MAX_WEIGHTS if suffix == '.safetensors' else MAX_TEXT
    size = path.stat().st_size
    require(size <= limit, f"'{path}' has {size:,} bytes, more than the {limit:,} that such a file may have")
    try:
        parsers.get(name, _image)(path)
    except HubError:
        raise
    except Exception as error:  # any of the parsers' own
        raise HubError(f"'{path}' is damaged: {one_line(error)[:200]}") from None
    with open(path, 'rb') as file:
        text = file.read(MAX_TEXT)  # the whole file, except of weights, whose text is in the header at the start
    secret = _TOKEN.search(text) is not None or (token is not None and token.encode() in text)
    require(not secret, f"'{path}' holds an access token: take it out, and revoke it on https://huggingface.co/settings/tokens")


def _json(file: Path) -> None:
    if not isinstance(json.loads(file.read_text(encoding='utf-8')), dict):
        raise ValueError('it is no mapping')


def _image(file: Path) -> None:
    start = file.read_bytes()[:200].lstrip()
    if not start.startswith((b'\x89PNG', b'<svg', b'<?xml')):
        raise ValueError('it is no PNG or SVG image')
