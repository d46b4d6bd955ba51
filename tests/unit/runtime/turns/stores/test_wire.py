"""A connection to the store: answers come in their order, to those who asked, in whatever pieces they arrive."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.turns.stores.interface import StoreError
from runtime.turns.stores.wire import Command, Refusal, Wire


class Transport:
    """Keeps what is written, and whether it was ended."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


def opened() -> tuple[Wire, Transport]:
    wire, transport = Wire(), Transport()
    wire.connection_made(cast("asyncio.BaseTransport", transport))
    return wire, transport


def later(seconds: float = 60) -> float:
    return asyncio.get_running_loop().time() + seconds


ANSWERS = st.recursive(
    st.one_of(
        st.none(), st.integers(-9, 10**15), st.binary(max_size=12), st.text("ERROR x\t", max_size=8).map(Refusal)
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def packed(answer: object) -> bytes:
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, bytes):
        return b"$%d\r\n%s\r\n" % (len(answer), answer)
    if isinstance(answer, Refusal):
        return b"-%s\r\n" % answer.args[0].encode()
    assert isinstance(answer, list)
    return b"*%d\r\n" % len(answer) + b"".join(packed(part) for part in answer)


def told(answer: object) -> object:
    if isinstance(answer, Refusal):
        return str(answer)
    return [told(part) for part in answer] if isinstance(answer, list) else answer


@given(st.lists(st.lists(ANSWERS, min_size=1, max_size=3), min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_answers_come_whole_and_in_their_order(requests: list[list[object]], data: st.DataObject) -> None:
    stream = b"".join(packed(answer) for answers in requests for answer in answers)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    gone = data.draw(st.sets(st.integers(0, len(requests) - 1)))

    async def play() -> None:
        wire, transport = opened()
        asked = [asyncio.ensure_future(wire.ask([("PING",)] * len(answers), later())) for answers in requests]
        await asyncio.sleep(0)
        assert transport.written.count(b"PING") == sum(map(len, requests))
        for number in gone:  # their answers come nonetheless, and are nobody else's
            asked[number].cancel()
        await asyncio.sleep(0)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            wire.data_received(stream[start:end])
        for number, (answers, task) in enumerate(zip(requests, asked, strict=True)):
            if number in gone:
                assert task.cancelled()
            else:
                assert told(await task) == told(answers)
        assert wire.open
        assert not transport.aborted

    asyncio.run(play())


COMMANDS: list[Command] = [("PING",)]


async def test_whoever_waits_is_told_that_it_is_gone_and_nobody_asks_it_again() -> None:
    for error in (None, ConnectionResetError("reset by peer")):
        wire, _ = opened()
        asked = [asyncio.ensure_future(wire.ask(COMMANDS, later())) for _ in range(2)]
        await asyncio.sleep(0)
        wire.connection_lost(error)
        for task in asked:
            with pytest.raises(StoreError, match="reset by peer" if error else "gone"):
                await task
        with pytest.raises(StoreError):
            await wire.ask(COMMANDS, later())


@pytest.mark.parametrize(
    "nonsense",
    [b"?what\r\n", b"%1\r\n*0\r\n+a\r\n", b"~1\r\n*0\r\n", b"+OK\r\n+OK\r\n+OK\r\n"],
    ids=["no protocol", "a map by a list", "a set of lists", "one too many"],
)
async def test_nothing_is_asked_on_a_connection_on_which_nobody_knows_what_comes(nonsense: bytes) -> None:
    wire, transport = opened()
    asked = asyncio.ensure_future(wire.ask([("PING",), ("PING",)], later()))
    await asyncio.sleep(0)
    wire.data_received(nonsense)
    assert transport.aborted
    assert not wire.open
    if not nonsense.startswith(b"+"):
        with pytest.raises(StoreError, match="another form"):
            await asked
    else:
        assert await asked == [b"OK", b"OK"]


async def test_an_answer_that_is_late_ends_it_for_all() -> None:
    wire, transport = opened()
    patient = asyncio.ensure_future(wire.ask(COMMANDS, later()))
    await asyncio.sleep(0)
    with pytest.raises(asyncio.TimeoutError):
        await wire.ask(COMMANDS, later(0.01))
    with pytest.raises(asyncio.TimeoutError):
        await patient
    assert transport.aborted
