"""WebSockets with a wrong key that stay when they are told to go."""

from __future__ import annotations

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Crowd, Target

SOCKETS = 200
PINGS = raw.frame(raw.PING, b"p" * 125) * 20


def run(target: Target, clock: Clock) -> None:
    """Come in with a wrong key, ping, read nothing, stay."""
    crowd = Crowd(SOCKETS, lambda: raw.websocket(target.port, "wrong", receive_buffer=4096))
    while clock:
        crowd.fill(clock)
        crowd.send(PINGS)
        clock.sleep(0.05)
    crowd.leave()


ATTACK = Attack("refused", f"{SOCKETS} WebSockets with a wrong key that ping and stay", run)
