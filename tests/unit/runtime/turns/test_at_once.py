"""A prepared reply is told in the step of the loop that reads its `start`, and what can wait comes behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import Delta
from runtime.host.ratelimit import SlidingWindow
from runtime.server.connection import Connection, ConnectionLimits
from runtime.server.quotas import Seats
from runtime.text.prompt import PersonaTooLongError
from runtime.text.replies.speech import Speech
from runtime.text.sanitizer.sanitize import sanitize
from runtime.turns.message_handler import MessageHandler
from runtime.turns.outbox import Close, Outbox
from runtime.turns.turn import Stop
from runtime.wire import frames, messages
from runtime.wire.decoder import Decoder
from tests.harness.scripted import REPLY, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import eventually

ASKED = messages.Start(request_id="t", session_id="s1", utterance="hello there", persona="You are Mia.")


@asynccontextmanager
async def handling(running: Running) -> AsyncIterator[tuple[MessageHandler, Outbox]]:
    """One client's messages, without a socket."""
    service = running.service
    assert service.deployment is not None
    assert service.sessions is not None
    outbox = Outbox()
    handler = MessageHandler(service.keyring.principals[0], outbox, service.deployment, service.sessions)
    try:
        yield handler, outbox
    finally:
        await handler.close(Stop.DISCONNECT)


async def some_steps() -> None:
    """Let the loop do what is ready, and what follows from it."""
    for _ in range(20):
        await asyncio.sleep(0)


def put(outbox: Outbox) -> list[str]:
    """What lies in it by now."""
    return [type(frame).__name__ for frame in outbox._take()]


@pytest.mark.parametrize("classifier", [None, ScriptedClassifier()], ids=["chat", "both"])
@pytest.mark.parametrize("utterance", ["hello there", "look here"])
@pytest.mark.parametrize("bound", [2, 48], ids=["rests", "whole"])
async def test_no_step_of_the_loop_lies_between_a_start_and_what_was_ready(
    classifier: ScriptedClassifier | None, utterance: str, bound: int
) -> None:
    asked = replace(ASKED, utterance=utterance)
    assert len(REPLY) > 2  # else nothing of it would rest
    engine = ScriptedEngine()
    async with serving(engine, classifier, prepare_max_tokens=bound) as running, handling(running) as (handler, outbox):
        prompts = 2 if classifier is not None and utterance == "look here" else 1
        handler.submit(messages.Prepare("p", asked))
        await eventually(lambda: len(engine.prompts) == prompts and not engine.held)
        assert put(outbox) == []
        woken, made = len(engine.woken), len(engine.prompts)
        engine.wake = lambda: engine.woken.append(len(outbox._text))  # type: ignore[method-assign]
        handler.submit(asked)
        assert len(engine.prompts) == made
        assert engine.woken[woken:] == [1]  # behind the text
        assert put(outbox) == ["Ack", *(["ToolCall"] if classifier else []), "Token"]


async def test_so_it_is_where_only_tools_are_served() -> None:
    classifier = ScriptedClassifier()
    async with serving(classifier=classifier, chat=False) as running, handling(running) as (handler, outbox):
        handler.submit(messages.Prepare("p", ASKED))
        await eventually(lambda: classifier.asked)
        await some_steps()
        handler.submit(ASKED)
        assert put(outbox) == ["Ack", "ToolCall"]


@pytest.mark.parametrize(
    ("change", "counted"),
    [({}, 0), ({"utterance": "another"}, 0), ({"persona": "You are Bob."}, 1), ({"runtime_text": "now"}, 1)],
)
async def test_a_system_prompt_that_was_counted_is_not_counted_again(change: dict[str, Any], counted: int) -> None:
    async with serving() as running, handling(running) as (handler, _):
        assert running.service.deployment is not None
        chat = running.service.deployment.chat
        assert chat is not None
        asked: list[tuple[str, str]] = []

        async def excess(persona: str, runtime_text: str, salt: str | None = None) -> PersonaTooLongError | None:
            asked.append((persona, runtime_text))
            return None

        chat.persona_excess = excess  # type: ignore[method-assign]
        handler.submit(messages.Prepare("p", ASKED))
        await eventually(lambda: running.engine.prompts and not running.engine.held)
        assert len(asked) == 1
        handler.submit(replace(ASKED, **change))
        assert len(asked) == 1 + counted


