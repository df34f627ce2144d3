"""An exported folder becomes one commit of a repository on the Hub, or nothing at all.

Everything that can be seen to be wrong is found before the first request; the repository is looked at before the first
change; all files go in one commit on the parent that was looked at, so that nobody else's commit is built over.
"""
from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .. import __version__
from .errors import HubError, is_connection, require, retry_after, scrub, status_of
from .folder import Upload, check_folder
from .remote import Remote, remote_files, same

T = TypeVar('T')

REPO = re.compile(r'[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}')
KEPT = '.gitattributes'  # the Hub's own
TRIES = 4
WAIT = 1.0  # seconds before the first repetition, doubled each time, where the Hub doesn't name them
MAX_WAIT = 60.0


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Where a folder goes.

    Args:
        repo: `user/name`.
        public: Let everybody see the repository; otherwise a new one is private, and a public one is left alone.
        update: Replace what the repository holds.
        create_pr: Propose the change as a pull request.
        revision: Branch, default the main one.
        tag: Name to give the commit.
        message: Of the commit.
        endpoint: Of the Hub, default that of `HF_ENDPOINT`.
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
    """What has become of a push.

    Args:
        repo: The repository.
        commit: The commit that has the files.
        url: Where to look at it.
        new: Whether the push made it; otherwise the repository held the same already.
    """

    repo: str
    commit: str
    url: str
    new: bool


def access_token() -> str:
    """The token of the environment or of the login.

    Raises:
        HubError: There is none.
    """
    token = get_token()
    require(token, 'no access token: log in with hf auth login, or set HF_TOKEN to a token that may write')
    return str(token)


def push_folder(folder: Path, options: PushOptions) -> Pushed:
    """Publish an exported folder.

    Args:
        folder: As `export_run` makes it. Its weights must be those that were checked then.
        options: Where it goes.

    Raises:
        HubError: It wasn't published; the message says why, what the repository holds now and how to go on.
    """
    token = access_token()
    upload = check_folder(folder, token, options.repo)
    api = HfApi(endpoint=options.endpoint, token=token, library_name='timm-collab', library_version=__version__)
    return _Push(api, token, upload, options).run()


class _RequestError(Exception):
    """A request has failed for good; the message says why, what follows from it is said where that is known."""


