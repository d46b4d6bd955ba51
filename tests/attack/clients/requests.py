"""Honest requests, far too many at once."""

from __future__ import annotations

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Crowd, Target

SOCKETS = 300
PATHS = ("/metrics", "/healthz", "/readyz", "/nowhere", "/ws")


def run(target: Target, clock: Clock) -> None:
    """All of them ask at the same time, read no answers, and come back."""
    requests = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in PATHS]
    crowd = Crowd(SOCKETS, lambda: raw.connect(target.port, timeout=1))
    while clock:
        for request in requests:
            crowd.fill(clock)
            crowd.send(request)
            clock.sleep(0.05)
        crowd.leave()


ATTACK = Attack("requests", f"{SOCKETS} sockets that ask for metrics and health at once, again and again", run)
