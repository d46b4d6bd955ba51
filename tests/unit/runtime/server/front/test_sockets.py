"""Who may stay, who has to go, and that the log says so once."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import get_args

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from runtime.server.front.log_throttle import INTERVAL_S, KINDS, RepeatFilter
from runtime.server.front.sockets import CLOSE_DEADLINE_S, LOG_INTERVAL_S, Reason, Socket, Sockets, socket_of

CAP, DEADLINE = 4, 10.0


class Wire(asyncio.Transport):
    """A transport that notes its end."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = self.closed = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted or self.closed


class Told:
    """A peer as its protocol sees it."""

    leaving = False


class House:
    """Sockets with a clock of their own, swept by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.counted: Counter[str] = Counter()
        self.sockets = Sockets(CAP, DEADLINE, self._count, lambda: self.now)

    def _count(self, reason: str) -> None:
        self.counted[reason] += 1

    def open(self) -> tuple[Socket, Wire]:
        wire = Wire()
        return self.sockets.opened(wire), wire

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.sockets._sweep()


async def test_a_silent_socket_has_a_deadline_and_an_admitted_one_has_none() -> None:
    house = House()
    (_, wire), (admitted, kept) = house.open(), house.open()
    admitted.admit()
    house.later(DEADLINE - 0.1)
    assert not wire.aborted
    house.later(0.1)
    assert wire.aborted
    assert house.sockets.unadmitted == 0
    house.later(10 * DEADLINE)
    assert not kept.aborted
    assert house.counted == {"deadline": 1}


async def test_an_answer_begins_a_new_deadline() -> None:
    house = House()
    socket, wire = house.open()
    for _ in range(5):
        house.later(DEADLINE - 0.1)
        socket.request_begun()
    assert not wire.aborted
    house.later(DEADLINE)
    assert wire.aborted


async def test_between_requests_there_is_no_deadline_and_the_next_one_has_its_own() -> None:
    house = House()
    socket, wire = house.open()
    socket.answered()
    house.later(10 * DEADLINE)
    assert not wire.aborted
    socket.request_begun()
    house.later(DEADLINE - 0.1)
    assert not wire.aborted
    house.later(0.1)
    assert wire.aborted


async def test_who_is_between_requests_goes_first_where_there_are_too_many() -> None:
    house = House()
    (idle, wire), *others = [house.open() for _ in range(CAP)]
    for socket, _ in others:
        socket.request_begun()
    house.open()
    assert wire.aborted
    assert not any(other.aborted for _, other in others)
    assert not idle.admitted


async def test_one_too_many_and_the_one_silent_longest_goes() -> None:
    house = House()
    found = [house.open() for _ in range(CAP)]
    found[0][0].request_begun()
    found[1][0].admit()
    house.open()
    assert not any(wire.aborted for _, wire in found)
    house.open()
    assert [wire.aborted for _, wire in found] == [False, False, True, False]
    assert house.counted == {"too_many": 1}


@pytest.mark.parametrize("admitted", [False, True])
@pytest.mark.parametrize("how", ["transport", "frame"])
async def test_whoever_is_closed_and_stays_is_dropped(how: str, admitted: bool) -> None:
    house = House()
    socket, wire = house.open()
    told = Told()
    socket.peer = told
    if admitted:
        socket.admit()
    house.later(1)
    wire.closed, told.leaving = how == "transport", how == "frame"
    house.later(0.5)
    house.later(CLOSE_DEADLINE_S - 0.1)
    assert not wire.aborted
    house.later(0.1)
    assert wire.aborted
    assert house.counted == {"unread": 1}


async def test_a_slot_given_back_counts_among_those_without(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    for _ in range(3 * CAP):  # admitted and left, never read our close frame
        socket, _wire = house.open()
        socket.admit()
        socket.slot_released()
    assert house.sockets.unadmitted == CAP
    assert house.counted == {"too_many": 2 * CAP}


async def test_the_log_has_one_line_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, object]] = []
    monkeypatch.setattr(
        "runtime.server.front.sockets.log.warning", lambda event, **fields: lines.append({"event": event, **fields})
    )
    house = House()
    for _ in range(1000):
        house.open()
    assert lines == [{"event": "sockets_dropped", "unadmitted": CAP, "too_many": 1}]
    house.later(LOG_INTERVAL_S)
    assert len(lines) == 2
    assert lines[1]["too_many"] == 1000 - CAP - 1
    for _ in range(20):
        house.later(LOG_INTERVAL_S)
    assert sum(int(str(line.get("deadline", 0))) for line in lines) == CAP
    assert len(lines) <= 4


def test_texts_that_peers_cause_are_told_once_in_a_while() -> None:
    now = 0.0
    repeats = RepeatFilter(lambda: now)

    def said(text: str) -> bool:
        return repeats.filter(logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, text, ("x",), None))

    assert [said("Invalid %s"), said("Invalid %s"), said("Other %s")] == [True, False, True]
    now = INTERVAL_S
    assert said("Invalid %s")
    for number in range(10 * KINDS):
        said(f"made of what a peer sent: {number}")
    assert len(repeats._told) <= KINDS


def test_without_a_front_nothing_is_in_the_way() -> None:
    socket = socket_of({"type": "websocket"})
    for act in (
        socket.request_begun,
        socket.answered,
        socket.admit,
        socket.slot_released,
        socket.connection_lost,
        socket.abort,
    ):
        act()
    socket.drop("flood")
    assert not socket.closing


ACTS = ["request_begun", "answered", "admit", "slot_released", "connection_lost"]


class AnyLife(RuleBasedStateMachine):
    """Whatever happens in whatever order: the cap holds, and what was dropped was ended."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.house = House()
        self.open: list[tuple[Socket, Wire]] = []

    def _in_loop(self, act: object) -> None:
        async def run() -> None:
            assert callable(act)
            act()

        self.loop.run_until_complete(run())

    @rule(count=st.integers(1, 7))
    def arrive(self, count: int) -> None:
        self._in_loop(lambda: self.open.extend(self.house.open() for _ in range(count)))

    @rule(
        data=st.data(), act=st.sampled_from(["request_begun", "answered", "admit", "slot_released", "connection_lost"])
    )
    def act(self, data: st.DataObject, act: str) -> None:
        if self.open:
            socket, _ = data.draw(st.sampled_from(self.open))
            self._in_loop(getattr(socket, act))

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self._in_loop(lambda: self.house.later(seconds))

    @invariant()
    def the_cap_holds(self) -> None:
        assert self.house.sockets.unadmitted <= CAP
        assert set(self.house.counted) <= set(get_args(Reason))

    @invariant()
    def nobody_is_forgotten(self) -> None:
        for socket in self.house.sockets._unadmitted:
            assert socket in self.house.sockets._all
            assert not socket.admitted

    def teardown(self) -> None:
        self.loop.close()


AnyLife.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyLife = AnyLife.TestCase