async def test_one_that_turned_out_too_long_is_counted_again_and_refused() -> None:
    async with serving() as running, handling(running) as (handler, outbox):
        assert running.service.deployment is not None
        chat = running.service.deployment.chat
        assert chat is not None

        async def excess(*arguments: object) -> PersonaTooLongError | None:
            return PersonaTooLongError(9, 8)

        chat.persona_excess = excess  # type: ignore[assignment, method-assign]
        handler.submit(messages.Prepare("p", ASKED))
        await asyncio.sleep(0)
        handler.submit(ASKED)
        refused = [frame for frame in outbox._take() if isinstance(frame, frames.Error)]
        assert [(frame.error_code, frame.request_id) for frame in refused] == [
            ("chat_prompt_too_long", "p"),
            ("chat_prompt_too_long", "t"),
        ]


async def test_a_reply_that_cannot_be_told_fails_its_turn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running, handling(running) as (handler, outbox):
        handler.submit(messages.Prepare("p", ASKED))
        await eventually(lambda: running.engine.prompts and not running.engine.held)
        with monkeypatch.context() as patched:
            patched.setattr(Outbox, "put_text", _broken)
            handler.submit(ASKED)
        await handler.wait_until_idle()
        assert put(outbox) == ["Ack", "Error", "Done"]
        handler.submit(ASKED)
        await handler.wait_until_idle()
        assert put(outbox)[-2:] == ["Final", "Done"]


def _broken(*arguments: object) -> None:
    raise RuntimeError("scripted")


# What is said while it is held back


PIECES = st.lists(
    st.sampled_from(["Hi", " there", "*", "**bold", "** ", ":)", "", " 3.5", "<b>", "\n\n", "😀"]), max_size=12
)


@given(PIECES, st.integers(0, 12), st.booleans())
def test_however_long_it_is_held_back_the_same_is_said(pieces: list[str], held: int, cleaned: bool) -> None:
    said: list[str] = []
    deltas: list[tuple[Delta, bool]] = []
    speech = Speech(
        lambda delta, heard: deltas.append((delta, heard.speech)),
        said.append,
        sanitize=cleaned,
        held=True,
    )
    for number, piece in enumerate(pieces):
        if number == held:
            speech.release()
        if number < held:
            assert not said
            assert not deltas
        reason = "length" if number == len(pieces) - 1 else None
        speech.feed(Delta(piece, 1, reason, cached_tokens=7))
    if held >= len(pieces):
        speech.release()
    assert len(deltas) == (bool(pieces) if held >= len(pieces) else len(pieces) - held + bool(held))
    speech.finish()
    whole = "".join(pieces)
    assert "".join(said) == (sanitize(whole) if cleaned else whole)
    assert sum(delta.tokens for delta, _ in deltas) == len(pieces)
    assert all(delta.cached_tokens == 7 for delta, _ in deltas)
    assert [delta.finish_reason for delta, _ in deltas][-1:] == ["length"] * bool(pieces)
    assert any(spoken for _, spoken in deltas) == bool(whole)


# The socket


class Told:
    """What takes a connection's messages: tells some text at once, and a cancel."""

    busy = False
    idle_since = 0.0

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.cancels = 0

    def submit(self, message: messages.Inbound) -> None:
        self._outbox.put(frames.Pong(request_id=message.request_id))
        self._outbox.put_text(str(message.request_id), message.request_id)

    def cancel(self, request_id: frames.RequestId | None) -> None:
        self.cancels += 1

    async def close(self, why: Stop) -> None:
        """Nothing runs."""


