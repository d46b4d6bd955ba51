"""The runtime as users run it: a real artifact, the real engine, a real socket.

`YAP_TEST_ARTIFACT=DIR` runs these on an artifact that exists, such as one that was made on a GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import connect as open_socket

from tests.client import Options, TurnRecord, connect
from tests.harness.scripted import Client
from tests.harness.server import Server
from tests.messages.conversation import TURNS
from tests.prompts.detailed import PERSONAS
from yap_client import Ack, Done, Final, RefusedError, Sampling, Talk, Token, ToolCall

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="function")]

PERSONA = PERSONAS["anna_wholesome"][1]
# Two servers are up at once in some tests; on a GPU there must be room for both.
SHARE = {"CHAT_GPU_FRAC": "0.35", "TOOL_GPU_FRAC": "0.1"}
STORY = "Tell me a very long story about a lighthouse, and do not stop."


@pytest.fixture(scope="session")
def served_artifact(artifact_of: Callable[[str], Path]) -> Path:
    given = os.environ.get("YAP_TEST_ARTIFACT")
    return Path(given) if given else artifact_of("int8")


@pytest.fixture(scope="session")
def server(served_artifact: Path) -> Iterator[Server]:
    with Server(served_artifact, **SHARE, WS_MAX_MESSAGES_PER_WINDOW="0", WS_MAX_CANCELS_PER_WINDOW="0") as running:
        running.wait_ready()
        yield running
        assert running.stop() == 0, running.log_tail()


def options(server: Server) -> Options:
    return Options(url=server.url, api_key=server.api_key)


def gauge(server: Server, name: str) -> float:
    """One of the server's figures."""
    with urllib.request.urlopen(server.http + "/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, f"no {name} in /metrics"
    return float(found.group(1))


async def settled(server: Server) -> tuple[float, float]:
    """Running and waiting requests by the scheduler's own count, asked anew (the server asks twice a second)."""
    await asyncio.sleep(1.2)
    return tuple(gauge(server, f'yap_engine_requests{{state="{state}"}}') for state in ("running", "waiting"))


async def whole(talk: Talk, utterance: str, **facts: str) -> TurnRecord:
    """One turn, from its beginning to its end."""
    return await TurnRecord(talk.say(utterance, **facts)).whole()


async def test_a_turn_streams_in_the_contract_s_order_and_its_tokens_are_the_final_text(server: Server) -> None:
    async with connect(options(server), persona=PERSONA) as talk:
        turn = await whole(talk, TURNS[0])
    kinds = [type(event) for event in turn.events]
    assert kinds[:2] == [Ack, ToolCall]
    assert kinds[-2:] == [Final, Done]
    assert set(kinds[2:-2]) == {Token}
    assert len(kinds) > 6, "the reply did not stream"
    assert turn.text == turn.final
    assert turn.text.strip()
    assert {event.request_id for event in turn.events} == {turn.turn.request_id}
    usage = turn.usage
    assert usage.finish_reason in ("stop", "length")
    assert 0 < usage.completion_tokens <= 150
    assert usage.prompt_tokens > 50
    assert usage.ttft_ms is not None
    assert usage.ttft_ms <= usage.duration_ms


async def test_the_classifier_asks_for_a_screenshot_and_the_reply_still_streams(server: Server) -> None:
    async with connect(options(server)) as talk:
        looked = await whole(talk, "Can you look at my screen and tell me what you see?")
        chatted = await whole(talk, "I slept badly and it rains all day.")
    assert looked.tool.status == "yes"
    (called,) = looked.tool.raw
    assert called.name == "take_screenshot"
    assert called.probability > 0.5
    assert chatted.tool.status == "no"
    assert looked.ok
    assert looked.text.strip()


async def test_a_followup_continues_without_a_decision(server: Server) -> None:
    async with connect(options(server)) as talk:
        await whole(talk, "Please look at this drawing.")
        turn = await TurnRecord(talk.followup("A child's drawing of a red house beside a pond.")).whole()
    assert turn.ok
    assert turn.tool is None
    assert turn.text.strip()


async def test_openais_client_meets_the_same_model_tools_and_cache(server: Server) -> None:
    persona = "\n".join([PERSONA] * 6)  # several blocks of the cache
    look: Any = [{"role": "system", "content": persona}, {"role": "user", "content": "Please look at this drawing."}]
    tools: Any = [{"type": "function", "function": {"name": "take_screenshot"}}]
    async with AsyncOpenAI(base_url=f"{server.http}/v1", api_key=server.api_key, max_retries=0) as client:
        (model,) = [one.id async for one in client.models.list()]
        ask = client.chat.completions.create
        decided = await ask(model=model, messages=look, tools=tools)
        (call,) = decided.choices[0].message.tool_calls or ()
        seen = {"role": "tool", "tool_call_id": call.id, "content": "A child's drawing of a red house beside a pond."}
        answer = await ask(model=model, messages=[*look, decided.choices[0].message, seen], tools=tools, max_tokens=20)
        assert (answer.choices[0].message.content or "").strip()
        assert answer.choices[0].finish_reason in {"stop", "length"}
        stream = await ask(
            model=model, messages=look, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]).strip()
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        # The persona lies in the cache of the key, from the request before.
        assert (usage.prompt_tokens_details.cached_tokens or 0) > usage.prompt_tokens / 2
        assert usage.completion_tokens <= 20
        broken = await ask(model=model, messages=[{"role": "user", "content": STORY}], stream=True)
        async for chunk in broken:
            if chunk.choices[0].delta.content:
                break
        await broken.close()
        assert await settled(server) == (0, 0)


