"""A prepared reply: made before its `start`, seen by nobody until then, told at once to the one that asks the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.engines import EngineDeadError
from tests.harness.scripted import REPLY, Client, Running, ScriptedClassifier, ScriptedEngine, serving
from tests.harness.waiting import eventually

TEXT = "".join(REPLY)
LONG = tuple(f" w{number}" for number in range(20))
# What a `start` may say, each of which changes the reply.
ASKED = {
    "session_id": "s1",
    "user_utterance": "hello there",
    "persona_text": "You are Mia.",
    "runtime_text": "Be kind.",
}


def outcomes(running: Running) -> dict[str, float]:
    """What became of prepared replies, those that happened."""
    found = {}
    for line in running.service.metrics.render().decode().splitlines():
        if line.startswith("yap_prepared_replies_total{"):
            name, value = line.removeprefix('yap_prepared_replies_total{outcome="').split('"} ')
            found[name] = float(value)
    return {name: value for name, value in found.items() if value}


def wasted(running: Running) -> float:
    lines = running.service.metrics.render().decode().splitlines()
    return float(next(line for line in lines if line.startswith("yap_prepared_wasted_tokens_total ")).split()[1])


async def prepared(running: Running, client: Client, **message: Any) -> None:
    """Send a `prepare` and wait until the engine has made all that it will of it."""
    before = len(running.engine.prompts)
    await client.send(**{"type": "prepare", **ASKED, **message})
    await eventually(lambda: len(running.engine.prompts) > before and not running.engine.held)


@pytest.mark.parametrize("classifier", [None, ScriptedClassifier()])
@pytest.mark.parametrize("utterance", ["hello there", "look here", ""])
async def test_a_start_that_asks_the_same_gets_what_is_there_under_its_own_id(
    classifier: ScriptedClassifier | None, utterance: str
) -> None:
    engine = ScriptedEngine()
    async with serving(engine, classifier) as running, running.client() as client:
        plain = await client.turn(**ASKED | {"session_id": "plain", "user_utterance": utterance})
        await prepared(running, client, request_id="p", user_utterance=utterance)
        assert await client.silent()
        made = len(engine.prompts)
        frames = await client.turn(**ASKED | {"user_utterance": utterance}, request_id="t")
        assert len(engine.prompts) == made
        assert {frame["request_id"] for frame in frames} == {"t"}
        assert [frame["type"] for frame in frames] == [
            "ack",
            *(["toolcall"] if classifier else []),
            "token",
            "final",
            "done",
        ]
        assert frames[-2]["normalized_text"] == TEXT
        calls = [frame["status"] for frame in frames if frame["type"] == "toolcall"]
        assert calls == [frame["status"] for frame in plain if frame["type"] == "toolcall"]
        usage, before = frames[-1]["usage"], plain[-1]["usage"]
        assert usage.pop("prepared") is True
        assert "prepared" not in before
        for times in (usage, before):
            assert 0 <= times.pop("ttft_ms") <= times.pop("duration_ms")
        assert usage == before
        assert outcomes(running) == {"hit": 1}
        assert wasted(running) == 0
        assert not engine.held


async def test_tool_only_is_prepared_too() -> None:
    classifier = ScriptedClassifier()
    async with serving(classifier=classifier, chat=False) as running, running.client() as client:
        await client.send(type="prepare", **ASKED, persona_style="kind")
        await eventually(lambda: classifier.asked)
        assert await client.silent()
        frames = await client.turn(**ASKED | {"persona_text": "another, which is not read"})
        assert [frame["type"] for frame in frames] == ["ack", "toolcall", "done"]
        assert len(classifier.asked) == 1
        assert outcomes(running) == {"hit": 1}


async def test_it_becomes_a_turn_of_the_history_only_with_its_start() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as running, running.client() as client:
        await prepared(running, client)
        assert running.service.sessions is not None
        assert len(running.service.sessions) == 0
        await client.turn(**ASKED)
        await client.turn(session_id="s1", user_utterance="and now")
        words = " ".join(engine.prompts[-1])
        assert words == f"[system] You are Mia. [user] hello there [assistant] {TEXT} [user] and now"
        await prepared(running, client, user_utterance="never said")
        await client.turn(session_id="s1", user_utterance="more")
        assert "never" not in engine.prompts[-1]


SAME: list[dict[str, Any]] = [
    {"sampling": {"temperature": 0.8}},
    {"sampling": {"top_p": "0.95", "sanitize_output": True}},
    {"temperature": 0.8, "max_tokens": 150, "stop": []},
    {"history": []},
    {"history_text": ""},
    {"gender": "woman", "persona_style": "kind", "user_identity": "man"},
    {"screen_checked_prefix": "SEEN:"},
    {"check_screen_prefix": "MUST CHECK SCREEN:"},
    {"traceparent": "x"},
    {"personalities": {"a": ["b"]}},
    {"persona_text": None, "chat_prompt": "You are Mia."},
]


@pytest.mark.parametrize("first", [True, False])
async def test_a_field_that_is_left_out_is_the_same_as_one_with_its_default(first: bool) -> None:
    async with serving(ws_max_messages_per_window=0) as running, running.client() as client:
        for number, more in enumerate(SAME):
            asked = {**ASKED, "session_id": f"s{number}"}
            await prepared(running, client, **asked | (more if first else {}))
            frames = await client.turn(**asked | ({} if first else more))
            assert frames[-1]["usage"].get("prepared") is True, more
            assert outcomes(running) == {"hit": number + 1}


OTHER: list[dict[str, Any]] = [
    {"session_id": "another"},
    {"user_utterance": "hello there!"},
    {"user_utterance": ""},
    {"persona_text": "You are Max."},
    {"persona_text": ""},
    {"runtime_text": ""},
    {"history": [{"role": "user", "content": "hm"}]},
    {"history_text": "User: hm"},
    {"sampling": {"temperature": 0.7}},
    {"top_k": 3},
    {"sampling": {"seed": 3}},
    {"sampling": {"stop": ["x"]}},
    {"sampling": {"max_tokens": 3}},
    {"sampling": {"sanitize_output": False}},
    {"sampling": {"frequency_penalty": 0.1}},
    {"check_screen_prefix": "LOOK:"},
]


@pytest.mark.parametrize("first", [True, False])
async def test_a_start_that_asks_something_else_has_its_reply_made_anew(first: bool) -> None:
    engine = ScriptedEngine()
    async with serving(engine, ws_max_messages_per_window=0) as running, running.client() as client:
        for number, more in enumerate(OTHER):
            asked = {**ASKED, "session_id": f"s{number}"}
            await prepared(running, client, **asked | (more if first else {}))
            frames = await client.turn(**asked | ({} if first else more))
            assert "prepared" not in frames[-1]["usage"], more
            again = await client.turn(**asked | (more if first else {}))  # nothing is left of it
            assert "prepared" not in again[-1]["usage"], more
            assert len(engine.prompts) == 3 * (number + 1)
            assert outcomes(running) == {"miss": number + 1}
            assert wasted(running) == len(REPLY) * (number + 1)


async def test_what_the_session_has_is_part_of_what_is_asked() -> None:
    async with serving() as running, running.client() as client:
        await client.turn(**ASKED, sampling={"temperature": 0.3})
        await prepared(running, client, user_utterance="and now", persona_text=None)
        frames = await client.turn(**ASKED | {"user_utterance": "and now"})
        assert frames[-1]["usage"]["prepared"] is True
        await prepared(running, client, user_utterance="and then")
        await client.send(type="chat_prompt", persona_text="You are Max.", session_id="s1")
        await client.receive()
        frames = await client.turn(session_id="s1", user_utterance="and then")
        assert "prepared" not in frames[-1]["usage"]
        assert outcomes(running) == {"hit": 1, "miss": 1}


@pytest.mark.parametrize("rest", ["before", "while it is made", "after"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0, "seed": 3}, {"stop": [" w18"]}, {"max_tokens": 20}])
async def test_a_longer_reply_rests_and_goes_on_behind_what_was_made(rest: str, sampling: dict[str, Any]) -> None:
    def script(words: list[str]) -> list[str]:
        said = len([word for word in words if word.startswith("w")])
        return list(LONG[said:])

    engine = ScriptedEngine(script=script)
    bound = {"before": 8, "while it is made": 8, "after": 30}[rest]
    async with serving(engine, prepare_max_tokens=bound) as running, running.client() as client:
        plain = await client.turn(**ASKED | {"session_id": "plain"}, sampling=sampling)
        engine.pause = 0.02 if rest == "while it is made" else 0.0
        await client.send(type="prepare", **ASKED, sampling=sampling)
        if rest == "while it is made":
            await eventually(lambda: len(engine.prompts) == 2)
        else:
            await eventually(lambda: len(engine.prompts) == 2 and not engine.held)
            await asyncio.sleep(0.02)
        frames = await client.turn(**ASKED, sampling=sampling)
        assert frames[-2]["normalized_text"] == plain[-2]["normalized_text"]
        usage, before = frames[-1]["usage"], plain[-1]["usage"]
        same = ("prompt_tokens", "cached_tokens", "completion_tokens", "finish_reason")
        assert {name: usage[name] for name in same} == {name: before[name] for name in same}
        assert usage["prepared"] is True
        assert len(engine.prompts) == (3 if rest == "before" else 2)
        if rest == "before":
            assert engine.prompts[2] == engine.prompts[1] + [word.strip() for word in LONG[:8]]
            assert engine.samplings[2].max_tokens == engine.samplings[1].max_tokens - 8
            assert engine.salts[2] == engine.salts[1]
        assert not engine.held


@pytest.mark.parametrize("sampling", [{"seed": 3}, {"presence_penalty": 0.2}, {"frequency_penalty": 0.2}])
async def test_a_reply_that_cannot_be_cut_is_made_anew(sampling: dict[str, Any]) -> None:
    engine = ScriptedEngine(reply=LONG)
    async with serving(engine, prepare_max_tokens=8) as running, running.client() as client:
        await prepared(running, client, sampling=sampling)
        assert not engine.held
        frames = await client.turn(**ASKED, sampling=sampling)
        assert frames[-1]["usage"]["completion_tokens"] == len(LONG)
        assert "prepared" not in frames[-1]["usage"]
        assert engine.prompts[0] == engine.prompts[1]
        assert outcomes(running) == {"miss": 1}
        assert wasted(running) == 8
        await prepared(running, client, sampling=sampling, user_utterance="short", max_tokens=9)


async def test_it_is_held_for_its_time_and_no_longer() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine, prepare_ttl_s=0.1) as running, running.client() as client:
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: engine.held)
        await eventually(lambda: not engine.held)
        assert outcomes(running) == {"expired": 1}
        engine.gate = None
        frames = await client.turn(**ASKED)
        assert "prepared" not in frames[-1]["usage"]
        assert running.service.sessions is not None
        assert len(running.service.sessions.prepared) == 0


@pytest.mark.parametrize("end", ["hit", "miss", "ended", "expired"])
async def test_nothing_of_what_was_said_is_kept_of_one_that_is_over(end: str) -> None:
    async with serving(prepare_ttl_s=0.5 if end == "expired" else 600.0) as running, running.client() as client:
        await prepared(running, client)
        (connection,) = running.service.connections
        preparing = connection._handler._preparing  # type: ignore[union-attr]
        (reply,) = preparing._open
        if end == "ended":
            await client.send(type="cancel")
            await client.until("done")
        elif end != "expired":
            await client.turn(**ASKED | ({} if end == "hit" else {"user_utterance": "goodbye"}))
        await eventually(lambda: outcomes(running) == {end: 1})
        await eventually(lambda: (reply._request, reply._held) == (None, None))
        assert reply.over


async def test_a_newer_one_takes_its_place_also_from_another_connection() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as running, running.client() as client, running.client() as other:
        await prepared(running, client, user_utterance="one")
        await prepared(running, client, user_utterance="two")
        assert outcomes(running) == {"replaced": 1}
        await prepared(running, other, user_utterance="three")
        assert outcomes(running) == {"replaced": 2}
        frames = await client.turn(**ASKED | {"user_utterance": "three"})  # it is the other's
        assert "prepared" not in frames[-1]["usage"]
        assert outcomes(running) == {"replaced": 2, "miss": 1}
        await prepared(running, client, user_utterance="four")
        frames = await other.turn(**ASKED | {"user_utterance": "four"})
        assert "prepared" not in frames[-1]["usage"]
        assert outcomes(running) == {"replaced": 2, "miss": 2}


async def test_another_key_s_session_of_the_same_name_is_another_session() -> None:
    async with (
        serving(text_api_key="one,two") as running,
        running.client("one") as one,
        running.client("two") as two,
    ):
        await prepared(running, one)
        frames = await two.turn(**ASKED)
        assert "prepared" not in frames[-1]["usage"]
        frames = await one.turn(**ASKED)
        assert frames[-1]["usage"]["prepared"] is True


async def test_a_cancel_ends_it_and_is_answered_when_the_engine_holds_nothing_of_it() -> None:
    engine = ScriptedEngine(gate=asyncio.Event(), abort_seconds=0.05)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: engine.held)
        await client.send(type="cancel", request_id="c")
        assert await client.receive() == {"type": "done", "cancelled": True, "request_id": "c"}
        assert not engine.held
        assert outcomes(running) == {"ended": 1}


async def test_a_cancel_is_answered_before_the_turn_behind_it_begins() -> None:
    engine = ScriptedEngine(gate=asyncio.Event(), abort_seconds=0.05)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: engine.held)
        await client.send(type="cancel", request_id="c")
        await client.send(type="start", **ASKED, request_id="t")
        assert (await client.receive())["request_id"] == "c"
        assert (await client.receive())["type"] == "ack"
        engine.gate.set()
        assert "prepared" not in (await client.until("done"))[-1]["usage"]


@pytest.mark.parametrize("end", ["followup", "disconnect", "drain", "end"])
async def test_it_ends_with(end: str) -> None:
    engine = ScriptedEngine()
    async with serving(engine) as running, running.client() as client:
        await client.turn(**ASKED)
        engine.gate = asyncio.Event()
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: engine.held)
        if end == "followup":
            await client.send(type="followup", analysis_text="a cat")
            await eventually(lambda: len(engine.prompts) == 3)
            engine.gate.set()
            await client.until("done")
        elif end == "drain":
            running.service.drain()
            await client.until("draining")
        elif end == "end":
            await client.send(type="end")
            await client.until("connection_closed")
        else:
            await client.socket.close()
        await eventually(lambda: not engine.held)
        await eventually(lambda: outcomes(running) == {"ended": 1})


async def test_a_running_turn_goes_on_and_is_ended_by_the_start_alone() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", **ASKED | {"user_utterance": "first"}, request_id="t1")
        assert (await client.receive())["type"] == "ack"
        await eventually(lambda: engine.held)
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: len(engine.held) == 2)
        # As a `start` at that moment would find it: the words that it interrupts are said.
        assert " ".join(engine.prompts[1]) == "[system] You are Mia. Be kind. [user] first [user] hello there"
        await client.send(type="start", **ASKED, request_id="t2")
        frames = await client.until("done")
        assert frames == [{"type": "done", "cancelled": True, "request_id": "t1"}]
        engine.gate.set()
        frames = await client.until("done")
        assert frames[-1]["usage"]["prepared"] is True
        assert len(engine.prompts) == 2


async def test_what_has_been_said_since_makes_it_another_conversation() -> None:
    engine = ScriptedEngine(reply=LONG, pause=0.01)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="start", **ASKED | {"user_utterance": "first"}, request_id="t1")
        await client.until("token")
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: len(engine.prompts) == 2)
        done = await client.until("done")
        assert done[-1]["request_id"] == "t1"
        assert "usage" in done[-1]
        frames = await client.turn(**ASKED)
        assert "prepared" not in frames[-1]["usage"]


@pytest.mark.parametrize("asked_for", [False, True])
async def test_one_that_fails_is_told_and_the_start_has_its_own_try(asked_for: bool) -> None:
    engine = ScriptedEngine(fail_after=1, gate=asyncio.Event())
    async with serving(engine) as running, running.client() as client:
        await client.send(type="prepare", **ASKED, request_id="p")
        await eventually(lambda: engine.held)
        if asked_for:
            await client.send(type="start", **ASKED, request_id="t")
            assert (await client.receive())["type"] == "ack"
        engine.gate.set()
        frame = await client.receive()
        if asked_for:
            assert (await client.until("error"))[-1]["request_id"] == "t"
            assert (await client.receive())["failed"] is True
            assert outcomes(running) == {"hit": 1}
            return
        assert (frame["type"], frame["error_code"], frame["request_id"]) == ("error", "generation_failed", "p")
        assert outcomes(running) == {"failed": 1}
        engine.fail_after = None
        assert (await client.turn(**ASKED))[-1]["usage"]["completion_tokens"] == len(REPLY)


async def test_the_engine_s_death_is_told_by_it() -> None:
    engine = ScriptedEngine(error=EngineDeadError("gone"), fail_after=0)
    async with serving(engine) as running, running.client() as client:
        await client.send(type="prepare", **ASKED)
        await eventually(lambda: running.service.phase.value == "dead")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"session_id": None}, "missing_session_id"),
        ({"sampling": {"temperature": 9}}, "temperature_out_of_range"),
        ({"persona_text": "word " * 2001}, "chat_prompt_too_long"),
    ],
)
async def test_it_is_answered_by_errors_alone(message: dict[str, Any], code: str) -> None:
    async with serving() as running, running.client() as client:
        await client.send(type="prepare", **ASKED | message, request_id="p")
        frame = await client.receive()
        assert (frame["type"], frame["error_code"], frame["request_id"]) == ("error", code, "p")
        assert await client.silent()
        assert not running.engine.prompts


async def test_its_rate_limit_is_its_own_and_survives_reconnecting() -> None:
    limits = {"ws_max_prepares_per_window": 2, "ws_max_messages_per_window": 1}
    async with serving(**limits) as running:
        async with running.client() as client:
            await prepared(running, client)
            await client.send(type="prepare", session_id=3)
            assert (await client.receive())["error_code"] == "invalid_session_id"
            for message in ({"type": "prepare", **ASKED}, {"type": "prepare", "session_id": 3}):
                await client.send(**message, request_id="p")
                frame = await client.receive()
                assert (frame["error_code"], frame["request_id"]) == ("prepare_rate_limited", "p")
                assert frame["retry_in"] > 0
            assert (await client.turn(**ASKED))[-1]["usage"]["prepared"] is True
        async with running.client() as client:
            await client.send(type="prepare", **ASKED)
            assert (await client.receive())["error_code"] == "prepare_rate_limited"


async def test_it_never_counts_as_a_turn() -> None:
    async with serving() as running, running.client() as client:
        await prepared(running, client)
        await prepared(running, client)
        page = running.service.metrics.render().decode()
        assert 'yap_turns_total{outcome="done"} 0.0' in page
        assert 'yap_tokens_total{kind="completion"} 0.0' in page
        assert running.service.keyring.principals[0].turns == 0


async def test_it_gives_way_to_turns_and_takes_no_place_that_they_need() -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    async with serving(engine) as running, running.client() as one, running.client() as two:
        deployment = running.service.deployment
        assert deployment is not None
        assert deployment.chat is not None
        places = deployment.chat.places
        places._most = 1
        await one.send(type="prepare", **ASKED)
        await eventually(lambda: places.lent == 1 and engine.held)
        await two.send(type="start", session_id="s2", user_utterance="now")
        await eventually(lambda: outcomes(running) == {"displaced": 1})
        await eventually(lambda: places.turns == 1 and len(engine.held) == 1)
        await one.send(type="prepare", **ASKED)
        await eventually(lambda: outcomes(running) == {"displaced": 2})
        assert len(engine.prompts) == 2
        engine.gate.set()
        assert "usage" in (await two.until("done"))[-1]
        assert (places.turns, places.lent) == (0, 0)
        await prepared(running, one)
        assert places.lent == 0  # it is whole: the engine holds nothing of it
        assert (await one.turn(**ASKED))[-1]["usage"]["prepared"] is True


async def test_nothing_is_prepared_where_that_is_switched_off() -> None:
    async with serving(prepare_max_tokens=0) as running, running.client() as client:
        await client.send(type="prepare", **ASKED)
        assert "prepared" not in (await client.turn(**ASKED))[-1]["usage"]
        assert len(running.engine.prompts) == 1
