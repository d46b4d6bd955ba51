"""The head of an HTTP/1.1 request, read within bounds before any parser sees it. Bytes in, a verdict out; no sockets.

Parsers differ in what they bound: httptools (llhttp) bounds neither the URL nor the headers nor their number, h11
bounds a head that is incomplete, never one that came in one piece. So the bounds stand here, and a parser gets one
whole head at a time. Line ends are CR LF, a field is one line, a body has a length: what is stricter here than RFC 9112
requires is what it lets a server refuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

HEAD_BYTES = 16_384
# With its line end; websockets takes 8,192 and 128.
LINE_BYTES = 8_190
FIELDS = 100
# Of the query, and of the fields that are lists to a parser behind us: thousands of them cost it as many microseconds.
ITEMS = 100
_LISTS = frozenset(
    {b"connection", b"upgrade", b"sec-websocket-protocol", b"sec-websocket-extensions", b"transfer-encoding", b"te"}
)

END = b"\r\n\r\n"
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
# What a request may begin with, and the empty lines that some send before one (RFC 9112, 2.2).
_FIRST = re.compile(rb"[!-~]|\r\Z")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_ABSOLUTE = re.compile(rb"[A-Z]+ (?P<origin>https?://[^\s/?#@]+)(?=[/? ])", re.IGNORECASE)
_DIGITS = re.compile(rb"[0-9]{1,15}")
# Names of tokens, values of visible letters and space (RFC 9110, 5.1 and 5.5).
_FIELDS = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*")
# Fields that change what follows the head, or the answer's.
_SWITCHES = frozenset({b"connection", b"expect", b"upgrade", b"te", b"trailer", b"transfer-encoding"})

# Paths that take a body, each with its largest one in bytes; one that ends with a slash is all below it.
Bodies = Mapping[bytes, int]


class HeadRefused(Exception):
    """A head that is not served."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """What must be known before a parser gets it: its length, the length of the body, and who reads what follows.

    Attributes:
        size: with its end.
        body: bytes that follow.
        websocket: whether it is a handshake.
        request: its first line.
        fields: the others, names in small letters, values without outer space. Only `plain` has looked into them.
    """

    size: int
    body: int
    websocket: bool
    request: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()


def check_partial(held: bytes | bytearray) -> None:
    """Refuse what cannot become a head any more.

    Raises:
        HeadRefused: it is too long, or begins as no text does: TLS, where there is none.
    """
    if held and not _FIRST.match(held):
        raise HeadRefused(HTTPStatus.BAD_REQUEST)
    if len(held) > HEAD_BYTES:
        raise HeadRefused(_too_long(first_line=b"\r\n" not in held[:LINE_BYTES]))


def read_head(held: bytes | bytearray, bodies: Bodies) -> Head:
    """Judge the head that `held` begins with; it is there to its `END`.

    Raises:
        HeadRefused: with the status to answer.
    """
    end = held.find(END)
    size = end + len(END)
    if size > HEAD_BYTES:
        raise HeadRefused(_too_long(first_line=held.find(b"\r\n") > LINE_BYTES))
    head = bytes(held[:size])
    if _BARE_LINE_FEED.search(head):
        raise HeadRefused(HTTPStatus.BAD_REQUEST)
    request, *fields = head[:end].split(b"\r\n")
    if request.count(b" ") == 2 and not request.split(b" ")[1].startswith(b"/"):
        raise HeadRefused(HTTPStatus.BAD_REQUEST)
    if len(request) + 2 > LINE_BYTES or request.count(b"&") > ITEMS:
        raise HeadRefused(_too_long(first_line=True))
    if len(fields) > FIELDS or any(len(field) + 2 > LINE_BYTES for field in fields):
        raise HeadRefused(_too_long(first_line=False))
    body, upgrade, switches = 0, False, False
    lengths = items = 0
    read = []
    for field in fields:
        name, colon, value = field.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not colon or not name or name != name.strip():  # a folded line begins with a space
            raise HeadRefused(HTTPStatus.BAD_REQUEST)
        read.append((name, value))
        if name in _LISTS:
            items += value.count(b",") + value.count(b";")
        if name == b"content-length":
            lengths += 1
            if lengths > 1 or not _DIGITS.fullmatch(value):
                raise HeadRefused(HTTPStatus.BAD_REQUEST)
            body = int(value)
        elif name == b"transfer-encoding":
            raise HeadRefused(HTTPStatus.LENGTH_REQUIRED)
        elif name == b"upgrade":
            upgrade = value.lower() == b"websocket"
        elif name == b"connection":
            switches |= b"upgrade" in [token.strip().lower() for token in value.split(b",")]
    if items > ITEMS:
        raise HeadRefused(_too_long(first_line=False))
    if body > _largest_body(path_of(head), bodies):
        raise HeadRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return Head(size, body, upgrade and switches, request, tuple(read))


def drop_empty_lines(held: bytearray) -> None:
    """Leave out what may stand before a request line and says nothing."""
    if found := _EMPTY_LINES.match(held):
        del held[: found.end()]


def to_origin_form(held: bytearray) -> None:
    """Leave scheme and host out of a target that names them, as who speaks to a proxy does (RFC 9112, 3.2.2)."""
    if found := _ABSOLUTE.match(held):
        held[found.start("origin") : found.end("origin")] = b"" if held[found.end()] == ord("/") else b"/"


def plain(held: bytes | bytearray, head: Head) -> bool:
    """Whether a head that was judged needs no parser: every byte is where a strict one would have it.

    Its fields mean then what they say: one host, a body of the length that was read, a connection that goes on.
    """
    if not _FIELDS.fullmatch(held, len(head.request) + 2, head.size - 2) or not head.request.endswith(b" HTTP/1.1"):
        return False
    hosts = 0
    for name, value in head.fields:
        if name == b"host":
            hosts += 1
        elif name in _SWITCHES and not (name == b"connection" and value.lower() == b"keep-alive"):
            return False
    return hosts == 1


def fields_are_valid(fields: bytes) -> bool:
    """Whether these are the lines of fields and nothing else, as they may be sent."""
    return _FIELDS.fullmatch(fields) is not None


def _largest_body(path: bytes, bodies: Bodies) -> int:
    return max((size for known, size in bodies.items() if _covers(known, path)), default=0)


def _covers(known: bytes, path: bytes) -> bool:
    return path.startswith(known) if known.endswith(b"/") else path == known


def _too_long(*, first_line: bool) -> HTTPStatus:
    return HTTPStatus.REQUEST_URI_TOO_LONG if first_line else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


def path_of(held: bytes | bytearray) -> bytes:
    """The path that a head asks for, without its query; empty where that has not come yet, or is none."""
    line, end, _ = bytes(held[:LINE_BYTES]).partition(b"\r\n")
    words = line.split(b" ")
    return words[1].partition(b"?")[0] if end and len(words) == 3 else b""


def field_of(held: bytes | bytearray, name: bytes) -> bytes | None:
    """The value of a field, as far as the head has come and can be read; none where there is no such field."""
    for line in bytes(held[:HEAD_BYTES]).partition(END)[0].split(b"\r\n")[1 : FIELDS + 1]:
        found, colon, value = line.partition(b":")
        if colon and found.lower() == name and fields_are_valid(line + b"\r\n"):
            return value.strip(b" \t")
    return None


def refusal(
    status: HTTPStatus,
    body: bytes | None = None,
    kind: bytes = b"text/plain; charset=utf-8",
    more: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A whole answer, which by itself says no more than its status."""
    text = status.phrase.encode() if body is None else body
    known = ((b"content-type", kind), (b"content-length", b"%d" % len(text)), (b"connection", b"close"))
    fields = b"".join(b"%b: %b\r\n" % field for field in (*known, *more))
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status.value, status.phrase.encode(), fields, text)
