"""The catalogue of trained heads: the description, location and checksum of each.

`heads.yaml` has one entry per head, named by its architecture and tag. The package has one. `docs/hub.md` describes how
to create an entry.
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
    """A catalogue or an entry of it is invalid, or has no such head."""


@dataclass(frozen=True)
class PublishedHead:
    """A trained head that can be loaded by name.

    Args:
        name: Architecture and tag, e.g. `resnet50.collab4_in1k`.
        sha256: SHA-256 of `model.safetensors`.
        license: License of the weights, by its name on the Hub.
        dataset: Training data.
        tree: The head tree that it was trained in, as a spec for `HeadTree`.
        metrics: Results by name, in percent unless the name says otherwise.
        pretrained_cfg: timm's pretrained cfg of the trained network: input size, normalization, number of classes.
        model_args: Further arguments of the architecture.
        repo: Repository on the Hub.
        revision: Full commit hash in the repository; a branch would move.
        folder: Local folder, for a head that comes with the package or lies beside its catalogue.
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
                 f'{self.name}: revision must be a full commit hash, 40 hexadecimal digits, got {self.revision!r}')

    @property
    def architecture(self) -> str:
        """timm's name of the network."""
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        """Name of the weights among those of the architecture."""
        return self.name.partition('.')[2]

    def __repr__(self) -> str:
        metrics = ', '.join(f'{name} {value:g}' for name, value in self.metrics.items())
        where = f'{self.repo}@{(self.revision or "")[:7]}' if self.repo else 'shipped'
        return f'<{self.name}: {self.dataset}, {metrics}, {self.license}, {where}>'


def shipped_folder() -> Path | None:
    """Return the folder with the package's catalogue and heads: inside the package, or beside it in a checkout."""
    package = Path(str(resources.files('timm_collab')))
    folders = (package / 'data' / 'hub', package.parent / 'hub')
    return next((folder for folder in folders if (folder / CATALOGUE).is_file()), None)


def read_catalogue(path: Path) -> dict[str, PublishedHead]:
    """Read the heads of a catalogue, by name.

    Raises:
        CatalogueError: The file is not a valid catalogue; the message names the entry.
    """
    import yaml

    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)  # the C loader, if PyYAML was built with it
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
    """Add heads to those of `list_heads` and `find_head`."""
    _registered.update(heads)


def list_heads(pattern: str = '*') -> list[PublishedHead]:
    """List the trained heads that can be loaded by name.

    Args:
        pattern: Only heads whose name matches, with wildcards as in `timm.list_models`: `resnet*`.

    Returns:
        The heads, sorted by name. Each is also a pretrained tag:
        `timm.create_model('collab_' + head.name, pretrained=True)`.
    """
    return [_registered[name] for name in sorted(_registered) if fnmatch.fnmatch(name, pattern)]


def find_head(name: str) -> PublishedHead:
    """Return the head with a name.

    Raises:
        CatalogueError: There is none; the message lists the known heads.
    """
    if name not in _registered:
        known = ', '.join(sorted(_registered)) or 'none yet'
        raise CatalogueError(f"the catalogue has no head '{name}'; it has {known}. To load a repository, write"
                             " timm.create_model('hf-hub:user/name', pretrained=True)")
    return _registered[name]


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise CatalogueError(message)
