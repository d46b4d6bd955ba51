"""Ever new sessions, each as full as it goes."""

from __future__ import annotations

import contextlib
import itertools

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Target

TEXT = "aaaa " * 100
# Within the budget of tokens, whatever the vocabulary.
PERSONA = "a" * 700


def run(target: Target, clock: Clock) -> None:
    """Begin a turn in a new session with a full history and persona, stop it, go on to the next.

    Raises:
        AssertionError: hardly any session was begun.
    """
    history = [{"role": role, "content": TEXT} for _ in range(50) for role in ("user", "assistant")]
    begun = 0
    with contextlib.suppress(OSError), raw.websocket(target.port, target.key) as connection:
        reader = raw.Reader(connection)
        for number in itertools.count():
            if not clock:
                break
            start = {"type": "start", "session_id": f"full {number} ".ljust(256, "x"), "user_utterance": "hello"}
            connection.sendall(raw.text(start | {"persona_text": PERSONA, "history": history}))
            message = reader.message()
            if message["type"] == "ack":
                begun += 1
                connection.sendall(raw.text({"type": "cancel"}))
                while reader.message()["type"] != "done":
                    pass
            else:
                clock.sleep(0.1)
    assert begun > 1, f"expected many sessions, found {begun}"


ATTACK = Attack("sessions", "ever new sessions with full histories", run, unlimited=True, shared=True)
