"""Frames that are no messages: pings, pongs and pieces, with a key and without, read by nobody."""

from __future__ import annotations

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Target, pour

BEGIN = raw.frame(raw.TEXT, final=False)
KINDS = (
    (b"", raw.frame(raw.PING, b"p" * 125)),
    (b"", raw.frame(raw.PING)),
    (b"", raw.frame(raw.PONG)),
    (BEGIN, raw.frame(raw.CONTINUATION, final=False)),
    (BEGIN, raw.frame(raw.CONTINUATION, b"a", final=False)),
    (b"", raw.frame(raw.TEXT, final=False) + raw.frame(raw.CONTINUATION)),
    (b"", b"\xff" * 8),
)


def run(target: Target, clock: Clock) -> None:
    """One kind after the other."""
    while clock:
        for begin, piece in KINDS:
            for key in (target.key, "wrong"):
                pour(target, clock, begin, piece * 5000, key=key)


ATTACK = Attack("control", "pings, pongs and pieces of messages without end", run)