class _Push:
    """One push: its requests, in their order, and what is known of the repository when one fails."""

    def __init__(self, api: HfApi, token: str, upload: Upload, options: PushOptions) -> None:
        self.api, self.token, self.upload, self.options = api, token, upload, options
        self.state = f"'{options.repo}' is unchanged"

    def run(self) -> Pushed:
        """Publish, or say what happened, what the repository holds now and how to go on."""
        try:
            return self._run()
        except _RequestError as error:
            raise HubError(f'{error}. {self.state}.') from None

    def _run(self) -> Pushed:
        options = self.options
        self._check_account()
        remote = self._look() or self._create()
        held = {name for name in remote.files if name != KEPT}
        if same(self.upload, remote.files):
            commit = Pushed(options.repo, remote.commit, f'{self.api.endpoint}/{options.repo}', new=False)
        else:
            require(not held or options.update or options.create_pr,
                    f"'{options.repo}' holds other files ({', '.join(sorted(held)[:5])}): write --update to replace"
                    ' them, --create-pr to propose it, or choose another --repo')
            commit = self._commit(remote, held - set(self.upload.files))
        if options.tag is not None and remote.tags.get(options.tag) != commit.commit:
            self._tag(options.tag, commit)
        return commit

    def _check_account(self) -> None:
        account: dict[str, Any] = self._ask(lambda: self.api.whoami(), 'asking whose token it is')
        role = account.get('auth', {}).get('accessToken', {}).get('role')
        require(role != 'read', 'the access token may only read: make one that may write on'
                                ' https://huggingface.co/settings/tokens, and log in with it (hf auth login)')

    def _look(self) -> Remote | None:
        """The repository as it is now; None when there is none."""
        options = self.options
        try:
            info = self._ask(lambda: self.api.model_info(options.repo, revision=options.revision, files_metadata=True),
                             'looking at the repository', (RepositoryNotFoundError, RevisionNotFoundError))
            refs = self._ask(lambda: self.api.list_repo_refs(options.repo), 'reading its tags')
        except RevisionNotFoundError:
            raise HubError(f"'{options.repo}' has no branch '{options.revision}': make it on its page first") from None
        except GatedRepoError:
            raise HubError(f"'{options.repo}' is gated, and this token is not let in") from None
        except RepositoryNotFoundError:
            return None
        require(not info.private or not options.public,
                f"'{options.repo}' is private: make it public in its settings, or leave --public out")
        require(info.private or options.public or options.create_pr,
                f"'{options.repo}' is public: write --public to publish for everybody, or choose another --repo")
        remote = Remote(str(info.sha), remote_files(info), {ref.name: ref.target_commit for ref in refs.tags})
        tagged = remote.tags.get(options.tag or '')
        require(tagged in (None, remote.commit) and (tagged is None or same(self.upload, remote.files)),
                f"'{options.repo}' has a tag '{options.tag}' already, of {(tagged or '')[:7]}: choose another --tag")
        return remote

    def _create(self) -> Remote:
        options = self.options
        require(not options.create_pr, f"'{options.repo}' is not there, or not to be seen with this token: there is"
                                       ' nothing to make a pull request for')
        require(options.revision in (None, 'main'),
                f"'{options.repo}' is not there: push to it without --revision first")
        self._ask(lambda: self.api.create_repo(options.repo, private=not options.public, exist_ok=True),
                  'making the repository')
        kind = 'public' if options.public else 'private'
        self.state = f"'{options.repo}' is there now, {kind} and empty; it was left, for the next push to fill"
        info = self._ask(lambda: self.api.model_info(options.repo, files_metadata=True), 'looking at the repository')
        require(info.private or options.public, f"'{options.repo}' was to be private and is public: nothing was sent")
        return Remote(str(info.sha), remote_files(info), {})

    def _commit(self, remote: Remote, stale: set[str]) -> Pushed:
        options = self.options
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

        with _progress():
            try:
                # A pull request whose answer was lost may be there: asking again would make a second one.
                info = self._ask(commit, 'uploading', again=not options.create_pr)
            except _RequestError:
                if (landed := self._landed(remote)) is None:
                    raise
                return landed
        self.state = f"'{options.repo}' holds the whole push, as {info.oid}"
        if options.create_pr:
            self.state = f"the pull request was made, {info.pr_url}, and '{options.repo}' itself is unchanged"
        revision = info.pr_revision or info.oid
        made = self._ask(lambda: self.api.model_info(options.repo, revision=revision, files_metadata=True),
                         'reading what was published')
        require(same(self.upload, remote_files(made)),
                f"what '{options.repo}' holds at {info.oid} is not what was sent: delete that commit, and push again")
        return Pushed(options.repo, info.oid, info.pr_url or info.commit_url, new=True)

    def _landed(self, remote: Remote) -> Pushed | None:
        """The commit of a push whose answer was lost on the way, None when it was not made."""
        options = self.options
        if options.create_pr:
            self.state += '; look whether it has the pull request before you make another'
            return None
        try:
            info = self.api.model_info(options.repo, revision=options.revision, files_metadata=True)
        except Exception:  # the failure that brought us here is the one to report
            self.state = (f"'{options.repo}' could not be asked: it holds the whole push or nothing of it, which is"
                          ' one commit')
            return None
        if info.sha == remote.commit:
            return None
        if not same(self.upload, remote_files(info)):
            self.state = f"'{options.repo}' has that commit, {info.sha}, and nothing of this push"
            return None
        return Pushed(options.repo, str(info.sha), f'{self.api.endpoint}/{options.repo}/commit/{info.sha}', new=True)

    def _tag(self, tag: str, commit: Pushed) -> None:
        self.state = f"'{self.options.repo}' holds the whole push, as {commit.commit}, without the tag"
        self._ask(lambda: self.api.create_tag(self.options.repo, tag=tag, revision=commit.commit, exist_ok=True),
                  f"making the tag '{tag}'")

    def _ask(
            self,
            request: Callable[[], T],
            doing: str,
            passed_on: tuple[type[Exception], ...] = (),
            again: bool = True,
    ) -> T:
        """Make a request, again where that may help, and say what happened where it doesn't."""
        for attempt in range(TRIES):
            try:
                return request()
            except passed_on:
                raise
            except Exception as error:  # the client's, its transport's, or of a file: told apart in _explain
                status = status_of(error)
                passing = is_connection(error) if status is None else status == 429 or status >= 500
                if not passing or not again or attempt == TRIES - 1:
                    raise _RequestError(f'{doing}: {self._explain(error)}') from None
                wait = min(retry_after(error) or WAIT * 2**attempt, MAX_WAIT)
                reason = f'the Hub answered {status}' if status else 'the connection failed'
                print(f'{doing}: {reason}, again in {wait:g} s', file=sys.stderr, flush=True)
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
        said = scrub(str(error), self.token)
        return said if status is None else reasons.get(status, f'the Hub answered {status}: {said}')


@contextmanager
def _progress() -> Iterator[None]:
    """The client's progress bars, on a screen alone."""
    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
