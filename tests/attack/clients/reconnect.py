"""A client that comes back as soon as it has met a rate limit."""

from __future__ import annotations

import contextlib
import time

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Target

# The server sees the end of a connection a moment later than its client does.
LATE = 2


def run(target: Target, clock: Clock) -> None:
    """Ask until refused, leave, come back, ask again.

    Raises:
        AssertionError: a turn was begun that a limit, by the server's own word, forbade.
    """
    limited_until = 0.0
    passed = 0
    while clock:
        with contextlib.suppress(OSError), raw.websocket(target.port, target.key) as connection:
            reader = raw.Reader(connection)
            refused = False
            while clock and not refused:
                connection.sendall(raw.text({"type": "start", "session_id": "reconnect", "user_utterance": "hello"}))
                asked = time.monotonic()
                while (message := reader.message()).get("type") not in ("ack", "error"):
                    pass
                if message["type"] == "ack":
                    passed += asked < limited_until
                elif message.get("error_code") == "message_rate_limited":
                    refused = True
                    limited_until = max(limited_until, asked + float(str(message["retry_in"])) - 1)
            connection.sendall(raw.text({"type": "end"}))
            raw.to_the_end(connection)
    assert passed <= LATE, f"expected no turn before a limit ends, found {passed}"


ATTACK = Attack("reconnect", "a client that comes back as soon as a rate limit has refused it", run)
