"""The one error of publishing, and how a failure of the Hub's client becomes one, without the token in it."""
from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub.errors import HfHubHTTPError

from ..train.errors import TrainError

_TRANSPORT = {'httpcore', 'httpx', 'httpx2', 'requests', 'urllib3'}  # of the client's releases so far


class HubError(TrainError):
    """What was asked for can't be published, or wasn't; the message says what to do."""


def require(condition: object, message: str) -> None:
    """Raise `HubError` with a message unless a condition holds."""
    if not condition:
        raise HubError(message)


def scrub(text: str, token: str | None) -> str:
    """A text in one line, without the token."""
    text = ' '.join(text.split())
    return text.replace(token, '***') if token else text


def status_of(error: BaseException) -> int | None:
    """The status that the Hub answered with, where an error comes from one."""
    for each in _chain(error):
        if isinstance(each, HfHubHTTPError) and getattr(each, 'response', None) is not None:
            return each.response.status_code
    return None


def retry_after(error: BaseException) -> float | None:
    """Seconds that the Hub asked to wait for."""
    for each in _chain(error):
        if isinstance(each, HfHubHTTPError) and getattr(each, 'response', None) is not None:
            value = each.response.headers.get('Retry-After', '')
            return float(value) if value.isdigit() else None
    return None


def is_connection(error: BaseException) -> bool:
    """Whether the connection failed, rather than what was asked over it."""
    return any(
        isinstance(each, (ConnectionError, TimeoutError)) or type(each).__module__.split('.')[0] in _TRANSPORT
        for each in _chain(error)
        if not isinstance(each, HfHubHTTPError)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
