"""The queue before the socket: order is kept, text is joined, nothing grows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.turns.outbox import HIGH_WATER_FRAMES, HIGH_WATER_LETTERS, Close, Outbox
from runtime.wire.frames import Done, Final, Pong, Token


async def test_text_that_lies_together_becomes_one_frame() -> None:
    outbox = Outbox()
    outbox.put_text("a", 1)
    outbox.put_text("b", 1)
    outbox.put(Pong())
    outbox.put_text("c", 1)
    assert await outbox.take() == [Token(text="ab", request_id=1), Pong(), Token(text="c", request_id=1)]


async def test_a_replys_last_text_goes_with_its_end_and_the_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.turns.outbox.END_WAIT_S", 60.0)
    outbox = Outbox()
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put_text("a", 1)
    assert await taking == [Token(text="a", request_id=1)]
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put_text("b", 1, last=True)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not taking.done()
    outbox.put(Done(request_id=1))
    assert await taking == [Token(text="b", request_id=1), Done(request_id=1)]


async def test_a_last_text_whose_end_is_late_goes_alone() -> None:
    outbox = Outbox()
    outbox.put_text("a", 1)
    await outbox.take()
    outbox.put_text("b", 1, last=True)
    outbox.put_text("c", 1, last=True)
    # The writer waits already, and no end follows.
    assert await asyncio.wait_for(asyncio.create_task(outbox.take()), 30) == [Token(text="bc", request_id=1)]


async def test_nobody_waits_for_the_end_of_a_turn_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def call_later(delay: float, call: Callable[..., None], *given: object) -> asyncio.TimerHandle:
        timers.append(asyncio.TimerHandle(loop.time() + delay, call, given, loop))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", call_later)
    for end in (lambda outbox: outbox.put(Done(request_id=1)), Outbox.close):
        outbox = Outbox()
        outbox.put_text("b", 1, last=True)
        end(outbox)
    assert [timer.cancelled() for timer in timers] == [True, True]


async def test_nothing_follows_a_close() -> None:
    outbox = Outbox()
    outbox.put(Close(1000, "bye"))
    outbox.put(Pong())
    outbox.put_text("late", None)
    assert await outbox.take() == [Close(1000, "bye")]


async def test_a_reader_waits_above_the_high_water_mark() -> None:
    outbox = Outbox()
    for _ in range(HIGH_WATER_FRAMES):
        assert not outbox.above_high_water
        outbox.put(Pong())
    assert outbox.above_high_water
    room = asyncio.create_task(outbox.below_high_water())
    await asyncio.sleep(0)
    assert not room.done()
    await outbox.take()
    await room


async def test_a_paused_reader_goes_on_when_the_writer_is_gone() -> None:
    outbox = Outbox()
    for _ in range(HIGH_WATER_FRAMES):
        outbox.put(Pong())
    room = asyncio.create_task(outbox.below_high_water())
    await asyncio.sleep(0)
    outbox.close()
    await room


@given(st.lists(st.sampled_from(["text", "text", "text", "done", "take"]), max_size=60))
def test_however_it_is_taken_each_turn_reads_the_same(events: list[str]) -> None:
    async def play() -> None:
        outbox = Outbox()
        said: list[str] = [""]
        taken: list[object] = []
        for number, event in enumerate(events):
            if event == "text":
                said[-1] += f"{number} "
                outbox.put_text(f"{number} ", len(said))
            elif event == "done":
                outbox.put(Done(request_id=len(said)))
                said.append("")
            elif outbox._frames or outbox._text:
                taken += await outbox.take()
        outbox.put(Pong())
        taken += await outbox.take()
        heard = [""]
        for frame in taken:
            if isinstance(frame, Token):
                assert frame.request_id == len(heard)
                heard[-1] += frame.text
            elif isinstance(frame, Done):
                heard.append("")
        assert heard == said

    asyncio.run(play())


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20_000)), max_size=40))
def test_what_waits_is_bounded_in_letters_by_the_bound_and_one_reply(turns: list[tuple[int, int]]) -> None:
    """As a reader does it: a turn begins below the mark alone, and speaks to its end whatever waits."""

    async def play() -> None:
        outbox = Outbox()
        for pieces, size in turns:
            if outbox.above_high_water:
                break
            for _ in range(pieces):
                outbox.put_text("a" * size, 1)
            outbox.put(Final(normalized_text="a" * size * pieces, request_id=1))
            outbox.put(Done(request_id=1))
            assert outbox._weight < HIGH_WATER_LETTERS + 2 * size * pieces
        waiting = await outbox.take() if outbox._frames else []
        letters = sum(
            len(frame.text) if isinstance(frame, Token) else len(frame.normalized_text)
            for frame in waiting
            if isinstance(frame, (Token, Final))
        )
        longest = max((pieces * size for pieces, size in turns), default=0)
        assert letters < HIGH_WATER_LETTERS + 2 * longest + 1
        assert not outbox.above_high_water

    asyncio.run(play())
