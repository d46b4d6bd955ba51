"""Clients with a key that ask and never read what they are answered."""

from __future__ import annotations

import json

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Crowd, Target

SOCKETS = 20
KINDS = (
    {"type": "ping", "request_id": "x" * 256},
    {"type": "pong"},
    {"type": "nonsense", "request_id": "x" * 256},
    {"type": "cancel"},
    {"type": "start", "session_id": "s", "user_utterance": "hello " * 20},
)


def run(target: Target, clock: Clock) -> None:
    """Everybody sends the same kind at once, as much as goes in."""
    pieces = [raw.frame(raw.TEXT, json.dumps(kind).encode()) * 200 for kind in KINDS]
    while clock:
        for piece in pieces:
            crowd = Crowd(SOCKETS, lambda: raw.websocket(target.port, target.key, receive_buffer=4096))
            crowd.fill(clock)
            for _ in range(5):
                crowd.send(piece)
                clock.sleep(0.05)
            crowd.leave()


ATTACK = Attack("unread", f"{SOCKETS} clients with a key that send without end and read nothing", run)
