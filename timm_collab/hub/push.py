"""Upload an exported folder to the Hub in one commit.

The folder is checked before the first request and the repository before the first change. All files go into one commit
on the parent that was checked, so that a commit by somebody else in the meantime is never overwritten.
"""
from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.sha import git_hash

from .. import __version__
from ..pretrained.download import sha256_of
from .errors import HubError, is_connection, require, retry_after, scrub, status_of
from .folder import Upload, check_folder

T = TypeVar('T')

REPO = re.compile(r'[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}', re.ASCII)
HUB_FILE = '.gitattributes'  # created by the Hub in every repository
TRIES = 4
WAIT = 1.0  # seconds before the first retry, doubled for each further one; a Retry-After header takes precedence
MAX_WAIT = 60.0


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Where and how to upload a folder.

    Args:
        repo: Repository, `user/name`.
        public: Make a new repository public, or upload to one that is public; new repositories are private otherwise.
        update: Replace the files of the repository.
        create_pr: Open a pull request instead of committing.
        revision: Branch, default the main one.
        tag: Tag for the commit.
        message: Commit message.
        endpoint: URL of the Hub, default that of `HF_ENDPOINT`.
    """

    repo: str
    public: bool = False
    update: bool = False
    create_pr: bool = False
    revision: str | None = None
    tag: str | None = None
    message: str | None = None
    endpoint: str | None = None

    def __post_init__(self) -> None:
        require(REPO.fullmatch(self.repo) and '--' not in self.repo and '..' not in self.repo
                and not self.repo.endswith(('.git', '.', '-')),
                f"--repo '{self.repo}': a repository is user/name, of letters, digits, '-', '_' and '.'")
        require(not (self.create_pr and self.tag),
                '--tag names a commit, and --create-pr only proposes one: leave one out')
        require(not (self.create_pr and self.revision not in (None, 'main')),
                f"--revision '{self.revision}': a pull request is made against the main branch; leave one out")


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Args:
        repo: Repository, `user/name`.
        commit: SHA of the commit with the files.
        url: Page of the commit, the pull request or the repository.
        new: Whether the push created the commit; False if the repository had the same files already.
    """

    repo: str
    commit: str
    url: str
    new: bool


@dataclass(frozen=True)
class _Remote:
    """State of a repository when it was checked.

    Args:
        commit: SHA of the head commit.
        files: Checksum of each file, see `_checksums`.
        tags: SHA of the commit of each tag.
    """

    commit: str
    files: Mapping[str, str]
    tags: Mapping[str, str]


def access_token() -> str:
    """Access token from the environment or the login.

    Raises:
        HubError: There is none.
    """
    token = get_token()
    require(token, 'no access token: log in with hf auth login, or set HF_TOKEN to a token that may write')
    return str(token)


def push_folder(folder: Path, options: PushOptions) -> Pushed:
    """Upload an exported folder.

    Args:
        folder: Folder written by `export_run`, with the weights that were verified then.
        options: Where and how to upload it.

    Raises:
        HubError: The upload failed; the message says why, what the repository contains now and how to continue.
    """
    token = access_token()
    upload = check_folder(folder, token, options.repo)
    api = HfApi(endpoint=options.endpoint, token=token, library_name='timm-collab', library_version=__version__)
    return _Push(api, token, upload, options).run()


class _RequestError(Exception):
    """A request failed for good; the caller adds what follows for the repository."""