async def test_after_done_cancelled_the_scheduler_holds_nothing(server: Server) -> None:
    async with connect(options(server)) as talk:
        turn = await TurnRecord(talk.say(STORY)).first_token()
        await talk.cancel()
        assert (await turn.whole()).cancelled
        assert await settled(server) == (0, 0)


async def test_a_disconnect_aborts_the_turn_in_the_engine(server: Server) -> None:
    async with connect(options(server)) as talk:
        await TurnRecord(talk.say(STORY)).first_token()
    assert await settled(server) == (0, 0)
    assert gauge(server, "yap_connections_active") == 0


async def test_a_barge_in_ends_the_old_turn_before_the_new_one_is_acknowledged(server: Server) -> None:
    async with connect(options(server)) as talk:
        old = await TurnRecord(talk.say(STORY)).first_token()
        new = TurnRecord(talk.say("Wait, what is the capital of France?"))
        await old.whole()
        assert old.cancelled
        await new.whole()
    assert {event.request_id for event in old.events} == {old.turn.request_id}
    assert {event.request_id for event in new.events} == {new.turn.request_id}
    assert isinstance(new.events[0], Ack)
    assert new.ok
    assert await settled(server) == (0, 0)


async def test_repeated_cancels_are_each_answered_and_leave_nothing(server: Server) -> None:
    """With messages of its own: a client sends one cancel for a turn."""
    async with open_socket(server.url, additional_headers={"X-API-Key": server.api_key}) as socket:
        client = Client(socket)
        await client.send(type="cancel", request_id=0)
        assert (await client.receive())["cancelled"]
        await client.send(type="start", session_id="cancels", user_utterance=STORY)
        for number in (1, 2, 3):
            await client.send(type="cancel", request_id=number)
        answered = [(await client.until("done"))[-1]["request_id"] for _ in range(3)]
        assert answered == [1, 2, 3]
        again = await client.turn(session_id="cancels", user_utterance="Are you still there?")
        assert "usage" in again[-1]
    assert await settled(server) == (0, 0)


async def test_cancels_during_warming_and_followups_behave(server: Server) -> None:
    async with connect(options(server), persona=PERSONA) as talk:
        await whole(talk, "Hello.")
        warming = asyncio.create_task(talk.warm(persona=PERSONA + " You also like chess."))
        turn = TurnRecord(talk.followup("A very long essay about lighthouses is on the screen."))
        await turn.first_token()
        await talk.cancel()
        assert (await turn.whole()).cancelled
        assert (await warming).segment == "persona_static"
    assert await settled(server) == (0, 0)


async def test_eight_clients_at_once_each_get_their_own_reply(server: Server) -> None:
    async def one(number: int) -> TurnRecord:
        async with connect(options(server)) as talk:
            return await whole(talk, f"My name is Number{number}. {TURNS[number]}")

    turns = await asyncio.gather(*(one(number) for number in range(8)))
    assert all(turn.ok and turn.text.strip() for turn in turns), [turn.problem for turn in turns]
    assert await settled(server) == (0, 0)


async def test_a_warmed_history_is_found_in_the_cache_by_the_start_that_matches(server: Server) -> None:
    history = [{"role": role, "content": f"{text} {text}"} for text in TURNS[:6] for role in ("user", "assistant")]
    now = "It is Sunday evening."
    async with connect(options(server), persona=PERSONA + " You collect stamps.") as talk:
        talk.set_history(history)
        warmed = await talk.warm(runtime_text=now)
        assert warmed.segment == "history"
        turn = await TurnRecord(talk.say("And what do you think?", runtime_text=now)).whole()
    usage = turn.usage
    assert warmed.tokens > 0
    assert usage.cached_tokens >= warmed.tokens, (usage, warmed.tokens)
    assert usage.cached_tokens > 0.6 * usage.prompt_tokens, usage


