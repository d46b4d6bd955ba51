"""No message, of whatever type and size, makes another client wait for its pong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence

import pytest

from runtime import defaults
from runtime.engines import Delta, Sampling
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.scripted import Running, ScriptedEngine, serving
from tests.harness.templates import plain_marks

# What the loop may be held up by one message, beside what this machine holds it up anyway.
STALL_S = 0.05
TRIES = 5
FULL = defaults.MESSAGE_BYTES - 1_000

# What long texts are made of.
UNITS = [
    "9",
    "<",
    "<unused1",
    "<unused1>",
    "<|im_",
    "\n",
    "user:\n",
    "user: a\n",
    " ",
    "a",
    "<think>",
    "🙂",
    "ſ",
    "*",
    "`",
]
TEXTS = {unit: unit * (FULL // len(json.dumps(unit)[1:-1])) for unit in UNITS}


def messages() -> dict[str, str]:
    """Frames as large as they may be, by what they are."""
    found = {}
    start: dict[str, object] = {"type": "start", "session_id": "s"}
    for unit, text in TEXTS.items():
        for field in ("user_utterance", "persona_text", "history_text", "temperature", "request_id"):
            if field != "history_text" or unit.startswith("user"):
                found[f"start {field} {unit!r}"] = json.dumps(start | {field: text})
        found[f"warm_history {unit!r}"] = json.dumps({"type": "warm_history", "history_text": f"User: {text}"})
        found[f"warm_persona {unit!r}"] = json.dumps({"type": "warm_persona", "chat_prompt": text})
        found[f"followup {unit!r}"] = json.dumps({"type": "followup", "session_id": "s", "analysis_text": text})
        found[f"no type {unit!r}"] = json.dumps({"type": text})
        found[f"no message {unit!r}"] = text
    many = [{"role": "user", "content": "<unused1>"}] * (FULL // 48)
    found["warm_history of many"] = json.dumps({"type": "warm_history", "history": many})
    found["start with many"] = json.dumps(start | {"history": many})
    found["nested"] = "[" * FULL
    found["many keys"] = json.dumps(
        {"type": "start", "session_id": "s", "sampling": {str(n): n for n in range(14_000)}}
    )
    found["synonyms"] = json.dumps(start | {"personalities": {"a": ["b"] * 50_000}})
    return found


class DeafEngine(ScriptedEngine):
    """Replies without reading: its prompts are no words."""

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Say one word."""
        on_delta(Delta("Yes.", 1, "stop"))

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        """Do nothing."""
        return 0


async def longest_pause(work: asyncio.Future[object] | asyncio.Task[object]) -> float:
    """Seconds that the loop's thread computed in its longest step while some work goes on.

    Not the time that passed: another program may have the processor.
    """
    longest, last = 0.0, time.thread_time()
    while not work.done():
        await asyncio.sleep(0.001)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    return longest


async def answered(running: Running, frame: str) -> None:
    """Send a frame and wait until it is over."""
    async with running.client(max_size=None, ping_interval=None) as client:
        await client.socket.send(frame)
        while (await client.receive(60))["type"] not in ("done", "error", "warmed"):
            pass


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> PromptRenderer:
    return PromptRenderer(plain_marks.write_large(tmp_path_factory.mktemp("large")), Budgets())


async def test_no_message_of_any_type_and_size_holds_up_the_others(renderer: PromptRenderer) -> None:
    async with serving(DeafEngine(), renderer=renderer, ws_max_messages_per_window=0, idle_reset_seconds=0) as running:
        for name, frame in messages().items():
            assert len(frame.encode()) <= defaults.MESSAGE_BYTES, name
            # The best of some tries, and against an idle loop beside it: others may use this machine.
            excess = []
            for _ in range(TRIES):
                pause = await longest_pause(asyncio.ensure_future(answered(running, frame)))
                idle = await longest_pause(asyncio.ensure_future(asyncio.sleep(0.02)))
                excess.append(pause - idle)
                if excess[-1] < STALL_S:
                    break
            assert min(excess) < STALL_S, (name, excess)
