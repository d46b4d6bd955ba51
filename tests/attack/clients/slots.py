"""One key that takes every slot and every session that it can get, and speaks in all of them."""

from __future__ import annotations

import itertools
import json

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Crowd, Target

# More than there are.
SOCKETS = 100


def run(target: Target, clock: Clock) -> None:
    """All come in, begin turns in ever new sessions, and those that were refused come again."""
    numbers = itertools.count()
    crowd = Crowd(SOCKETS, lambda: raw.websocket(target.port, target.key))
    while clock:
        crowd.fill(Clock(0.3))
        for connection in list(crowd.inside):
            start = {"type": "start", "session_id": f"slots {next(numbers)}", "user_utterance": "hello"}
            try:
                connection.send(raw.frame(raw.TEXT, json.dumps(start).encode()))
                while connection.recv(65_536):
                    pass
            except BlockingIOError:
                continue
            except OSError:
                pass
            crowd.inside.remove(connection)
            connection.close()
        clock.sleep(0.2)
    crowd.leave()


ATTACK = Attack(
    "slots",
    f"one key that wants {SOCKETS} slots and all sessions, and speaks",
    run,
    unlimited=True,
    shared=True,
)
