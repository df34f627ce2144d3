"""The access token is never printed, logged, or written to a file, nor is it in an exception."""
from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest

from tests.hub.conftest import TOKEN
from tests.hub_server import Fault
from timm_collab.hub import HubError, PushOptions, push_folder
from timm_collab.hub.errors import scrub


@pytest.fixture
def everything_logged(caplog):
    """Set every logger to DEBUG."""
    caplog.set_level(logging.DEBUG)
    for name in list(logging.root.manager.loggerDict):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.mark.parametrize(('kind', 'fault'), [
    ('none', Fault()),
    ('whoami', Fault(status=401)),
    ('create', Fault(status=403)),
    ('validate', Fault(status=400)),
    ('upload', Fault(corrupt=True)),
    ('commit', Fault(status=403)),
    ('commit', Fault(status=500, times=9)),
    ('commit', Fault(drop=True, times=9)),
])
def test_token_is_never_printed_logged_or_written(
        hub, exported, everything_logged, capfd, tmp_path, kind, fault) -> None:
    hub.inject(kind, fault)
    try:
        push_folder(exported, PushOptions(repo='ann/digits'))
        message = ''
    except HubError as error:
        message = ''.join(traceback.format_exception(error)) + str(vars(error))
    printed = capfd.readouterr()
    logged = [record.getMessage() for record in everything_logged.records]
    assert TOKEN not in message + printed.out + printed.err + '\n'.join(logged)
    files = [path for path in Path(tmp_path).rglob('*') if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_token_in_an_answer_of_the_hub_is_masked(hub, exported) -> None:
    hub.inject('commit', Fault(status=418, headers={'X-Error-Message': f'bad token {TOKEN}'}))
    with pytest.raises(HubError, match=r'the Hub answered 418: .*bad token \*\*\*') as error:
        push_folder(exported, PushOptions(repo='ann/digits'))
    assert TOKEN not in ''.join(traceback.format_exception(error.value))


def test_scrub() -> None:
    assert scrub(f'a\n {TOKEN} b', TOKEN) == 'a *** b' and scrub('a\nb', None) == 'a b'