class Wire:
    """An ASGI socket by hand: what comes in, and what went out while it was open."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.writable = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.error: Exception | None = None

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    def say(self, text: str) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Wire, Connection]]:
    wire, outbox = Wire(), Outbox()
    seat = Seats(lambda: None, lambda: SlidingWindow(0, 1.0), lambda: SlidingWindow(0, 1.0)).take(object())  # type: ignore[arg-type]
    assert seat is not None
    made: list[Connection] = []

    async def serve() -> None:
        made.append(
            Connection(
                wire.incoming.get,
                wire.send,
                outbox,
                Told(outbox),  # type: ignore[arg-type]
                Decoder(),
                ConnectionLimits(),
                seat,
            )
        )
        await made[0].serve(lambda: None)

    serving = asyncio.create_task(serve())
    await some_steps()
    try:
        yield wire, made[0]
    finally:
        wire.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(serving, 10)


def start(number: int) -> str:
    return f'{{"type":"start","session_id":"s","request_id":{number}}}'


async def test_a_full_socket_holds_up_no_message_and_mixes_nothing_up() -> None:
    async with connected() as (wire, connection):
        told = connection._handler
        assert isinstance(told, Told)
        for number in range(5):
            wire.say(start(number))
            await asyncio.sleep(0)
        wire.say('{"type":"cancel"}')
        await eventually(lambda: told.cancels == 1)
        assert wire.sent == []
        wire.writable.set()
        await eventually(lambda: len(wire.sent) == 10)
        for number in range(5, 8):  # and sent at once again
            wire.say(start(number))
            await eventually(lambda number=number: len(wire.sent) == 2 * number + 2)  # type: ignore[misc]
        kinds = [message["text"] for message in wire.sent]
        assert kinds == [
            text
            for number in range(8)
            for text in (
                f'{{"type":"pong","request_id":{number}}}',
                f'{{"type":"token","text":"{number}","request_id":{number}}}',
            )
        ]


@pytest.mark.parametrize("error", [OSError("gone"), RuntimeError("scripted")])
async def test_a_socket_that_fails_at_that_moment_ends_as_at_any_other(error: Exception) -> None:
    async with connected() as (wire, connection):
        wire.error = error
        wire.writable.set()
        wire.say(start(1))
        if isinstance(error, OSError):  # the server tells the reader
            await some_steps()
            assert not connection.closed.is_set()
        else:
            await eventually(connection.closed.is_set)
        assert wire.sent == []


@given(st.lists(st.sampled_from(["gather", "gathered", "text", "frame", "close", "step"]), max_size=30))
def test_nothing_is_lost_nor_changes_places_between_two_who_take(events: list[str]) -> None:
    async def play() -> None:
        outbox, taken, put, closed = Outbox(), [], [], False

        async def writer() -> None:
            while True:
                taken.extend(await outbox.take())

        writing = asyncio.create_task(writer())
        for number, event in enumerate([*events, "gathered"]):
            if event == "gather":
                outbox.gather()
            elif event == "gathered":
                taken.extend(outbox.gathered(take=bool(number % 3)))
            elif event == "text":
                outbox.put_text(f"{number} ", None)
            elif event == "frame":
                outbox.put(frames.Pong(request_id=number))
            elif event == "close":
                outbox.put(Close(1000, ""))
            else:
                for _ in range(3):
                    await asyncio.sleep(0)
            if event in ("text", "frame", "close") and not closed:
                put.append(number)
                closed = event == "close"
        for _ in range(4):
            await asyncio.sleep(0)
        writing.cancel()
        found: list[int] = []
        for frame in taken:
            if isinstance(frame, frames.Token):
                found += map(int, frame.text.split())
            else:
                found.append(put[-1] if isinstance(frame, Close) else frame.request_id)
        assert found == put

    asyncio.run(play())
