"""Sockets that are there and say nothing, or a byte now and then."""

from __future__ import annotations

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Crowd, Target

SOCKETS = 1500


def run(target: Target, clock: Clock) -> None:
    """Half of them say nothing at all, half of them trickle; new ones come for those that are dropped."""
    silent = Crowd(SOCKETS // 2, lambda: raw.connect(target.port, timeout=1))
    trickling = Crowd(SOCKETS // 2, lambda: raw.connect(target.port, timeout=1))
    pieces = iter(b"GET /ws HTTP/1.1\r\nX: " + b"a" * 1_000_000)
    while clock:
        silent.fill(clock)
        trickling.fill(clock)
        trickling.send(bytes((next(pieces),)))
        silent.send(b"")
        clock.sleep(0.1)
    silent.leave()
    trickling.leave()


ATTACK = Attack("silence", f"{SOCKETS} sockets that say nothing, or a byte now and then", run)