async def test_a_seed_repeats_a_reply_and_stop_and_max_tokens_end_it(server: Server) -> None:
    drawn: Sampling = {"temperature": 1.0, "seed": 11, "max_tokens": 12, "sanitize_output": False}

    async def reply(sampling: Sampling) -> TurnRecord:
        async with connect(options(server), sampling={**drawn, **sampling}) as talk:
            return await whole(talk, "Tell me a story about stamps.")

    first = await reply({})  # fills the cache, so that the others are computed alike
    first, second, other = [await reply({"seed": 11 + number // 2}) for number in range(3)]
    assert first.text == second.text != other.text
    assert first.usage.completion_tokens == 12
    assert first.usage.finish_reason == "length"
    stop = first.text[len(first.text) // 2 :][:3]
    stopped = await reply({"stop": ["never said", stop]})
    assert stopped.text == first.text[: first.text.index(stop)]
    assert stopped.usage.finish_reason == "stop"
    assert await settled(server) == (0, 0)


async def test_a_conversation_grows_and_reuses_its_own_prefix(server: Server) -> None:
    async with connect(options(server), persona=PERSONA) as talk:
        shares = []
        for utterance in TURNS[:5]:
            turn = await whole(talk, utterance)
            assert turn.ok
            shares.append(turn.usage.cached_tokens / turn.usage.prompt_tokens)
    assert shares[-1] > 0.5, shares


TESTS = Path(__file__).resolve().parents[1]
COMMANDS = {
    "warmup": ["--double-ttfb"],
    "bench": ["-n", "4", "-c", "2"],
    "live": ["Hello there.", "--persona", "mark_coach"],
    "conversation": [],
    "personality": ["--switches", "2", "--delay", "0"],
    "gender": ["--switches", "1", "--delay", "0"],
    "screen_analysis": [],
    "tool": ["--limit", "20", "--timeout", "20"],
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_commands_do_what_they_say(server: Server, command: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", f"{command}.py", *COMMANDS[command], "--server", server.url],
        cwd=TESTS,
        env={**os.environ, "TEXT_API_KEY": server.api_key},
        input="/persona anna_flirty\nAnd you?\n/stop\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_classifier_alone_decides_and_says_nothing(served_artifact: Path) -> None:
    with Server(served_artifact, **SHARE, DEPLOY_MODE="tool") as alone:
        alone.wait_ready()
        async with connect(options(alone)) as talk:
            looked = await whole(talk, "Can you look at my screen?", gender="woman")
            chatted = await whole(talk, "I slept badly and it rains all day.")
            with pytest.raises(RefusedError, match="chat_not_deployed"):
                await talk.warm(persona=PERSONA)
        assert [type(event) for event in looked.events] == [Ack, ToolCall, Done]
        assert (looked.tool.status, chatted.tool.status) == ("yes", "no")
        assert alone.stop() == 0


def engine_processes(server: Server) -> list[int]:
    """The ids of vLLM's engine processes under a server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server.process.pid and b"EngineCore" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


async def test_the_log_goes_on_when_the_engine_is_there(server: Server) -> None:
    """Its library configures `logging` when it is imported, and closes the handlers of everybody."""
    events = [json.loads(line)["event"] for line in server.log.read_text().splitlines() if line.startswith('{"')]
    assert {"starting", "loaded", "ready"} <= set(events)


async def test_a_chat_model_alone_speaks_at_once_and_its_engine_s_death_is_told_and_ends_the_server(
    served_artifact: Path,
) -> None:
    with Server(served_artifact, **SHARE, DEPLOY_MODE="chat") as alone:
        alone.wait_ready()
        async with connect(options(alone)) as talk:
            turn = await whole(talk, "Can you look at my screen?")
            assert turn.ok
            assert turn.tool is None
            turn = await TurnRecord(talk.say(STORY)).first_token()
            (engine,) = engine_processes(alone)
            os.kill(engine, signal.SIGKILL)
            await turn.whole()
        assert turn.error.error_code == "generation_failed"
        assert isinstance(turn.ended, Done)
        assert turn.ended.failed
        assert alone.process.wait(5) == 70
        assert "the engine died" in alone.log_tail()


async def test_a_server_that_is_killed_takes_its_engine_and_its_port_along(served_artifact: Path) -> None:
    with Server(served_artifact, **SHARE, DEPLOY_MODE="chat") as killed:
        while not engine_processes(killed):
            assert killed.process.poll() is None, killed.log_tail()
            await asyncio.sleep(0.2)
        (engine,) = engine_processes(killed)
        assert killed.status("/healthz") == 200  # the port was there to be inherited
        killed.process.kill()
        killed.process.wait()
        while running(engine):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
        assert killed.status("/healthz") == 0


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
