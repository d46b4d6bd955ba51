"""What goes over the socket, byte by byte, where clients of OpenAI's API are not the only ones to read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.harness.scripted import KEY, REPLY, Running, ScriptedEngine, serving
from tests.harness.waiting import eventually

BODY: Any = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}


def request(body: Any, version: str = "1.1", **fields: str) -> bytes:
    sent = json.dumps(body).encode()
    head = {"Host": "x", "X-API-Key": KEY, "Content-Length": str(len(sent)), **fields}
    lines = [f"POST /v1/chat/completions HTTP/{version}", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode() + sent


@asynccontextmanager
async def connection(running: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**20)
    try:
        yield reader, writer
    finally:
        writer.close()


async def head_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    pairs = [line.lower().partition(": ") for line in lines]
    return int(status.split()[1]), {name: value for name, _, value in pairs}


async def chunks(reader: asyncio.StreamReader) -> list[bytes]:
    """A chunked body, as RFC 9112 has it and nothing looser."""
    found = []
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readexactly(2) == b"\r\n"
    return found


def said(stream: bytes) -> str:
    events = [line[6:] for line in stream.decode().split("\n\n")[:-1]]
    assert events.pop() == "[DONE]"
    return "".join(c["delta"].get("content") or "" for event in events for c in json.loads(event)["choices"])


async def test_a_stream_is_chunked_and_the_connection_goes_on() -> None:
    async with serving(ScriptedEngine(pause=0.01)) as running, connection(running) as (reader, writer):
        for _ in range(3):
            writer.write(request({**BODY, "stream": True}))
            status, fields = await head_of(reader)
            assert (status, fields["transfer-encoding"]) == (200, "chunked")
            assert fields["content-type"].startswith("text/event-stream")
            pieces = await chunks(reader)
            assert said(b"".join(pieces)) == "".join(REPLY)
            assert len(pieces) > 2
            writer.write(request(BODY))
            status, fields = await head_of(reader)
            answer = json.loads(await reader.readexactly(int(fields["content-length"])))
            assert answer["choices"][0]["message"]["content"] == "".join(REPLY)


async def test_an_older_client_gets_the_stream_as_it_is_up_to_the_end_of_the_connection() -> None:
    async with serving(ScriptedEngine(pause=0.01)) as running, connection(running) as (reader, writer):
        writer.write(request({**BODY, "stream": True}, version="1.0"))
        status, fields = await head_of(reader)
        assert status == 200
        assert "transfer-encoding" not in fields
        assert said(await reader.read()) == "".join(REPLY)


async def test_a_client_that_waits_before_its_body_is_told_to_go_on() -> None:
    async with serving() as running, connection(running) as (reader, writer):
        whole = request(BODY, Expect="100-continue")
        head, _, body = whole.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert (await head_of(reader))[0] == 100
        writer.write(body)
        assert (await head_of(reader))[0] == 200


async def test_a_body_that_does_not_come_ends_the_connection_and_holds_nothing() -> None:
    async with serving(handshake_deadline_s=0.2) as running, connection(running) as (reader, writer):
        writer.write(request(BODY)[:-5])
        assert await reader.read() == b""
        assert running.service.admission.held == 0
    assert running.engine.prompts == []


@pytest.mark.parametrize("more", [{}, {"TE": "x"}], ids=["plain", "odd"])
@pytest.mark.parametrize("before", [0, 1], ids=["alone", "behind another"])
@pytest.mark.parametrize("steps", [0, 5])
async def test_who_hangs_up_in_the_middle_of_a_body_is_not_waited_for(
    more: dict[str, str], before: int, steps: int
) -> None:
    """The deadline, which would end it too, is far away."""
    async with serving(handshake_deadline_s=300) as running, connection(running) as (reader, writer):
        wrong = request(BODY, **{"X-API-Key": "wrong"})
        writer.write(before * wrong + request(BODY, **more)[:-1])
        for _ in range(steps):
            await asyncio.sleep(0)
        writer.write_eof()
        answers = await asyncio.wait_for(reader.read(), 60)
        assert answers.count(b"HTTP/1.1 401 ") == before
        assert answers.count(b"HTTP/1.1 ") == before
        await eventually(lambda: not running.server.server_state.connections)


async def test_a_body_that_drips_has_the_same_time_as_one_that_does_not_come() -> None:
    async def drip(writer: asyncio.StreamWriter, body: bytes) -> None:
        for byte in body:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.05)

    async with serving(handshake_deadline_s=0.2) as running, connection(running) as (reader, writer):
        dripping = asyncio.ensure_future(drip(writer, request({**BODY, "user": "x" * 1000})))
        try:
            assert await reader.read() == b""
        finally:
            dripping.cancel()
    assert running.engine.prompts == []


async def test_who_has_no_key_is_answered_before_the_body_came() -> None:
    async with serving() as running, connection(running) as (reader, writer):
        writer.write(request(BODY, **{"X-API-Key": "wrong"})[:-5])
        assert (await head_of(reader))[0] == 401


async def test_requests_that_come_at_once_are_answered_in_their_order() -> None:
    engine = ScriptedEngine(script=lambda words: words[1:])
    async with serving(engine) as running, connection(running) as (reader, writer):
        writer.write(b"".join(request({**BODY, "messages": [{"role": "user", "content": n}]}) for n in "abc"))
        for expected in "abc":
            _, fields = await head_of(reader)
            answer = json.loads(await reader.readexactly(int(fields["content-length"])))
            assert answer["choices"][0]["message"]["content"] == expected


async def test_both_doors_make_one_prompt_and_share_a_keys_cache() -> None:
    """What one of them has prefilled, the other finds: the words are the same, and so is the salt."""
    messages = [
        {"role": "system", "content": "You are Mia."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi you"},
        {"role": "user", "content": "and now"},
    ]
    async with serving() as running, connection(running) as (reader, writer):
        writer.write(request({**BODY, "messages": messages}))
        assert (await head_of(reader))[0] == 200
        async with running.client() as socket:
            await socket.turn(persona_text="You are Mia.", history=messages[1:3], user_utterance="and now")
    assert running.engine.prompts[0] == running.engine.prompts[1]
    assert running.engine.salts[0] == running.engine.salts[1]
    assert running.engine.salts[0] is not None
    whole, over_socket = running.engine.samplings
    assert whole == over_socket


async def test_a_tools_answer_makes_the_prompt_of_a_followup() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "take_screenshot", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "look at this"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "a cat"},
    ]
    async with serving() as running, connection(running) as (reader, writer):
        writer.write(request({**BODY, "messages": messages}))
        assert (await head_of(reader))[0] == 200
        async with running.client() as socket:
            await socket.turn(user_utterance="look at this")
            await socket.send(type="followup", analysis_text="a cat")
            await socket.until("done")
    assert running.engine.prompts[0] == [
        "[user]",
        "look",
        "at",
        "this",
        "[user]",
        "ON",
        "THE",
        "SCREEN",
        "NOW:",
        "a",
        "cat",
    ]
    assert running.engine.prompts[-1][-7:] == running.engine.prompts[0][-7:]
