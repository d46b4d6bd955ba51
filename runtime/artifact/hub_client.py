"""The hub's client in its two generations: `huggingface_hub` 0.x speaks through `requests`, 1.x through `httpx`.

TensorRT-LLM's release holds the client at 0.x, everything else has 1.x. What differs between the two is here and
nowhere else: which errors there are, how a file is read in blocks, how long an answer is waited for. Nothing else
imports a transport.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Session

CONNECT_S, WRITE_S, BLOCK_S = 10.0, 60.0, 30.0
# A commit of many files may take minutes to answer.
ANSWER_S = 300.0
BLOCK_BYTES = 1 << 16
RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """A file of the hub as it arrives, or the answer that it has no such position (status 416)."""

    status: int
    headers: Mapping[str, str]
    blocks: Iterator[bytes]


def uses_requests() -> bool:
    """Whether the installed client is of the generation that uses `requests`."""
    from huggingface_hub.errors import HfHubHTTPError

    return any(parent.__module__.partition(".")[0] == "requests" for parent in HfHubHTTPError.__mro__)


def http_errors() -> tuple[type[Exception], ...]:
    """What requests to the hub raise: an answer that refuses, or none at all."""
    if uses_requests():
        from requests import RequestException

        return (RequestException,)
    from httpx import HTTPError

    return (HTTPError,)


def transport_errors() -> tuple[type[Exception], ...]:
    """What requests to the hub raise when no whole answer came, so that asking again may help."""
    if uses_requests():
        from requests import ConnectionError as NoConnection
        from requests import Timeout
        from requests.exceptions import ChunkedEncodingError

        return (NoConnection, Timeout, ChunkedEncodingError)
    from httpx import TransportError

    return (TransportError,)


def failures(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """All that a call to the client raises for the hub, the network, its offline mode, or its cache on the disk.

    Args:
        more: kinds of the caller's own that it treats alike.
    """
    return (*http_errors(), OSError, *more)


def token_exchange_errors() -> tuple[type[Exception], ...]:
    """What the client raises when a CI job's identity buys no token; empty where the client cannot exchange one."""
    from huggingface_hub import errors

    found = getattr(errors, "OIDCError", None)
    return (found,) if found else ()


def headers(token: str | bool | None) -> dict[str, str]:
    """Headers of a request for a file. Compressed answers could not be resumed."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    made: dict[str, str] = build_hf_headers(token=token)
    return made | {"Accept-Encoding": "identity"}


def get(url: str, headers: Mapping[str, str], timeout_s: float = BLOCK_S) -> bytes:
    """Read a small file whole.

    Raises:
        HfHubHTTPError: the hub refused.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    answer = get_session().get(url, headers=dict(headers), timeout=timeout_s)
    hf_raise_for_status(answer)
    content: bytes = answer.content
    return content


def stream(url: str, headers: Mapping[str, str], start: int = 0) -> AbstractContextManager[StreamedResponse]:
    """Read a file block by block, from a position on.

    The hub may answer with the whole file instead: the response's status is 206 for a part. The token in the headers is
    dropped by either client where a redirect leaves the hub.

    Raises:
        HfHubHTTPError: the hub refused.
    """
    asked = {**headers, "Range": f"bytes={start}-"} if start else dict(headers)
    return _stream_requests(url, asked) if uses_requests() else _stream_httpx(url, asked)


@contextmanager
def _stream_httpx(url: str, headers: Mapping[str, str]) -> Iterator[StreamedResponse]:
    from httpx import Timeout
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    timeout = Timeout(BLOCK_S, connect=CONNECT_S)
    with get_session().stream("GET", url, headers=dict(headers), timeout=timeout, follow_redirects=True) as answer:
        if answer.status_code != RANGE_NOT_SATISFIABLE and answer.is_error:
            answer.read()  # the error's message lies in the body
            hf_raise_for_status(answer)
        yield StreamedResponse(answer.status_code, answer.headers, answer.iter_bytes())


@contextmanager
def _stream_requests(url: str, headers: Mapping[str, str]) -> Iterator[StreamedResponse]:
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    session: Session = get_session()  # type: ignore[assignment]
    with session.get(url, headers=dict(headers), timeout=(CONNECT_S, BLOCK_S), stream=True) as answer:
        if answer.status_code != RANGE_NOT_SATISFIABLE:
            hf_raise_for_status(answer)  # type: ignore[arg-type]
        yield StreamedResponse(answer.status_code, answer.headers, answer.iter_content(BLOCK_BYTES))


def set_timeouts() -> None:
    """Set timeouts for every request of the client, whose own sessions wait for ever.

    A commit of many files may take minutes to answer; a connection or one write of a block may not.
    """
    if uses_requests():
        from huggingface_hub import configure_http_backend, constants

        if not constants.HF_HUB_OFFLINE:  # its sessions refuse every request
            configure_http_backend(_bounded_session)
        return
    from httpx import Timeout
    from huggingface_hub import get_session

    get_session().timeout = Timeout(ANSWER_S, connect=CONNECT_S, write=WRITE_S)


def _bounded_session() -> Session:
    """A session that gives every request a timeout; `requests` knows none for a session."""
    from requests import Session

    session = Session()
    plain: Callable[..., object] = session.request

    def request(method: str, url: str, **options: object) -> object:
        if options.get("timeout") is None:
            options["timeout"] = (CONNECT_S, ANSWER_S)
        return plain(method, url, **options)

    session.request = request  # type: ignore[method-assign, assignment]
    return session
