"""The fault table of docs/hub.md: the error message, and the state of the repository afterwards."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hub.conftest import TOKEN
from tests.hub.test_push import change
from tests.hub_server import Fault
from timm_collab.hub import HubError, PushOptions, push_folder

ALWAYS = 99
UPDATE = PushOptions(repo='ann/digits', update=True)
TABLE = Path(__file__).parents[2] / 'docs' / 'hub.md'


@dataclass(frozen=True)
class Case:
    """A fault in one kind of request during the push of a second version.

    Args:
        name: Name in the table.
        kind: Kind of request.
        fault: The fault.
        says: Pattern of the error message; None if the push succeeds.
        complete: Whether the repository has the new version afterwards; otherwise it is unchanged.
        options: Options of the push.
    """

    name: str
    kind: str
    fault: Fault
    says: str | None = None
    complete: bool = False
    options: PushOptions = UPDATE

    def __str__(self) -> str:
        return self.name


CASES = [
    Case('token not accepted (401)', 'whoami', Fault(status=401),
         'does not accept the access token: log in again'),
    Case('token may not write (403)', 'commit', Fault(status=403),
         "the access token may not write to 'ann/digits'"),
    Case('repository deleted meanwhile (404)', 'commit', Fault(status=404, headers={'X-Error-Code': 'RepoNotFound'}),
         "'ann/digits' is not there any more"),
    Case('change in progress (409)', 'commit', Fault(status=409), 'is being changed by somebody else'),
    Case('commit by somebody else (412)', 'commit', Fault(status=412), 'got another commit in the meantime'),
    Case('card refused (400)', 'validate', Fault(status=400), 'Invalid metadata in README.md'),
    Case('asked to wait once (429, Retry-After)', 'commit', Fault(status=429, headers={'Retry-After': '1'}),
         complete=True),
    Case('asked to wait for good (429)', 'commit', Fault(status=429, times=ALWAYS), 'push again in some minutes'),
    Case('server error once (503)', 'commit', Fault(status=503), complete=True),
    Case('server error for good (503)', 'commit', Fault(status=503, times=ALWAYS),
         'the Hub answered 503: push again later'),
    Case('connection cut once', 'commit', Fault(drop=True), complete=True),
    Case('connection cut for good', 'commit', Fault(drop=True, times=ALWAYS), 'the connection failed: push again'),
    Case('answer lost after the commit', 'commit', Fault(lose=True), complete=True),
    Case('connection cut while a file is sent', 'upload', Fault(drop=True), complete=True),
    Case('file damaged on the way', 'upload', Fault(corrupt=True), 'the Hub answered 422'),
    Case('slow', 'commit', Fault(delay=0.3), complete=True),
    Case('tag refused (503)', 'tag', Fault(status=503, times=ALWAYS), 'holds the whole push, as .*, without the tag',
         complete=True, options=PushOptions(repo='ann/digits', update=True, tag='v2')),
]


@pytest.mark.parametrize('case', CASES, ids=str)
def test_a_fault_leaves_the_repository_unchanged_or_complete(hub, exported, case, capsys) -> None:
    first = push_folder(exported, PushOptions(repo='ann/digits'))
    change(exported)
    repo, before = hub.repos['ann/digits'], hub.content('ann/digits')
    hub.inject(case.kind, case.fault)
    if case.says is None:
        pushed = push_folder(exported, case.options)
        assert pushed.commit == repo.history()[0]
    else:
        with pytest.raises(HubError) as error:
            push_folder(exported, case.options)
        assert re.search(case.says, str(error.value)), error.value
        assert '\n' not in str(error.value) and TOKEN not in str(error.value)
        assert case.complete or str(error.value).endswith("'ann/digits' is unchanged.")
        assert error.value.__suppress_context__
    if case.complete:
        assert repo.history()[1:] == [first.commit, repo.history()[-1]]
        assert hub.content('ann/digits')['model.safetensors'] == (exported / 'model.safetensors').read_bytes()
    else:
        assert repo.history()[0] == first.commit and hub.content('ann/digits') == before
    # The same command completes the push in any case.
    hub.faults.clear()
    assert push_folder(exported, case.options).commit == repo.history()[0]
    assert hub.content('ann/digits')['model.safetensors'] == (exported / 'model.safetensors').read_bytes()


def test_file_above_the_limit_of_the_hub(hub, exported) -> None:
    hub.max_lfs_size = 1000
    with pytest.raises(HubError, match='file larger than 1000 bytes'):
        push_folder(exported, PushOptions(repo='ann/digits'))
    assert hub.content('ann/digits').keys() == {'.gitattributes'}


def test_new_repository_stays_empty_after_a_failure_and_is_filled_by_the_next_push(hub, exported) -> None:
    hub.inject('commit', Fault(status=503, times=ALWAYS))
    with pytest.raises(HubError, match="'ann/digits' was created, private and empty, and stays: the next push"):
        push_folder(exported, PushOptions(repo='ann/digits'))
    assert hub.repos['ann/digits'].private and hub.content('ann/digits').keys() == {'.gitattributes'}
    hub.faults.clear()
    assert push_folder(exported, PushOptions(repo='ann/digits')).new


def test_hub_unreachable_after_the_commit(hub, exported) -> None:
    push_folder(exported, PushOptions(repo='ann/digits'))
    change(exported)
    hub.inject('commit', Fault(lose=True, times=ALWAYS))
    hub.inject('info', Fault(times=1))
    hub.inject('info', Fault(drop=True, times=ALWAYS))
    with pytest.raises(HubError, match='could not be read: it holds the whole push, as one commit, or nothing of it'):
        push_folder(exported, UPDATE)


def test_hub_fails_during_the_verification(hub, exported) -> None:
    push_folder(exported, PushOptions(repo='ann/digits'))
    change(exported)
    hub.inject('info', Fault(times=1))
    hub.inject('info', Fault(status=503, times=ALWAYS))
    with pytest.raises(HubError, match=r'verifying what was published: .* holds the whole push, as [0-9a-f]{40}'):
        push_folder(exported, UPDATE)
    assert hub.content('ann/digits')['model.safetensors'] == (exported / 'model.safetensors').read_bytes()


def test_pull_request_with_a_lost_answer_is_not_repeated(hub, exported) -> None:
    hub.create('ann/digits', private=False)
    hub.inject('commit', Fault(lose=True))
    with pytest.raises(HubError, match=r'the connection failed.*check whether it has the pull request before'):
        push_folder(exported, PushOptions(repo='ann/digits', create_pr=True))
    assert hub.repos['ann/digits'].pull_requests == 1


def test_commit_by_somebody_else_during_the_push(hub, exported, monkeypatch) -> None:
    push_folder(exported, PushOptions(repo='ann/digits'))
    change(exported)
    repo = hub.repos['ann/digits']
    theirs = []
    take = hub.faults.take

    def interfere(kind: str) -> Fault:
        if kind == 'preupload' and not theirs:
            theirs.append(repo.commit({'theirs.txt': b'theirs'}, 'theirs', repo.resolve('main')))
        return take(kind)

    monkeypatch.setattr(hub.faults, 'take', interfere)
    with pytest.raises(HubError, match=r'got another commit in the meantime.*, and nothing of this push'):
        push_folder(exported, UPDATE)
    assert repo.history()[0] == theirs[0]


def test_table_in_the_documentation_matches_the_cases() -> None:
    rows = re.findall(r'^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$', TABLE.read_text(), re.MULTILINE)
    table = {name: state for name, _, state in rows}
    for case in CASES:
        assert case.name in table, case.name
        assert table[case.name].startswith('complete' if case.complete else 'unchanged'), case.name
