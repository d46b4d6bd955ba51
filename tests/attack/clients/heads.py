"""Requests that never end, or that nobody waits for."""

from __future__ import annotations

from tests.attack.attack import Attack, Clock, Target, pour

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LINE = b"GET /ws HTTP/1.1\r\nHost: x\r\n"
KINDS = (
    (LINE, (b"X-A: " + b"a" * 60_000 + b"\r\n") * 16),
    (LINE, b"X: y\r\n" * 10_000),
    (LINE + b"X: ", b"a" * 1_048_576),
    (b"GET /ws?x=", b"a" * 1_048_576),
    (b"", b"\r\n" * 100_000),
    (b"", b"\x00" * 262_144),
    (b"", GET * 2000),
    (b"", GET * 20),
    (b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 40_000),
    (b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", b"a" * 1_048_576),
)


def run(target: Target, clock: Clock) -> None:
    """One kind after the other."""
    while clock:
        for begin, piece in KINDS:
            pour(target, clock, begin, piece)


ATTACK = Attack("heads", "headers, URLs, bodies and pipelines that never end", run)
