"""Fetch the files of a published head from the package, the Hub or its cache, and verify their checksum."""
from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import sha_fileobj

from ..errors import one_line
from .catalogue import PublishedHead

CONFIG, WEIGHTS, TREE = 'config.json', 'model.safetensors', 'tree.safetensors'


class DownloadError(RuntimeError):
    """A published file can't be loaded or verified; the message gives the reason."""


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        return sha_fileobj(file).hex()


def fetch_head(head: PublishedHead) -> Path:
    """Fetch the config and the weights of a head, and verify the weights.

    Returns:
        The folder with both files.

    Raises:
        DownloadError: A file can't be loaded, or the weights have another checksum.
    """
    if head.folder is not None:
        for name in (CONFIG, WEIGHTS):
            if not (head.folder / name).is_file():
                raise DownloadError(f'{head.name}: {head.folder} has no {name}')
        _verify(head, head.folder / WEIGHTS)
        return head.folder
    assert head.repo is not None  # an entry has a folder or a repo
    folder = fetch(head.repo, CONFIG, head.revision).parent
    weights = fetch(head.repo, WEIGHTS, head.revision)
    if sha256_of(weights) != head.sha256:
        # The client only checks sizes, so its cache may have a corrupt file: download it again.
        _verify(head, fetch(head.repo, WEIGHTS, head.revision, again=True))
    return folder


def fetch(repo: str, filename: str, revision: str | None = None, again: bool = False) -> Path:
    """Fetch a file of a model repository, from the cache if it is there.

    Args:
        repo: `user/name`.
        filename: Path of the file in the repository.
        revision: Branch, tag or commit, default the main branch.
        again: Download the file even if it is in the cache.

    Raises:
        DownloadError: The file can't be loaded.
    """
    for last in (False, True):
        try:
            return Path(hf_hub_download(repo, filename, revision=revision, force_download=again))
        except Exception as error:
            # A second try resumes a partial download, which not all releases of the client do by themselves.
            if last or isinstance(error, (EntryNotFoundError, HfHubHTTPError, ValueError)):
                where = f"'{repo}'" + (f' at {revision}' if revision else '')
                raise DownloadError(f'{filename}: {where} {_reason(error, repo, filename)}') from None
    raise AssertionError('unreachable')


def _reason(error: Exception, repo: str, filename: str) -> str:
    """Describe an error of the client: its own message has many details of the request, but not what to do."""
    reasons: dict[type[Exception], str] = {
        GatedRepoError: f'is gated: accept its conditions on https://huggingface.co/{repo} and log in (hf auth login)',
        RepositoryNotFoundError: 'is not there: it was renamed or deleted, or is private, and then needs a login with'
                                 ' read access (hf auth login, or HF_TOKEN)',
        RevisionNotFoundError: 'is there, but this revision is not: it was deleted or rewritten',
        LocalEntryNotFoundError: 'could not be reached, and the cache does not have it: connect once to load it',
        EntryNotFoundError: f'has no {filename}',
    }
    for cls, reason in reasons.items():  # GatedRepoError is a subclass of RepositoryNotFoundError, so it comes first
        if isinstance(error, cls):
            return reason
    if isinstance(error, HfHubHTTPError):
        return f'answered {error.response.status_code}: try again later'
    return f'could not be loaded: {one_line(error)[:200]}; try again, the partial download is kept'


def _verify(head: PublishedHead, weights: Path) -> None:
    """Raise `DownloadError` if the weights have another checksum than in the catalogue."""
    if (found := sha256_of(weights)) != head.sha256:
        raise DownloadError(
            f'{head.name}: the weights have the SHA-256 {found} and should have {head.sha256}: they are corrupt, or not'
            ' those of the catalogue'
        )