class _Push:
    """One push: its requests in order, and the state of the repository in case one fails."""

    def __init__(self, api: HfApi, token: str, upload: Upload, options: PushOptions) -> None:
        self.api, self.token, self.upload, self.options = api, token, upload, options
        self.state = f"'{options.repo}' is unchanged"

    def run(self) -> Pushed:
        """Upload, and add the state of the repository to the error of a failed request."""
        try:
            return self._run()
        except _RequestError as error:
            raise HubError(f'{error}. {self.state}.') from None

    def _run(self) -> Pushed:
        options = self.options
        self._check_account()
        remote = self._find() or self._create()
        present = remote.files.keys() - {HUB_FILE}
        if _is_same(self.upload, remote.files):
            commit = Pushed(options.repo, remote.commit, f'{self.api.endpoint}/{options.repo}', new=False)
        else:
            require(not present or options.update or options.create_pr,
                    f"'{options.repo}' holds other files ({', '.join(sorted(present)[:5])}): write --update to replace"
                    ' them, --create-pr to propose it, or choose another --repo')
            commit = self._commit(remote, present - set(self.upload.files))
        if options.tag is not None and remote.tags.get(options.tag) != commit.commit:
            self._tag(options.tag, commit)
        return commit

    def _check_account(self) -> None:
        account: dict[str, Any] = self._request(lambda: self.api.whoami(), 'checking the access token')
        role = account.get('auth', {}).get('accessToken', {}).get('role')
        require(role != 'read', 'the access token may only read: create one that may write on'
                                ' https://huggingface.co/settings/tokens, and log in with it (hf auth login)')

    def _find(self) -> _Remote | None:
        """State of the repository, None if it doesn't exist."""
        options = self.options
        try:
            info = self._request(
                lambda: self.api.model_info(options.repo, revision=options.revision, files_metadata=True),
                'reading the repository', (RepositoryNotFoundError, RevisionNotFoundError))
            refs = self._request(lambda: self.api.list_repo_refs(options.repo), 'reading its tags')
        except RevisionNotFoundError:
            raise HubError(f"'{options.repo}' has no branch '{options.revision}': create it there first") from None
        except GatedRepoError:
            raise HubError(f"'{options.repo}' is gated, and this token has no access") from None
        except RepositoryNotFoundError:
            return None
        require(not info.private or not options.public,
                f"'{options.repo}' is private: make it public in its settings, or leave --public out")
        require(info.private or options.public or options.create_pr,
                f"'{options.repo}' is public: write --public to publish for everybody, or choose another --repo")
        remote = _Remote(str(info.sha), _checksums(info), {ref.name: ref.target_commit for ref in refs.tags})
        tagged = remote.tags.get(options.tag or '')
        require(tagged is None or (tagged == remote.commit and _is_same(self.upload, remote.files)),
                f"'{options.repo}' has a tag '{options.tag}' already, of {(tagged or '')[:7]}: choose another --tag")
        return remote

    def _create(self) -> _Remote:
        options = self.options
        require(not options.create_pr, f"'{options.repo}' does not exist, or this token can't see it: there is nothing"
                                       ' to make a pull request for')
        require(options.revision in (None, 'main'),
                f"'{options.repo}' does not exist: push to it without --revision first")
        self._request(lambda: self.api.create_repo(options.repo, private=not options.public, exist_ok=True),
                      'creating the repository')
        visibility = 'public' if options.public else 'private'
        self.state = f"'{options.repo}' was created, {visibility} and empty, and stays: the next push fills it"
        info = self._request(lambda: self.api.model_info(options.repo, files_metadata=True), 'reading the repository')
        require(info.private or options.public,
                f"'{options.repo}' should be private and is public: nothing was uploaded")
        return _Remote(str(info.sha), _checksums(info), {})

    def _commit(self, remote: _Remote, stale: set[str]) -> Pushed:
        options = self.options
        # The client itself skips files that are unchanged.
        operations: list[Any] = [CommitOperationAdd(file, self.upload.content(file)) for file in self.upload.files]
        operations += [CommitOperationDelete(file) for file in sorted(stale)]

        def commit() -> CommitInfo:
            return self.api.create_commit(
                options.repo,
                operations,
                commit_message=options.message or f'Add {self.upload.config["architecture"]}',
                revision=options.revision,
                parent_commit=remote.commit,
                create_pr=options.create_pr,
            )

        with _progress_bars_on_a_terminal_only():
            try:
                # A pull request whose answer was lost may exist: a retry would open a second one.
                info = self._request(commit, 'uploading', retry=not options.create_pr)
            except _RequestError:
                if (found := self._find_commit(remote)) is None:
                    raise
                return found
        self.state = f"'{options.repo}' holds the whole push, as {info.oid}"
        if options.create_pr:
            self.state = f"the pull request was made, {info.pr_url}, and '{options.repo}' itself is unchanged"
        revision = info.pr_revision or info.oid
        published = self._request(lambda: self.api.model_info(options.repo, revision=revision, files_metadata=True),
                                  'verifying what was published')
        require(_is_same(self.upload, _checksums(published)),
                f"the files of '{options.repo}' at {info.oid} are not those that were uploaded: look at them, and push"
                ' again with --update')
        return Pushed(options.repo, info.oid, info.pr_url or info.commit_url, new=True)

    def _find_commit(self, remote: _Remote) -> Pushed | None:
        """Commit of a push whose answer was lost, None if it was not made."""
        options = self.options
        if options.create_pr:
            self.state += '; check whether it has the pull request before you open another'
            return None
        try:
            info = self.api.model_info(options.repo, revision=options.revision, files_metadata=True)
        except Exception:  # the earlier failure is the one to report
            self.state = f"'{options.repo}' could not be read: it holds the whole push, as one commit, or nothing of it"
            return None
        if info.sha == remote.commit:
            return None
        if not _is_same(self.upload, _checksums(info)):
            self.state = f"'{options.repo}' got another commit, {info.sha}, and nothing of this push"
            return None
        return Pushed(options.repo, str(info.sha), f'{self.api.endpoint}/{options.repo}/commit/{info.sha}', new=True)

    def _tag(self, tag: str, commit: Pushed) -> None:
        self.state = f"'{self.options.repo}' holds the whole push, as {commit.commit}, without the tag"
        self._request(lambda: self.api.create_tag(self.options.repo, tag=tag, revision=commit.commit, exist_ok=True),
                      f"creating the tag '{tag}'")

    def _request(
            self,
            request: Callable[[], T],
            action: str,
            passed_on: tuple[type[Exception], ...] = (),
            retry: bool = True,
    ) -> T:
        """Make a request, with retries after failures that may pass.

        Args:
            request: The request.
            action: What it does, for messages.
            passed_on: Errors that the caller handles.
            retry: Whether the request may be repeated.

        Raises:
            _RequestError: It failed for good.
        """
        for attempt in range(TRIES):
            try:
                return request()
            except passed_on:
                raise
            except Exception as error:  # of the client, its transport or a file
                status = status_of(error)
                transient = is_connection(error) if status is None else status == 429 or status >= 500
                if not transient or not retry or attempt == TRIES - 1:
                    raise _RequestError(f'{action}: {self._explain(error)}') from None
                wait = min(retry_after(error) or WAIT * 2**attempt, MAX_WAIT)
                reason = f'the Hub answered {status}' if status else 'the connection failed'
                print(f'{action}: {reason}, again in {wait:g} s', file=sys.stderr, flush=True)
                time.sleep(wait)
        raise AssertionError('unreachable')

    def _explain(self, error: Exception) -> str:
        status, repo = status_of(error), self.options.repo
        reasons = {
            401: 'the Hub does not accept the access token: log in again (hf auth login), or set HF_TOKEN anew',
            403: f"the access token may not write to '{repo}': make one that may, or choose another --repo",
            404: f"'{repo}' is not there any more, or not to be seen with this token",
            409: f"'{repo}' is being changed by somebody else, or has this name already: look at it, and push again",
            412: f"'{repo}' got another commit in the meantime: look at it, and push again",
            413: 'the Hub refuses a file of this size',
            429: 'the Hub asks to wait: push again in some minutes',
        }
        if status is None and is_connection(error):
            return 'the connection failed: push again'
        if status is not None and status >= 500:
            return f'the Hub answered {status}: push again later'
        message = scrub(str(error), self.token)
        return message if status is None else reasons.get(status, f'the Hub answered {status}: {message}')


def _checksums(info: Any) -> dict[str, str]:
    """Checksum of each file of a repository: SHA-256 of a large file, git's blob id of any other."""
    return {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}


def _is_same(upload: Upload, files: Mapping[str, str]) -> bool:
    """Whether a repository has the files of a folder and no others."""
    def checksum(name: str, known: str) -> str:
        if len(known) == 64:
            return sha256_of(upload.folder / name)
        content = upload.content(name)
        return git_hash(content if isinstance(content, bytes) else content.read_bytes())

    files = {name: known for name, known in files.items() if name != HUB_FILE}
    return files.keys() == set(upload.files) and all(checksum(name, known) == known for name, known in files.items())


@contextmanager
def _progress_bars_on_a_terminal_only() -> Iterator[None]:
    """Hide the client's progress bars where standard error is not a terminal."""
    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
