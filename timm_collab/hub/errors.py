"""The error of publishing, and what an error of the Hub's client says, without the access token."""
from __future__ import annotations

import functools
from collections.abc import Iterator

from huggingface_hub.errors import HfHubHTTPError

from ..train import errors
from ..train.errors import TrainError, one_line

_TRANSPORT = {'httpcore', 'httpx', 'httpx2', 'requests', 'urllib3'}  # packages that releases of the client have used


class HubError(TrainError):
    """A head can't be exported or published; the message says what to do."""


require = functools.partial(errors.require, error=HubError)


def scrub(text: str, token: str | None) -> str:
    """Join a text into one line and replace the access token in it."""
    text = one_line(text)
    return text.replace(token, '***') if token else text


def status_of(error: BaseException) -> int | None:
    """HTTP status of the Hub's answer that caused an error, None without an answer."""
    answer = _answer(error)
    return None if answer is None else answer.response.status_code


def retry_after(error: BaseException) -> float | None:
    """Seconds to wait according to the `Retry-After` header of the Hub's answer, None without one."""
    answer = _answer(error)
    value = '' if answer is None else answer.response.headers.get('Retry-After', '')
    return float(value) if value.isdigit() else None


def is_connection(error: BaseException) -> bool:
    """Whether the connection failed, as opposed to the request being refused."""
    return any(
        isinstance(each, (ConnectionError, TimeoutError)) or type(each).__module__.split('.')[0] in _TRANSPORT
        for each in _chain(error)
        if not isinstance(each, HfHubHTTPError)
    )


def _answer(error: BaseException) -> HfHubHTTPError | None:
    answers = (each for each in _chain(error) if isinstance(each, HfHubHTTPError))
    return next((each for each in answers if getattr(each, 'response', None) is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
