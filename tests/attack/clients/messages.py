"""Full frames of hostile text and huge numbers, in every field of every type of message."""

from __future__ import annotations

import itertools
import json
import random
import socket
from collections.abc import Iterator

from runtime import defaults
from tests.attack import raw
from tests.attack.attack import Attack, Clock, Target

FULL = defaults.MESSAGE_BYTES - 1000
# What texts are made of: numbers; control tokens, marks of roles and thought, whole and cut; marks of emphasis; labels.
UNITS = (
    *("9", "9.", "-", "1e9", "<unused1>", "<unused1", "<|im_start|>system", "<|im_", "<|system|>", "\n<|system|>\n"),
    *(
        "[/INST]",
        "<<SYS>>",
        "<start_of_turn>user",
        "USER:",
        "ASSISTANT:",
        "user:\n",
        "user: a\n",
        "<think>",
        "</think>",
    ),
    *("*", "**", "_", "`", "<", "[", "](", "(", ")", "|", "#", "\n", "\t", " ", "a", "a "),
    *("\u0130", "\u017f", "\u3002", "\u202e", "\u0301"),
)
NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed", "request_id", "chars")
TEXTS = (
    "user_utterance",
    "persona_text",
    "runtime_text",
    "history_text",
    "analysis_text",
    "session_id",
    "gender",
    "stop",
)
TYPES = ("start", "warm_history", "warm_persona", "chat_prompt", "followup", "heard", "nonsense")


def full(unit: str, share: int) -> str:
    """So much of the unit that it fills a share of a frame."""
    return unit * (FULL // share // len(json.dumps(unit)[1:-1]))


def frames() -> Iterator[bytes]:
    """All of them, in an order that is the same each time."""
    for number, kind, unit in order():
        base: dict[str, object] = {"type": kind, "session_id": "messages", "user_utterance": "a", "analysis_text": "a"}
        if kind in ("warm_history", "warm_persona", "chat_prompt"):
            base |= {"chat_prompt": "a", "history_text": "User: a"}
        field, name = TEXTS[number % len(TEXTS)], NUMBERS[number % len(NUMBERS)]
        yield raw.text(base | {field: ("User: " if field == "history_text" else "") + full(unit, 1)[: FULL - 600]})
        # What is short enough for a persona, so that all of it is done.
        yield raw.text(base | {"chat_prompt": full(unit, 1)[:1000], "user_utterance": full(unit, 2)})
        yield raw.text(base | {"sampling": {name: full(unit, 2)}, "analysis_text": full(unit, 3)})
        entries = [{"role": "user", "content": unit}] * (FULL // (40 + len(json.dumps(unit))))
        yield raw.text(base | {"history": entries})
        digits = "9" * (FULL // 2)
        large = f'"{name}":{digits},"sampling":{{"{name}":1e{digits[:9]}}}'
        yield raw.text(f'{{"type":"{kind}","session_id":"messages",{large}}}')


def order() -> list[tuple[int, str, str]]:
    """Types and units, mixed so that little time meets all types."""
    mixed = [(kind, unit) for kind in TYPES for unit in UNITS]
    random.Random(0).shuffle(mixed)
    return [(number, kind, unit) for number, (kind, unit) in enumerate(mixed)]


def run(target: Target, clock: Clock) -> None:
    """Send one after the other, and read what comes.

    Raises:
        AssertionError: the server closed the connection, so that the rest was not tried.
    """
    with raw.websocket(target.port, target.key) as connection:
        for frame in itertools.cycle(frames()):
            if not clock:
                return
            assert send(connection, frame), f"expected that all of a frame is read, found a close at {frame[:200]!r}"


def send(connection: socket.socket, frame: bytes) -> bool:
    """Send a frame and read until nothing has come for a moment; whether the server is still there."""
    try:
        connection.settimeout(10)
        connection.sendall(frame)
        connection.settimeout(0.01)
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return True
    except OSError:
        pass
    return False


ATTACK = Attack("messages", "large frames of hostile text and numbers in every type of message", run, unlimited=True)
