"""Heads of requests: what is bounded, what is refused with which status, and that nothing else can happen."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.server.front.heads import (
    END,
    FIELDS,
    HEAD_BYTES,
    ITEMS,
    LINE_BYTES,
    HeadRefused,
    check_partial,
    drop_empty_lines,
    field_of,
    read_head,
    to_origin_form,
)

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
        (head(request=b"GET * HTTP/1.1"), 400),
        (head(request=b"CONNECT x:80 HTTP/1.1"), 400),
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
        ((b"Connection: Upgrade", b"Connection: keep-alive", b"Upgrade: websocket"), True),
        ((b"Upgrade: websocket",), False),
        ((b"Connection: Upgrade", b"Upgrade: h2c"), False),
        ((b"Connection: Upgrade",), False),
    ],
)
def test_a_handshake_is_known(fields: tuple[bytes, ...], expected: bool) -> None:
    assert read_head(head(*fields), {}).websocket == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://x/ws?a=b", b"/ws?a=b"),
        (b"HTTPS://x:8000/", b"/"),
        (b"http://user@x/ws", b"http://user@x/ws"),
        (b"https://x:8000/v1/models", b"/v1/models"),
        (b"http://x", b"/"),
        (b"http://x?a=b", b"/?a=b"),
        (b"/ws?to=http://x/", b"/ws?to=http://x/"),
        (b"http:///ws", b"http:///ws"),
        (b"ftp://x/ws", b"ftp://x/ws"),
    ],
)
def test_a_target_that_names_the_host_is_the_path_on_it(target: bytes, expected: bytes) -> None:
    held = bytearray(head(b"Host: x", request=b"GET " + target + b" HTTP/1.1"))
    to_origin_form(held)
    assert bytes(held) == head(b"Host: x", request=b"GET " + expected + b" HTTP/1.1")


@given(st.binary(max_size=60))
def test_what_stands_before_a_request_is_left_out_where_it_says_nothing(behind: bytes) -> None:
    held = bytearray(b"\r\n" * 3 + behind)
    drop_empty_lines(held)
    assert (b"\r\n" * 3 + behind).endswith(held)
    assert not held.startswith(b"\r\n")


@given(st.integers(0, 255), st.binary(max_size=20))
def test_what_begins_as_no_text_does_is_refused_at_its_first_byte(first: int, behind: bytes) -> None:
    held = bytes([first]) + behind
    if 0x21 <= first <= 0x7E or held == b"\r":
        check_partial(held)
    else:
        with pytest.raises(HeadRefused):
            check_partial(held)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (head(b"Origin: https://a.b", b"X: y"), b"https://a.b"),
        (head(b"X: y", b"ORIGIN:  a  "), b"a"),
        (b"GET / HTTP/1.1\r\nOrigin: https://a", b"https://a"),
        (head(b"X-Origin: a"), None),
        (head(b"Origin : a"), None),
        (head(b"Origin: a\x00b"), None),
        (head() + b"Origin: a", None),
        (b"", None),
    ],
)
def test_a_field_is_found_in_a_head_that_was_refused(text: bytes, expected: bytes | None) -> None:
    assert field_of(text, b"origin") == expected


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
