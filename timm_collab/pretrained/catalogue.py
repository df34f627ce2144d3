"""The catalogue of trained heads: what each is, where it lies and what its file must hash to.

`heads.yaml` has one entry per head, under its architecture and tag. The package carries one; `docs/hub.md` says how an
entry is made.
"""
from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import one_line

__all__ = [
    'CATALOGUE', 'CatalogueError', 'PublishedHead', 'find_head', 'list_heads', 'read_catalogue', 'shipped_folder',
]

CATALOGUE = 'heads.yaml'
_NAME = re.compile(r'\w+\.[\w-]+')
_SHA256 = re.compile(r'[0-9a-f]{64}')
_COMMIT = re.compile(r'[0-9a-f]{40}')


class CatalogueError(ValueError):
    """An entry of a catalogue that can't be, or a head that no catalogue has."""


@dataclass(frozen=True)
class PublishedHead:
    """A trained head that can be loaded by name.

    Args:
        name: Architecture and tag, e.g. `resnet50.collab4_in1k`.
        sha256: Of `model.safetensors`.
        license: The Hub's name of the licence of the weights.
        dataset: What it was trained on.
        tree: The head tree it grew on, as `HeadTree` reads it.
        metrics: What was measured, by name; percentages where the name doesn't say otherwise.
        pretrained_cfg: timm's, of the trained network: input size, normalisation, number of classes.
        model_args: Arguments of the architecture beyond its name.
        repo: Where it is on the Hub.
        revision: The commit there, in full: a branch would move.
        folder: Where it lies on this machine, for a head that came with the package or beside its catalogue.
    """

    name: str
    sha256: str
    license: str
    dataset: str
    tree: str
    metrics: Mapping[str, float]
    pretrained_cfg: Mapping[str, Any]
    model_args: Mapping[str, Any] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        _require(_NAME.fullmatch(self.name), f"'{self.name}' must be an architecture and a tag, e.g. resnet18.collab4")
        _require(isinstance(self.sha256, str) and _SHA256.fullmatch(self.sha256),
                 f'{self.name}: sha256 must be 64 hexadecimal digits, got {self.sha256!r}')
        _require(self.license, f'{self.name}: has no license')
        _require(self.repo or self.folder, f'{self.name}: needs a repo, or a folder beside the catalogue')
        _require(not self.repo or (isinstance(self.revision, str) and _COMMIT.fullmatch(self.revision)),
                 f'{self.name}: revision must be the full commit that is meant, 40 hexadecimal digits, got'
                 f' {self.revision!r}')

    @property
    def architecture(self) -> str:
        """timm's name of the network."""
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        """What tells it from the architecture's other weights."""
        return self.name.partition('.')[2]

    def __repr__(self) -> str:
        measured = ', '.join(f'{name} {value:g}' for name, value in self.metrics.items())
        where = f'{self.repo}@{(self.revision or "")[:7]}' if self.repo else 'shipped'
        return f'<{self.name}: {self.dataset}, {measured}, {self.license}, {where}>'


def shipped_folder() -> Path | None:
    """The folder with the catalogue and the heads of the package: inside it, or in a checkout beside it."""
    package = Path(str(resources.files('timm_collab')))
    folders = (package / 'data' / 'hub', package.parent / 'hub')
    return next((folder for folder in folders if (folder / CATALOGUE).is_file()), None)


def read_catalogue(path: Path) -> dict[str, PublishedHead]:
    """The heads of a catalogue, by name.

    Raises:
        CatalogueError: The file is no catalogue; the message names the entry.
    """
    import yaml

    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # written in C where PyYAML was built with it
    try:
        entries = yaml.load(path.read_text(encoding='utf-8'), Loader=loader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CatalogueError(f"catalogue '{path}' can't be read: {one_line(error)}") from None
    _require(isinstance(entries, dict), f"catalogue '{path}' must map names to heads")
    heads = {}
    for name, entry in entries.items():
        _require(isinstance(entry, dict), f'{name}: an entry is a mapping, got {entry!r}')
        folder = entry.pop('folder', None)
        try:
            heads[name] = PublishedHead(name=name, **entry, folder=path.parent / folder if folder else None)
        except TypeError as error:
            raise CatalogueError(f'{name}: {str(error).replace("PublishedHead.__init__() ", "")}') from None
    return heads


_registered: dict[str, PublishedHead] = {}


def add_heads(heads: Mapping[str, PublishedHead]) -> None:
    """Make heads known to `list_heads` and `find_head`."""
    _registered.update(heads)


def list_heads(pattern: str = '*') -> list[PublishedHead]:
    """The trained heads that can be loaded by name.

    Args:
        pattern: Only those whose name matches, as `timm.list_models` matches: `resnet*`.

    Returns:
        The heads, by name; each also is a pretrained tag, `timm.create_model('collab_' + head.name, pretrained=True)`.
    """
    return [_registered[name] for name in sorted(_registered) if fnmatch.fnmatch(name, pattern)]


def find_head(name: str) -> PublishedHead:
    """The head of that name.

    Raises:
        CatalogueError: There is none; the message lists those there are.
    """
    if name not in _registered:
        known = ', '.join(sorted(_registered)) or 'none yet'
        raise CatalogueError(f"the catalogue has no head '{name}'; it has {known}. A repository is loaded by timm:"
                             " timm.create_model('hf-hub:user/name', pretrained=True)")
    return _registered[name]


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise CatalogueError(message)
