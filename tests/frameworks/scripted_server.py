"""The server around a scripted engine, in a process of its own: `python -m tests.frameworks.scripted_server`.

It runs in the server's environment; the tests run in that of the frameworks. The first line that it prints says where
it listens. Then each line that it reads is a command, answered by one line of JSON: `state` (what the engine holds and
was given), `drop` (every connection is cut). It ends with its input.

What it replies to follows the utterance's first word, so that a test can tell from a piece of a reply whose it is:
`fail` fails; `think` thinks first; `long` never comes to an end by itself in a test's time;
anything else is said back in twelve pieces, `WORD-0` to `WORD-11`. The prefixes that go with a screenshot are in
brackets and do not count.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence

from runtime.turns.sessions.session import Session
from runtime.wire.messages import Start
from tests.harness.scripted import Running, ScriptedClassifier, ScriptedEngine, serving

PIECES = 12


def reply(prompt: list[str]) -> Sequence[str]:
    """The pieces of the reply to a prompt."""
    utterance = prompt[len(prompt) - prompt[::-1].index("[user]") :] if "[user]" in prompt else []
    first = next((word for word in utterance if not word.startswith("(")), "nothing")
    if first == "fail":
        raise RuntimeError("scripted failure")
    if first == "think":
        return ["<think>", "a secret ", "thought", "</think>", "spoken-0 ", "spoken-1"]
    pieces = 4_000 if first == "long" else PIECES
    return [f"{first}-{n}" + (" " if n < pieces - 1 else "") for n in range(pieces)]


class Starts:
    """What each `start` carried beside the utterance, since the last time."""

    def __init__(self) -> None:
        self.carried: list[str] = []
        apply, preview = Session.apply, Session.preview

        def watched(session: Session, start: Start) -> None:
            parts = {"persona": start.persona, "history": start.history, "runtime_text": start.runtime_text or None}
            self.carried.append(" ".join(name for name, value in parts.items() if value is not None))
            apply(session, start)

        def previewed(session: Session, start: Start) -> Session:
            seen = preview(session, start)
            self.carried.pop()  # a `prepare` is none
            return seen

        Session.apply, Session.preview = watched, previewed  # type: ignore[method-assign]

    def take(self) -> list[str]:
        """Return and forget them."""
        carried, self.carried = self.carried, []
        return carried


def state(running: Running, since: int, starts: Starts) -> dict[str, object]:
    """What the engine holds, and what it was given since the last time."""
    engine = running.engine
    return {
        "starts": starts.take(),
        "held": len(engine.held),
        "aborts": engine.aborts,
        "connections": len(running.service.connections),
        "sessions": len(running.service.sessions),
        "prompts": [" ".join(words) for words in engine.prompts[since:]],
    }


async def lines() -> asyncio.StreamReader:
    """The lines of the standard input."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the logs go elsewhere
    engine = ScriptedEngine(script=reply, pause=float(os.environ.get("SCRIPT_PAUSE", "0.001")))
    told, starts = 0, Starts()
    async with serving(
        engine,
        ScriptedClassifier(tools=("take_screenshot", "play_music")),
        ws_max_messages_per_window=0,
        ws_max_cancels_per_window=0,
        check_screen_prefix="(look)",
        screen_checked_prefix="(seen)",
    ) as running:
        print(json.dumps({"port": running.port}), file=answers, flush=True)
        commands = await lines()
        while command := (await commands.readline()).decode().strip():
            answer: dict[str, object] = {}
            if command == "state":
                answer, told = state(running, told, starts), len(engine.prompts)
            elif command == "drop":
                for connection in list(running.server.server_state.connections):
                    connection.transport.abort()
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
