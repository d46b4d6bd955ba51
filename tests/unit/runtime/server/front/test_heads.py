"""Heads of requests: what is bounded, what is refused with which status, and that nothing else can happen."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.server.front.heads import END, FIELDS, HEAD_BYTES, ITEMS, LINE_BYTES, HeadRefused, check_partial, read_head

BODIES = {b"/v1/chat": 1000}


def status(head: bytes) -> int:
    """What a head is answered; 0 when it is served."""
    try:
        read_head(head, BODIES)
    except HeadRefused as refused:
        return refused.status.value
    return 0


def head(*fields: bytes, request: bytes = b"GET /ws HTTP/1.1") -> bytes:
    return b"\r\n".join((request, *fields)) + END


LONG = b"a" * LINE_BYTES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (head(), 0),
        (head(b"Host: x", b"X-Empty:", b"X-Tab:\tvalue"), 0),
        (head(request=b"GET /" + LONG + b" HTTP/1.1"), 414),
        (head(request=b"GET /ws?api_key=" + LONG[:-40] + b" HTTP/1.1"), 0),
        (head(b"X: " + LONG), 431),
        (head(b"X: " + LONG[:-5]), 0),
        (head(*[b"X: y"] * FIELDS), 0),
        (head(*[b"X: y"] * (FIELDS + 1)), 431),
        (head(b"X: " + LONG[:-50], b"Y: " + LONG[:-50], b"Z: " + LONG[:-50]), 431),
        (head(b"Transfer-Encoding: chunked", request=b"POST /v1/chat HTTP/1.1"), 411),
        (head(b"transfer-encoding: identity"), 411),
        (head(b"Content-Length: 1"), 413),
        (head(b"Content-Length: 0"), 0),
        (head(b"Content-Length: 1000", request=b"POST /v1/chat HTTP/1.1"), 0),
        (head(b"Content-Length: 1000", request=b"POST /v1/chat?x=1 HTTP/1.1"), 0),
        (head(b"Content-Length: 1001", request=b"POST /v1/chat HTTP/1.1"), 413),
        (head(b"Content-Length: 1", b"Content-Length: 1"), 400),
        (head(b"Content-Length: -1"), 400),
        (head(b"Content-Length: 1_0"), 400),
        (head(b"Content-Length: " + b"9" * 5000), 400),
        (head(b"Content-Length: \xd9\xa1"), 400),
        (head(b"X: a", b" Transfer-Encoding: chunked"), 400),
        (head(b"Content-Length : 1"), 400),
        (head(b"Connection: Upgrade" + b",a" * ITEMS), 0),
        (head(b"Connection: Upgrade" + b",a" * (ITEMS + 1)), 431),
        (head(*[b"Sec-WebSocket-Protocol: a" + b",a" * (ITEMS // 2)] * 3), 431),
        (head(b"sec-websocket-extensions: a" + b";a=1" * (ITEMS + 1)), 431),
        (head(b"X-Forwarded-For: a" + b",a" * (ITEMS + 1)), 0),
        (head(request=b"GET /ws?a" + b"&a" * ITEMS + b" HTTP/1.1"), 0),
        (head(request=b"GET /ws?a" + b"&a" * (ITEMS + 1) + b" HTTP/1.1"), 414),
        (head(b"no colon"), 400),
        (head(b": nothing"), 400),
        (b"GET /ws HTTP/1.1\nHost: x\r\n\r\n", 400),
        (b"\r\n\r\n", 0),  # h11 refuses it
    ],
)
def test_bounds_and_their_statuses(text: bytes, expected: int) -> None:
    assert status(text) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((b"Connection: Upgrade", b"Upgrade: websocket"), True),
        ((b"connection: keep-alive, upgrade", b"upgrade: WebSocket "), True),
        ((b"Upgrade: websocket",), False),
        ((b"Connection: Upgrade", b"Upgrade: h2c"), False),
        ((b"Connection: Upgrade",), False),
    ],
)
def test_a_handshake_is_known(fields: tuple[bytes, ...], expected: bool) -> None:
    assert read_head(head(*fields), {}).websocket == expected


@given(st.binary(max_size=300), st.binary(max_size=300))
@example(b"\r\n" * 200, b"")
def test_any_bytes_are_served_or_refused(before: bytes, behind: bytes) -> None:
    held = before + END + behind
    try:
        found = read_head(held, BODIES)
    except HeadRefused as refused:
        assert 400 <= refused.status < 500  # noqa: PT017
        return
    assert held[: found.size].endswith(END)
    assert found.size <= min(HEAD_BYTES, held.find(END) + len(END))
    assert 0 <= found.body <= 1000


@given(st.integers(0, 3 * HEAD_BYTES), st.sampled_from([b"a", b"a\r\n", b"a: b\r\n"]))
def test_what_is_not_whole_is_held_up_to_the_bound(size: int, piece: bytes) -> None:
    held = (piece * (size // len(piece) + 1))[:size]
    if size <= HEAD_BYTES:
        check_partial(held)
    else:
        with pytest.raises(HeadRefused) as refused:
            check_partial(held)
        assert refused.value.status == (414 if piece == b"a" else 431)
