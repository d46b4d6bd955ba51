"""Slots held are the admitted connections, whatever happens in between."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.admission import Admission, Slot


async def test_a_slot_is_given_back_once() -> None:
    gate = Admission(1, timeout=0)
    slot = await gate.acquire()
    assert slot is not None
    assert await gate.acquire() is None
    slot.release()
    slot.release()
    assert gate.held == 0
    assert gate.capacity().available == 1


async def test_waiters_are_served_in_their_order() -> None:
    gate = Admission(1, timeout=5)
    first = await gate.acquire()
    order: list[int] = []

    async def wait(number: int) -> None:
        slot = await gate.acquire()
        assert slot is not None
        order.append(number)
        slot.release()

    waiters = [asyncio.create_task(wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert first is not None
    first.release()
    await asyncio.gather(*waiters)
    assert order == [0, 1, 2]
    assert gate.held == 0


async def test_a_slot_that_is_handed_to_a_cancelled_waiter_is_passed_on() -> None:
    gate = Admission(1, timeout=5)
    first = await gate.acquire()
    waiter = asyncio.create_task(gate.acquire())
    await asyncio.sleep(0)
    assert first is not None
    first.release()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert gate.held == 0


@given(st.lists(st.sampled_from(["acquire", "release", "cancel", "settle"]), max_size=40), st.integers(1, 3))
def test_slots_are_conserved_in_any_order_of_events(events: list[str], limit: int) -> None:
    async def play() -> None:
        gate = Admission(limit, timeout=10)
        asking: list[asyncio.Task[Slot | None]] = []
        open_slots: list[Slot] = []

        async def settle() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
            for task in [task for task in asking if task.done()]:
                asking.remove(task)
                if not task.cancelled() and (slot := task.result()) is not None:
                    open_slots.append(slot)

        for event in events:
            if event == "acquire":
                asking.append(asyncio.create_task(gate.acquire()))
            elif event == "release" and open_slots:
                open_slots.pop(0).release()
            elif event == "cancel" and asking:
                asking[-1].cancel()
            elif event == "settle":
                await settle()
                assert gate.held == len(open_slots) <= limit
        await settle()
        assert gate.held == len(open_slots)
        for task in asking:
            task.cancel()
        await settle()
        for slot in open_slots:
            slot.release()
        assert gate.held == 0

    asyncio.run(play())
