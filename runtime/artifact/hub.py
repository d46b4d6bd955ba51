"""Requests to a model hub: the token, errors in one line, and retries.

`huggingface_hub` retries single requests. What it does not retry (the commit, the listing, a download that a server
error ended) is tried again here, in the same way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import SecretStr

from runtime.artifact import hub_client
from runtime.artifact.files.opening import read_named

T = TypeVar("T")

Report = Callable[[str], None]
"""Is told in one line what happens."""

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGINGFACE_HUB_TOKEN")

# Statuses that pass by themselves: time-outs, conflicts with another commit, rate limits, and a hub in trouble.
TRANSIENT_STATUSES = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
TRIES = 6

# `requests` names hosts and whole addresses in its messages, and those of the storage carry a signature.
ADDRESS = re.compile(r"\w+\(host=[^)]*\):? ?|https?://\S+|\S*/\S*\?\S+")


class TokenError(ValueError):
    """The environment names a token that cannot be used. The message is one line."""

    def __init__(self, variables: str, expected: str, found: str) -> None:
        super().__init__(f"{variables}: expected {expected}, found {found}")
        self.variables, self.expected, self.found = variables, expected, found


def token_of(environment: Mapping[str, str]) -> SecretStr | None:
    """The token that the environment gives, in a variable or in a file that `…_FILE` names; none without one.

    Raises:
        TokenError: two of the variables are set to different tokens, or a file cannot be read.
    """
    found: dict[str, str] = {}
    for name in TOKEN_VARIABLES:
        if value := environment.get(name, "").strip():
            found[name] = value
        if file := environment.get(f"{name}_FILE", "").strip():
            found[f"{name}_FILE"] = _read(f"{name}_FILE", Path(file))
    if len(set(found.values())) > 1:
        raise TokenError(" and ".join(found), "one token", f"{len(set(found.values()))}; unset one")
    return next((SecretStr(text) for text in found.values()), None)


def revealed(token: SecretStr | None) -> str | None:
    """The token's text, for the client that sends it."""
    return token.get_secret_value() if token is not None else None


def _read(variable: str, path: Path) -> str:
    try:
        text = read_named(path).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise TokenError(variable, "a readable file", f"{path} ({reason})") from None
    if not text or len(text.split()) != 1:
        raise TokenError(variable, "a file with one token", f"{'nothing' if not text else 'more'} in {path}")
    return text


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it: uploads wrap what the network said."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        yield inner
        seen.append(inner)
        # `requests` and `urllib3` hand on what they wrap as an argument or as `reason`, not as the cause.
        found = (inner.__cause__, getattr(inner, "reason", None), *inner.args[:1])
        inner = next((one for one in found if isinstance(one, BaseException)), None)


def status_of(error: BaseException) -> int | None:
    """The hub's HTTP status, where an answer came at all."""
    from huggingface_hub.errors import HfHubHTTPError

    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return int(cause.response.status_code)
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False  # a ConnectionError by its class, a decision by its nature
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUSES
    kinds = (*hub_client.transport_errors(), TimeoutError, ConnectionError)
    return any(isinstance(cause, kinds) for cause in causes(error))


def reason(error: BaseException) -> str:
    """What went wrong, in one line without addresses or tokens."""
    from huggingface_hub.errors import HfHubHTTPError

    status = status_of(error)
    if status is None:
        last = list(causes(error))[-1]
        text = " ".join(ADDRESS.sub("", str(last)).split()) or type(last).__name__
        return f"{type(last).__name__}: {text}" if isinstance(last, OSError) else text
    known = {
        401: "it does not accept the token",
        403: "the token may not do this",
        404: "it has no such repository, or none that this token may see",
        409: "another operation on this repository was in its way",
        412: "another commit came in between",
        429: "too many requests",
    }
    message = next(
        (c.server_message or "" for c in causes(error) if isinstance(c, HfHubHTTPError)),
        "",
    )
    text = known.get(status) or " ".join(message.split())[:200] or "it failed"
    return f"status {status}, {text}"


def backoff_seconds(error: BaseException, number: int) -> float:
    """Seconds to wait after the given number of failures: what the hub asked for, else twice as long each time."""
    from huggingface_hub.errors import HfHubHTTPError

    for cause in causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            asked = cause.response.headers.get("Retry-After", "")
            if asked.isdigit():
                return float(asked)
    return float(min(FIRST_WAIT_S * 2 ** (number - 1), LONGEST_WAIT_S))


def with_retries(work: Callable[[], T], report: Report, *, tries: int | None = None) -> T:
    """Do the work, and do it again after an error that may pass.

    Args:
        report: told in one line why and when it is tried again.
        tries: at most; none means `TRIES`.

    Raises:
        Exception: the work's own, when it will not pass or has been tried often enough.
    """
    tries = TRIES if tries is None else tries
    for number in range(1, tries):
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            seconds = backoff_seconds(error, number)
            report(f"the hub: {reason(error)}; again in {seconds:g} s ({number} of {tries - 1})")
            time.sleep(seconds)
    return work()
