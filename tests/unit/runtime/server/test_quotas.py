"""Quotas: what one key's holder may have, however it connects, and that it takes nothing from others."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_blocking

from runtime.host.ratelimit import SlidingWindow
from runtime.host.redaction.redactor import Redactor
from runtime.server.quotas import Seat, Seats, connections_for_each, share_for_each
from runtime.turns.principal import Principal
from tests.harness.clock import Clock
from tests.harness.scripted import Client, ScriptedEngine, serving
from tests.harness.server import Server

LIMIT, SECONDS = 3, 10.0


def seats_of(clock: Clock, most: int) -> Seats:
    def window() -> SlidingWindow:
        return SlidingWindow(LIMIT, SECONDS, clock)

    return Seats(lambda: most, window, window)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["connect", "leave", "message", "cancel", "pass"]), st.integers(0, 1), st.integers(0, 7)),
    max_size=120,
)


@given(EVENTS, st.integers(1, 3))
def test_however_a_key_reconnects_it_never_gets_more_than_its_connections_at_once_would(
    events: list[tuple[str, int, int]], most: int
) -> None:
    clock = Clock()
    seats = seats_of(clock, most)
    principals = [Principal("a"), Principal("b")]
    held: list[list[Seat]] = [[], []]
    allowed: dict[tuple[str, int], list[float]] = {}
    peak = [0, 0]
    for what, who, number in events:
        mine = held[who]
        if what == "connect":
            seat = seats.take(principals[who])
            assert (seat is None) == (len(mine) == most)  # whatever the other has
            if seat is not None:
                mine.append(seat)
        elif what == "pass":
            clock.now += number
        elif mine and what == "leave":
            seat = mine.pop(number % len(mine))
            seat.leave()
            seat.leave()
        elif mine:
            messages, cancels = mine[number % len(mine)].windows()
            if (messages if what == "message" else cancels).take() == 0:
                allowed.setdefault((what, who), []).append(clock.now)
        peak[who] = max(peak[who], len(mine))
        assert seats.taken(principals[who]) == len(mine)
        for (_, of), times in allowed.items():
            recent = [time for time in times if time > clock.now - SECONDS]
            assert len(recent) <= LIMIT * peak[of]


def test_who_comes_back_costs_the_same_however_many_come_back() -> None:
    """A router is started anew, and all listeners of one key connect at once."""
    clock = Clock()
    seats, principal = seats_of(clock, 3000), Principal("a")

    def come(number: int) -> list[Seat]:
        found = [seat for _ in range(number) if (seat := seats.take(principal)) is not None]
        for seat in found:
            for window in seat.windows():
                window.take()
        return found

    costs = []
    for number in (10, 3000):
        before = clock.asked
        for _ in range(2):
            for seat in come(number):
                seat.leave()
        costs.append((clock.asked - before) / number)
        clock.now += SECONDS
    assert costs[1] < 2 * costs[0]


def test_connections_at_the_same_time_do_not_take_from_one_another() -> None:
    seats, principal = seats_of(Clock(), 2), Principal("a")
    one, other = seats.take(principal), seats.take(principal)
    assert one is not None
    assert other is not None
    (messages, _), (others, _) = one.windows(), other.windows()
    assert [messages.take() for _ in range(LIMIT)] == [0] * LIMIT
    assert messages.take() > 0
    assert others.take() == 0


def test_who_only_waits_takes_no_window() -> None:
    seats, principal = seats_of(Clock(), 2), Principal("a")
    one = seats.take(principal)
    assert one is not None
    for _ in range(LIMIT):
        one.windows()[0].take()
    one.leave()
    waiting, connected = seats.take(principal), seats.take(principal)
    assert waiting is not None
    assert connected is not None
    assert connected.windows()[0].take() > 0
    waiting.leave()


def test_windows_of_ended_connections_are_not_kept_for_longer_than_they_count() -> None:
    clock = Clock()
    seats, principal = seats_of(clock, 50), Principal("a")
    for _ in range(3):
        taken = [seat for _ in range(50) if (seat := seats.take(principal)) is not None]
        for seat in taken:
            seat.windows()[0].take()
        for seat in taken:
            seat.leave()
    held = seats._held[principal]
    assert len(held.messages) == 50
    clock.now = SECONDS
    assert len(held.messages) == len(held.cancels) == 0
    seats.forget(principal)
    assert seats._held == {}


@pytest.mark.parametrize(
    ("asked", "slots", "principals", "expected"),
    [
        (None, 64, 1, None),
        (None, 64, 2, 32),
        (None, 64, 500, 32),
        (None, 1, 2, 1),
        (None, 3, 2, 2),
        (5, 64, 1, 5),
        (64, 64, 1, None),
        (64, 64, 2, 64),
    ],
)
def test_one_key_may_have_all_slots_and_one_of_many_half(
    asked: int | None, slots: int, principals: int, expected: int | None
) -> None:
    assert connections_for_each(asked, slots, principals) == expected


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_shares_fit_into_the_whole(total: int, principals: int) -> None:
    share = share_for_each(None, total, principals)
    assert share >= 1
    assert share * principals <= max(total, principals)


# Through a socket


async def refused(running: Any, key: str) -> tuple[str, int, str]:
    """What a connection that is not admitted is told, and its close."""
    async with running.client(key) as client:
        frame = await client.receive()
        with pytest.raises(ConnectionClosed) as caught:
            await client.receive()
        close = caught.value.rcvd
        assert close is not None
        return frame["error_code"], close.code, close.reason


async def answered(client: Client) -> str:
    """How a `start` ends: `done`, or the code of its error."""
    await client.send(type="start", session_id="s", user_utterance="hi")
    while (frame := await client.receive())["type"] not in ("done", "error"):
        pass
    return str(frame.get("error_code", "done"))


async def test_one_key_cannot_take_all_slots_from_another() -> None:
    async with serving(text_api_key="alice,mallory", max_concurrent_connections=4) as running:
        async with running.client("mallory") as one, running.client("mallory") as two:
            await one.turn()
            await two.turn(session_id="s2")
            told = await refused(running, "mallory")
            assert told == ("connection_quota_exceeded", 1013, "connection_quota_exceeded")
            async with running.client("alice") as alice:
                assert (await alice.turn())[-1]["type"] == "done"
        async with running.client("mallory") as again:  # both seats came back
            await again.turn()
    assert 'yap_key_refused_total{key="unnamed-2"} 1.0' in running.service.metrics.render().decode()


async def test_who_waits_for_a_slot_counts_too() -> None:
    async with serving(
        text_api_key="alice,mallory",
        max_concurrent_connections=1,
        max_connections_per_key=2,
        ws_handshake_acquire_timeout_s=0.3,
    ) as running:
        async with running.client("mallory"):
            first, second = await asyncio.gather(refused(running, "mallory"), refused(running, "mallory"))
        assert {first[0], second[0]} == {"server_at_capacity", "connection_quota_exceeded"}


async def test_a_single_key_may_have_every_slot() -> None:
    async with serving(max_concurrent_connections=2) as running, running.client() as one, running.client() as two:
        assert [await answered(one), await answered(two)] == ["done", "done"]


@pytest.mark.parametrize("connections", [1, 3])
async def test_limits_go_on_counting_after_a_reconnect(connections: int) -> None:
    async with serving(text_api_key="a,b", ws_max_messages_per_window=2, ws_max_cancels_per_window=1) as running:
        for number in range(2):
            async with running.client("a") as client:
                assert await answered(client) == "done"
                await client.send(type="cancel")
                assert (await client.receive())["type"] == ("done" if number == 0 else "error")
        for _ in range(connections):
            async with running.client("a") as client:
                assert await answered(client) == "message_rate_limited"
        async with running.client("b") as other:
            assert await answered(other) == "done"


async def test_bearer_opens_a_connection() -> None:
    headers = {"Authorization": "Bearer test-key"}
    async with serving() as running, connect(running.url, additional_headers=headers) as socket:
        assert (await Client(socket).turn())[-1]["type"] == "done"


async def test_turns_are_counted_by_name_and_keys_never_shown(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme: hunter2\nhunter3\n")
    async with serving(text_api_key=None, text_api_key_file=keys) as running, running.client("hunter2") as client:
        await client.turn()
        text = running.service.metrics.render().decode()
    assert 'yap_key_turns_total{key="acme"} 1.0' in text
    assert 'yap_key_turns_total{key="unnamed-1"} 0.0' in text
    assert 'yap_key_sessions{key="acme"} 1.0' in text
    assert "hunter" not in text


# Reading the keys again


async def reload(running: Any) -> None:
    """Read the keys anew, and wait until that is done."""
    before = set(running.service._background._tasks)
    running.service.reload_keys()
    (task,) = running.service._background._tasks - before
    await task


async def test_after_a_reload_a_removed_key_is_closed_and_the_others_notice_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme: old\nacme: new\nbeta: b\n")
    engine = ScriptedEngine(gate=asyncio.Event())
    async with (
        serving(engine, text_api_key=None, text_api_key_file=keys) as running,
        running.client("old") as old,
        running.client("new") as new,
        running.client("b") as other,
    ):
        assert engine.gate is not None
        for client in (new, old, other):
            await client.send(type="start", session_id=str(id(client)), user_utterance="hi")
            assert (await client.receive())["type"] == "ack"
        keys.write_text("# old went\nacme: new\ngamma: c\n")
        await reload(running)
        for client in (old, other):
            assert (await client.until("error"))[-1]["error_code"] == "authentication_failed"
            with pytest.raises(ConnectionClosed) as caught:
                await client.receive()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "key_removed")
        engine.gate.set()
        assert (await new.until("done"))[-1].get("cancelled") is None
        assert (await refused(running, "old"))[0] == "authentication_failed"
        async with running.client("c") as fresh:
            assert (await fresh.turn())[-1]["type"] == "done"
        sessions = running.service.sessions
        assert sessions is not None
        assert sorted(sessions.kept(one)[0] for one in running.service.keyring.principals) == [1, 2]
        assert len(sessions) == 3  # what the holder that went had is gone


async def test_a_name_that_is_given_again_finds_nothing_of_its_former_holder(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme: one\nbeta: b\n")
    async with serving(text_api_key=None, text_api_key_file=keys) as running:
        async with running.client("one") as client:
            await client.turn(persona_text="the former holder's secret")
        keys.write_text("beta: b\n")
        await reload(running)
        keys.write_text("acme: two\nbeta: b\n")
        await reload(running)
        async with running.client("two") as client:
            await client.send(type="followup", session_id="s1", analysis_text="x")
            assert (await client.receive())["error_code"] == "no_active_session"
            await client.turn()
        assert "secret" not in running.engine.prompts[-1]


@pytest.mark.parametrize("content", ["", "# nobody\n", "a b: x", None, "\udcff"])
async def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path, content: str | None) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme: one\n")
    async with serving(text_api_key=None, text_api_key_file=keys) as running, running.client("one") as client:
        if content is None:
            keys.unlink()
        else:
            keys.write_bytes(content.encode("utf-8", "surrogateescape"))
        with structlog.testing.capture_logs() as lines:
            await reload(running)
        assert (await client.turn())[-1]["type"] == "done"
    # Whoever changed the file reads in the log what is wrong with it, once the log has hidden what it hides.
    (told,) = [line for line in lines if line["event"] == "keys_not_reloaded"]
    shown = Redactor()(None, "error", told)
    assert shown == told
    assert all("expected" in problem for problem in told["problems"])


def test_sighup_reads_the_keys_again_and_the_process_goes_on(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\ufeff# who\nacme: one\n")
    server = Server(tmp_path, module="tests.harness.scripted_process", TEXT_API_KEY="", TEXT_API_KEY_FILE=str(keys))
    with server:
        server.wait_ready()
        with connect_blocking(server.url, additional_headers={"X-API-Key": "one"}) as client:
            keys.write_text("acme: two\n")
            assert server.process is not None
            server.process.send_signal(signal.SIGHUP)
            assert "authentication_failed" in str(client.recv(10))
        with connect_blocking(server.url, additional_headers={"Authorization": "Bearer two"}) as client:
            client.send('{"type":"ping"}')
            assert "pong" in str(client.recv(10))
