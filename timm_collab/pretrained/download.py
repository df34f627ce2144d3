"""The files of a published head: from the package, the Hub or its cache, each held against its checksum."""
from __future__ import annotations

import hashlib
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

from ..errors import one_line
from .catalogue import PublishedHead

CONFIG, WEIGHTS, TREE = 'config.json', 'model.safetensors', 'tree.safetensors'


class DownloadError(RuntimeError):
    """A published file can't be had, or isn't what it should be; the message says why."""


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch_head(head: PublishedHead) -> Path:
    """A folder with the config and the weights of a head, the weights verified.

    Raises:
        DownloadError: They can't be had, or the weights are other ones.
    """
    if head.folder is not None:
        for name in (CONFIG, WEIGHTS):
            if not (head.folder / name).is_file():
                raise DownloadError(f'{head.name}: {head.folder} has no {name}')
        if (found := sha256_of(head.folder / WEIGHTS)) != head.sha256:
            raise DownloadError(_other_weights(head, found))
        return head.folder
    assert head.repo is not None  # an entry has one or the other
    folder = fetch(head.repo, CONFIG, head.revision).parent
    weights = fetch(head.repo, WEIGHTS, head.revision)
    if sha256_of(weights) != head.sha256:
        # The client checks sizes only, and keeps in its cache what came damaged.
        weights = fetch(head.repo, WEIGHTS, head.revision, again=True)
        if (found := sha256_of(weights)) != head.sha256:
            raise DownloadError(_other_weights(head, found))
    return folder


def fetch(repo: str, filename: str, revision: str | None = None, again: bool = False) -> Path:
    """A file of a model repository, from the cache where it is there.

    Args:
        repo: `user/name`.
        filename: Its path in the repository.
        revision: Branch, tag or commit, default the main branch.
        again: Load it anew, whatever the cache has.

    Raises:
        DownloadError: It can't be had.
    """
    for last in (False, True):
        try:
            return Path(hf_hub_download(repo, filename, revision=revision, force_download=again))
        except Exception as error:
            # The client goes on where a file was cut; not all of its releases do so by themselves.
            if last or isinstance(error, (EntryNotFoundError, HfHubHTTPError, ValueError)):
                where = f"'{repo}'" + (f' at {revision}' if revision else '')
                raise DownloadError(f'{filename}: {where} {_reason(error, repo, filename)}') from None
    raise AssertionError('unreachable')


def _reason(error: Exception, repo: str, filename: str) -> str:
    """What to say of an error of the client, which tells much of the request and little of what to do."""
    reasons: dict[type[Exception], str] = {
        GatedRepoError: f'is gated: accept its conditions on https://huggingface.co/{repo} and log in (hf auth login)',
        RepositoryNotFoundError: 'is not there: it was renamed or deleted, or is private, and then needs a login that'
                                 ' may read it (hf auth login, or HF_TOKEN)',
        RevisionNotFoundError: 'is there, but this revision is not: it was deleted or rewritten',
        LocalEntryNotFoundError: 'could not be reached, and the cache does not have it: connect once to load it',
        EntryNotFoundError: f'has no {filename}',
    }
    for kind, reason in reasons.items():  # a gated repository is one that isn't found, too: the special case first
        if isinstance(error, kind):
            return reason
    if isinstance(error, HfHubHTTPError):
        return f'answered {error.response.status_code}: try again later'
    return f'could not be loaded: {one_line(error)[:200]}; try again, what was loaded so far is kept'


def _other_weights(head: PublishedHead, found: str) -> str:
    return (f'{head.name}: the weights have the SHA-256 {found} and should have {head.sha256}: they are damaged, or not'
            ' the ones that the catalogue means')
