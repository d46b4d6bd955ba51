"""What survives a turn, a connection, and for how long; and messages that change it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from runtime.engines import Delta, Sampling
from runtime.text.prompt import Budgets, PromptRenderer
from tests.harness.models import chat_templates
from tests.harness.scripted import REPLY, ScriptedClassifier, ScriptedEngine, ScriptedRenderer, serving
from tests.harness.waiting import eventually

TEXT = "".join(REPLY)


def prompt(running: Any, index: int = -1) -> str:
    return " ".join(running.engine.prompts[index])


async def test_history_grows_by_what_the_user_said_and_what_was_said_to_them() -> None:
    async with serving() as running, running.client() as client:
        await client.turn(user_utterance="one", persona_text="You are Mia.", runtime_text="It is late.")
        await client.turn(user_utterance="two")
    assert prompt(running, 0) == "[system] You are Mia. It is late. [user] one"
    assert prompt(running, 1) == f"[system] You are Mia. [user] one [assistant] {TEXT} [user] two"


async def test_a_session_holds_no_turn_that_has_ended() -> None:
    async with serving(ScriptedEngine(pause=0.02)) as running, running.client() as client:
        store = running.service.sessions
        assert store is not None
        await client.send(type="start", session_id="s1", user_utterance="one")
        assert (await client.receive())["type"] == "ack"
        (principal,) = running.service.keyring.principals
        session = store.find(principal, "s1")
        assert session is not None
        assert session.turn is not None
        await client.until("done")
        await client.send(type="ping")  # what is called soon after `done` has been called
        await client.until("pong")
        assert session.turn is None


async def test_history_is_replaced_when_given_even_when_empty() -> None:
    async with serving() as running, running.client() as client:
        await client.turn(user_utterance="one")
        await client.turn(user_utterance="two", history_text="User: a\n\nAssistant: b")
        assert prompt(running).strip() == "[user] a [assistant] b [user] two"
        await client.turn(user_utterance="three", history=[])
        assert prompt(running).strip() == "[user] three"


async def test_an_empty_utterance_lets_the_assistant_speak_first() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, running.client() as client:
        frames = await client.turn(persona_text="Greet the user.")
        assert frames[1]["status"] == "no"
        await client.turn(user_utterance="hi")
        assert running.classifier is not None
        assert [utterance for _, utterance in running.classifier.asked] == ["hi"]
    assert prompt(running) == f"[system] Greet the user. [assistant] {TEXT} [user] hi"


async def test_an_empty_persona_clears_it_and_an_absent_one_keeps_it() -> None:
    async with serving() as running, running.client() as client:
        assert (await client.turn(persona_text="p", gender="man", personality="calm"))[0]["chat_prompt"] is True
        ack = (await client.turn())[0]
        assert (ack["chat_prompt"], ack["gender"], ack["personality"]) == (True, "man", "calm")
        assert (await client.turn(persona_text=""))[0]["chat_prompt"] is False


async def test_what_was_sent_before_a_cancel_is_what_the_user_heard() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 1000)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one")
        frames = await client.until("token")
        await client.send(type="cancel")
        frames += await client.until("done")
        heard = "".join(frame["text"] for frame in frames if frame["type"] == "token")
        await client.send(type="start", session_id="s1", user_utterance="two")
        await client.until("token")
        assert prompt(running).split() == f"[user] one [assistant] {heard} [user] two".split()


async def test_a_turn_without_a_word_leaves_no_trace() -> None:
    async with serving(ScriptedEngine(pause=0.05)) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one")
        await client.until("ack")
        await client.send(type="cancel")
        await client.until("done")
        running.engine.fail_after = 1
        await client.turn(user_utterance="two")
        running.engine.fail_after = None
        await client.turn(user_utterance="three")
        assert prompt(running).strip() == "[user] three"


async def test_a_session_survives_a_reconnect_and_belongs_to_its_key() -> None:
    async with serving(text_api_key="one,two") as running:
        async with running.client(key="one") as client:
            await client.turn(user_utterance="secret")
        async with running.client(key="one") as client:
            await client.turn(user_utterance="again")
            assert "secret" in prompt(running)
        async with running.client(key="two") as client:
            await client.turn(user_utterance="again")
            assert "secret" not in prompt(running)
            await client.send(type="chat_prompt", persona_text="p", session_id="unknown")
            assert (await client.receive())["error_code"] == "no_active_session"


async def test_a_second_connection_takes_the_session_over() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 60, abort_seconds=0.02)
    async with serving(engine) as running, running.client() as first, running.client() as second:
        await first.send(type="start", session_id="s1", user_utterance="one", request_id="r1")
        await first.until("token")
        frames = await second.turn(user_utterance="two", request_id="r2")
        assert frames[-1]["usage"]["completion_tokens"] == 60
        assert engine.most_held == 1
        assert (await first.until("done"))[-1] == {"type": "done", "cancelled": True, "request_id": "r1"}
        await first.send(type="followup", analysis_text="a cat")
        assert (await first.receive())["error_code"] == "no_active_session"


async def test_another_session_on_the_same_connection_ends_the_running_turn() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 60)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one", request_id="r1")
        await client.until("token")
        await client.send(type="start", session_id="s2", user_utterance="two", request_id="r2")
        assert (await client.until("done"))[-1] == {"type": "done", "cancelled": True, "request_id": "r1"}
        frames = await client.until("done")
        assert frames[0]["session_id"] == "s2"
        assert "one" not in prompt(running)


async def test_chat_prompt_replaces_the_persona_from_the_next_turn_on() -> None:
    async with serving(chat_prompt_update_max_per_window=2) as running, running.client() as client:
        await client.send(type="chat_prompt", persona_text="early")
        assert (await client.receive())["error_code"] == "no_active_session"
        await client.turn(user_utterance="one", persona_text="old")
        answers = []
        for persona in ("new", "new", "word " * 2001, "newer", "newest", ""):
            await client.send(type="chat_prompt", persona_text=persona, request_id=persona[:6])
            answers.append(await client.receive())
        assert [answer["code"] for answer in answers] == [200, 204, 413, 200, 429, 400]
        assert [answer["ok"] for answer in answers] == [True, True, False, True, False, False]
        assert all((answer["type"], answer["for"]) == ("ack", "chat_prompt") for answer in answers)
        assert [answer["request_id"] for answer in answers] == ["new", "new", "word w", "newer", "newest", ""]
        assert answers[4]["retry_in"] > 0
        await client.turn(user_utterance="two")
        assert prompt(running).startswith("[system] newer [user] one")


async def test_however_many_update_a_persona_at_once_no_more_of_them_do_than_may() -> None:
    waiting, gate = 0, asyncio.Event()

    async def persona_excess(*_: object) -> None:
        nonlocal waiting
        waiting += 1
        await gate.wait()

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(chat_prompt_update_max_per_window=2))
        async with running.client() as client:
            await client.turn(session_id="shared", user_utterance="one", persona_text="old")
        assert running.service.deployment is not None
        chat = running.service.deployment.chat
        assert chat is not None
        chat.persona_excess = persona_excess  # type: ignore[method-assign,assignment]
        clients = [await stack.enter_async_context(running.client()) for _ in range(6)]
        for number, client in enumerate(clients):
            await client.send(type="chat_prompt", session_id="shared", persona_text=f"new {number}")
        await eventually(lambda: waiting == len(clients))
        gate.set()
        answers = [await client.receive() for client in clients]
    assert sorted(answer["code"] for answer in answers) == [200, 200, 429, 429, 429, 429]
    assert {answer.get("error_code") for answer in answers} == {None, "chat_prompt_rate_limited"}


async def test_a_persona_that_is_too_long_changes_nothing_and_stops_nothing() -> None:
    engine = ScriptedEngine(pause=0.01, reply=["word "] * 20)
    async with serving(engine, renderer=ScriptedRenderer(Budgets(persona=3))) as running, running.client() as client:
        await client.send(type="start", session_id="s1", user_utterance="one", persona_text="a b c")
        await client.until("token")
        long = "one two three four"
        await client.send(type="start", session_id="s1", user_utterance="two", persona_text=long, request_id="r2")
        await client.send(type="warm_persona", persona_text=long, request_id="w")
        frames = await client.until("done")
        errors = [frame for frame in frames if frame["type"] == "error"]
        assert [frame["error_code"] for frame in errors] == ["chat_prompt_too_long"] * 2
        assert [frame["request_id"] for frame in errors] == ["r2", "w"]
        assert frames[-1]["usage"]["completion_tokens"] == 20
        await client.turn(user_utterance="three")
        assert prompt(running).startswith("[system] a b c [user] one")


async def test_followup_speaks_about_the_analysis_without_a_decision() -> None:
    async with serving(classifier=ScriptedClassifier()) as running, running.client() as client:
        await client.send(type="followup", analysis_text="a cat", request_id="f0")
        frame = await client.receive()
        assert (frame["error_code"], frame["request_id"]) == ("no_active_session", "f0")
        await client.turn(user_utterance="look", screen_checked_prefix="SEEN:", runtime_text="late", temperature=0.5)
        await client.send(type="followup", analysis_text="a cat", sampling={"temperature": 0.1}, request_id="f")
        frames = await client.until("done")
        assert [frame["type"] for frame in frames if frame["type"] != "token"] == ["ack", "final", "done"]
        assert frames[0]["for"] == "followup"
        assert prompt(running) == f"[system] late [user] look [assistant] {TEXT} [user] SEEN: a cat"
        assert running.engine.samplings[-1].temperature == 0.1
        await client.turn(user_utterance="thanks")
        assert prompt(running).endswith(f"[user] SEEN: a cat [assistant] {TEXT} [user] thanks")
        assert running.engine.samplings[-1].temperature == 0.5


async def test_warming_prefills_what_the_next_start_renders() -> None:
    async with serving() as running, running.client() as client:
        await client.send(type="warm_persona", persona_text="Grüße", request_id="w")
        frame = await client.receive()
        assert frame == {"type": "warmed", "segment": "persona_static", "tokens": 2, "bytes": 7, "request_id": "w"}
        history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        await client.send(type="warm_history", history=history, persona_text="Mia", runtime_text="late")
        assert (await client.receive())["segment"] == "history"
        await client.turn(user_utterance="c", history=history, persona_text="Mia", runtime_text="late")
        warmed, started = running.engine.warmed[-1], running.engine.prompts[-1]
        assert started[: len(warmed)] == warmed
        await client.send(type="warm_history", history=history)
        await client.receive()
        assert running.engine.warmed[-1][:2] == ["[system]", "Mia"]


class Mute(ScriptedEngine):
    """Replies to prompts of any tokenizer."""

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, each: Callable[[Delta], None], cache_salt: str | None = None
    ) -> None:
        await super().generate([], sampling, each, cache_salt)


async def test_a_history_of_a_whole_frame_is_answered_within_a_tenth_of_a_second(tmp_path: Path) -> None:
    renderer = PromptRenderer(chat_templates.write("chatml", tmp_path), Budgets())
    times = []
    async with serving(Mute(), renderer=renderer) as running, running.client() as client:
        for attempt in range(3):  # each a new text, so that nothing comes out of a cache
            text = "\n\n".join(
                f"{'Assistant' if number % 2 else 'User'}: the cat said {attempt} {number} {'and so on ' * 20}"
                for number in range(1070)
            )
            assert 245_000 < len(text) < 255_000
            began = time.process_time()  # client and server; what else the machine does is not counted
            frames = await client.turn(history_text=text, user_utterance="and then", session_id=f"s{attempt}")
            times.append(time.process_time() - began)
            assert 2500 < frames[-1]["usage"]["prompt_tokens"] <= 5525
    assert min(times) < 0.1, times


async def test_a_warm_that_fails_says_so() -> None:
    async with serving(renderer=ScriptedRenderer(error=None)) as running, running.client() as client:
        running.engine.dead = True
        await client.send(type="warm_persona", persona_text="p", request_id="w")
        frame = await client.receive()
        assert (frame["error_code"], frame["request_id"]) == ("generation_failed", "w")
