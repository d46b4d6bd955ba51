"""Two servers and one store: what a client finds on the second one of what it said on the first."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed

from runtime.deployment.keys import ApiKey
from runtime.turns.sessions.keeper import PACE_S
from runtime.turns.stores.interface import Leave, Outcome, StoreError, Write
from tests.harness.fleet.rows import reproduces
from tests.harness.scripted import Running, ScriptedEngine, serving
from tests.harness.stores.session_store import MISSING, VALKEY, StandIn, Valkey, valkey
from tests.harness.waiting import eventually

real = pytest.mark.skipif(VALKEY is None, reason=MISSING)
SAID = "Sure thing, here it is."


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as running:
        yield running


@asynccontextmanager
async def two(store: StandIn | None = None, **values: Any) -> AsyncIterator[tuple[Running, Running]]:
    async with serving(store=store, **values) as one, serving(store=store, **values) as other:
        yield one, other


def prompt(running: Running) -> str:
    return " ".join(" ".join(running.engine.prompts[-1]).split())


async def settled(running: Running) -> None:
    """Wait until all that has changed is in the store."""
    keeper = running.service._keeper
    assert keeper is not None
    await eventually(lambda: not keeper._pending)


def metric(running: Running, name: str) -> float:
    text = running.service.metrics.render().decode()
    return float(next(line for line in text.splitlines() if line.startswith(name)).rpartition(" ")[2])


@real
async def test_a_client_that_moves_has_lost_nothing(server: Valkey) -> None:
    first = {"persona_text": "You are Mia.", "gender": "woman", "persona_style": "warm", "user_identity": "man"}
    first |= {"sampling": {"temperature": 0.25, "stop": ["END"]}, "check_screen_prefix": "LOOK:"}
    async with two(session_store=server.url, session_store_timeout_s=5) as (one, other):
        async with one.client() as client:
            before = (await client.turn(session_id="m", user_utterance="remember 42", **first))[0]
            await client.turn(session_id="m", user_utterance="and 43")
        await eventually(lambda: not one.service.connections)
        await settled(one)
        async with other.client() as client:
            ack = (await client.turn(session_id="m", user_utterance="what was it"))[0]
        await settled(other)
        same = ("gender", "personality", "user_identity", "chat_prompt")
        assert {name: ack[name] for name in same} == {name: before[name] for name in same}
        expected = f"[system] You are Mia. [user] remember 42 [assistant] {SAID} [user] and 43 [assistant] {SAID}"
        assert prompt(other) == f"{expected} [user] what was it"
        assert (other.engine.samplings[-1].temperature, other.engine.samplings[-1].stop) == (0.25, ("END",))
        # And back: what the first server still has in memory is old.
        async with one.client() as client:
            await client.turn(session_id="m", user_utterance="again")
        assert prompt(one) == f"{expected} [user] what was it [assistant] {SAID} [user] again"


async def test_another_key_finds_nothing() -> None:
    async with two(StandIn(), text_api_key="alice,mallory") as (one, other):
        async with one.client("alice") as client:
            await client.turn(session_id="s", user_utterance="secret")
        await settled(one)
        async with other.client("mallory") as client:
            await client.turn(session_id="s", user_utterance="what was it")
            assert "secret" not in prompt(other)


async def test_keys_in_another_order_are_the_same_holders() -> None:
    store = StandIn()
    async with (
        serving(store=store, text_api_key="alice,bob") as one,
        serving(store=store, text_api_key="bob,alice") as other,
    ):
        async with one.client("alice") as client:
            await client.turn(session_id="s", user_utterance="mine")
        await settled(one)
        async with other.client("bob") as client:
            await client.turn(session_id="s", user_utterance="x")
            assert "mine" not in prompt(other)
        async with other.client("alice") as client:
            await client.turn(session_id="s", user_utterance="x")
            assert "mine" in prompt(other)


async def test_what_a_client_may_say_first_elsewhere() -> None:
    store = StandIn()
    async with two(store) as (one, other):
        async with one.client() as client:
            for name in "abcd":
                await client.turn(
                    session_id=name, request_id=name, persona_text=f"You are {name}.", user_utterance="hi"
                )
        await settled(one)
        async with other.client() as client:
            taken = {place: there.epoch for place, there in store.places.items()}
            await client.send(type="warm_history", session_id="a", history=[])
            assert (await client.receive())["type"] == "warmed"
            assert " ".join(other.engine.warmed[-1]).split() == ["[system]", "You", "are", "a."]
            assert {place: there.epoch for place, there in store.places.items()} == taken, "it was only looked at"
            await client.send(type="followup", session_id="b", analysis_text="a cat")
            assert (await client.until("done"))[0]["session_id"] == "b"
            assert prompt(other) == f"[system] You are b. [user] hi [assistant] {SAID} [user] ON THE SCREEN NOW: a cat"
            await client.send(type="chat_prompt", session_id="c", persona_text="You are new.")
            assert (await client.receive())["code"] == 200
            await client.turn(session_id="c", user_utterance="x")
            assert prompt(other).startswith(f"[system] You are new. [user] hi [assistant] {SAID}")
            await client.send(type="heard", session_id="d", request_id="d", text="Sure")
            assert (await client.receive())["chars"] == 4
            await client.turn(session_id="d", user_utterance="x")
            assert prompt(other) == "[system] You are d. [user] hi [assistant] Sure [user] x"
            for message in ({"type": "followup", "analysis_text": "x"}, {"type": "chat_prompt", "persona_text": "x"}):
                await client.send(session_id="unknown", **message)
                assert (await client.receive())["error_code"] == "no_active_session"
            await client.send(type="heard", session_id="unknown", chars=1)
            assert (await client.receive())["error_code"] == "no_active_session"
            await client.send(type="warm_history", session_id="unknown", history=[])
            assert (await client.receive())["error_code"] == "no_active_session"
        assert len(store.places) == 4, "asking after a session makes none"


async def test_the_limit_of_persona_updates_goes_with_the_session() -> None:
    async with two(StandIn()) as (one, other):
        async with one.client() as client:
            await client.turn(session_id="s")
            for number in range(4):
                await client.send(type="chat_prompt", persona_text=f"You are {number}.")
                assert (await client.receive())["code"] == 200
        await settled(one)
        async with other.client() as client:
            await client.turn(session_id="s")
            await client.send(type="chat_prompt", persona_text="You are too many.")
            assert (await client.receive())["error_code"] == "chat_prompt_rate_limited"


@reproduces("another client takes the session over, on another server")
async def test_whoever_is_taken_over_from_elsewhere_is_told_as_on_one_server() -> None:
    store = StandIn()
    engine = ScriptedEngine(reply=["word "] * 400, pause=0.01)
    async with (
        serving(engine, store=store, gen_timeout_s=60) as one,
        serving(store=store) as other,
        one.client() as old,
        other.client() as new,
    ):
        await old.send(type="start", session_id="s", request_id="t1", user_utterance="first words")
        await old.until("token")
        await eventually(lambda: any(there.value for there in store.places.values()))
        await new.turn(session_id="s", user_utterance="second words")
        # Who has lost it finds out when it next writes: at the turn's end, or as here by a change of the persona.
        await old.send(type="chat_prompt", persona_text="You are late.")
        frames = await old.until("done")
        assert frames[-1] == {"type": "done", "cancelled": True, "request_id": "t1"}
        await old.send(type="followup", analysis_text="x")
        assert (await old.receive())["error_code"] == "no_active_session"
        assert metric(one, 'yap_session_store_operations_total{kind="conflict"}') == 1
        await settled(one)
        await new.turn(session_id="s", user_utterance="third words")  # its writing is told of what was left
        await settled(other)
        await old.turn(session_id="s", user_utterance="x")
        said = prompt(one)
        positions = [said.index(words) for words in ("first words", "[assistant] Word word", "second words", "third")]
        assert positions == sorted(positions)
        assert all(said.count(words) == 1 for words in ("first words", "[assistant] Word", "second words"))


@pytest.mark.parametrize(("again", "times"), [("first words", 1), ("other words", 1)])
async def test_a_turn_that_its_server_did_not_end_leaves_the_users_words_once(again: str, times: int) -> None:
    store = StandIn()
    engine = ScriptedEngine(reply=["word "] * 400, pause=0.01)
    async with serving(engine, store=store, gen_timeout_s=60) as one, serving(store=store) as other:
        async with one.client() as client:
            await client.send(type="start", session_id="s", user_utterance="first words", persona_text="You are Mia.")
            await client.until("token")
            await eventually(lambda: any(there.value for there in store.places.values()))
            assert one.service._keeper is not None
            one.service._keeper._writer.store = StandIn(down=True)  # killed: nothing of it gets there any more
            async with other.client() as elsewhere:
                await elsewhere.turn(session_id="s", user_utterance=again)
        assert prompt(other).count("first words") == times
        assert prompt(other).endswith(f"[user] {again}")


async def test_a_known_session_waits_for_no_store() -> None:
    class Hanging(StandIn):
        async def _begin(self) -> None:
            if self.down:
                await asyncio.Event().wait()
            await super()._begin()

    store = Hanging()
    async with serving(store=store) as running, running.client() as client:
        await client.turn(session_id="s", user_utterance="one")
        await settled(running)
        store.down = True  # it does not even say so
        for number in range(5):
            assert (await client.turn(session_id="s", user_utterance=f"turn {number}"))[-1]["type"] == "done"
        assert prompt(running).count("[user]") == 6
        store.down = False
        assert running.service._keeper is not None
        running.service._keeper.up = False  # what a timeout says of it


@real
async def test_turns_go_on_without_the_store_and_are_written_when_it_is_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with valkey() as server:
        # A store that answers late on a busy machine is not the outage that is counted here.
        async with two(session_store=server.url, session_store_timeout_s=5) as (one, other):
            async with one.client() as client:
                await client.turn(session_id="s", user_utterance="one", persona_text="You are Mia.")
                await settled(one)
                server.kill()
                for number in range(3):
                    assert (await client.turn(session_id="s", user_utterance=f"out {number}"))[-1]["type"] == "done"
                    await client.turn(session_id=f"new {number}", user_utterance=f"fresh {number}")
                await eventually(lambda: metric(one, "yap_session_store_up") == 0)
                assert metric(one, "yap_session_store_lag_seconds") > 0
                server.start()
                await eventually(lambda: metric(one, "yap_session_store_up") == 1)
                await settled(one)
                assert metric(one, "yap_session_store_lag_seconds") == 0
            async with other.client() as client:
                await client.turn(session_id="s", user_utterance="x")
                assert prompt(other).startswith(f"[system] You are Mia. [user] one [assistant] {SAID} [user] out 0")
                await client.turn(session_id="new 1", user_utterance="x")
                assert prompt(other) == f"[user] fresh 1 [assistant] {SAID} [user] x"
    told = capsys.readouterr().out
    assert told.count("session_store_lost") <= 2, "each server says it once"
    assert told.count("session_store_back") >= 1


async def test_a_store_that_cannot_be_used_is_told_at_the_start_before_anybody_has_come() -> None:
    store = StandIn(down=True)
    async with serving(store=store) as running:
        await eventually(lambda: metric(running, "yap_session_store_up") == 0)
        store.down = False
        await eventually(lambda: metric(running, "yap_session_store_up") == 1)


async def test_what_gathered_during_an_outage_is_written_over_a_way_that_is_slow() -> None:
    class Narrow(StandIn):
        """Behind a link that carries seven changes in the time that an answer may take."""

        async def apply(self, changes: Sequence[Write | Leave]) -> list[Outcome]:
            if len(changes) > 7:
                raise StoreError("no answer within 0.25 s")
            return await super().apply(changes)

    store = Narrow(down=True)
    async with serving(store=store, ws_max_messages_per_window=0) as running:
        async with running.client() as client:
            for number in range(40):
                await client.turn(session_id=f"s{number}", user_utterance="hello")
        store.down = False
        await settled(running)
        assert sum(there.value is not None for there in store.places.values()) == 40
        await eventually(lambda: metric(running, "yap_session_store_up") == 1)


async def test_what_began_during_an_outage_is_put_behind_what_was_said_before() -> None:
    store = StandIn()
    async with two(store) as (one, other):
        async with one.client() as client:
            await client.turn(session_id="s", user_utterance="before", persona_text="You are Mia.")
        await settled(one)
        store.down = True
        async with other.client() as client:
            await client.turn(session_id="s", user_utterance="meanwhile")
            assert "before" not in prompt(other)
            store.down = False
            await settled(other)
            await client.turn(session_id="s", user_utterance="after")
            said = f"[user] before [assistant] {SAID} [user] meanwhile [assistant] {SAID} [user] after"
            assert prompt(other) == f"[system] You are Mia. {said}"


async def test_a_drain_writes_everything_before_the_sockets_close() -> None:
    store = StandIn(steps=3)
    async with two(store) as (one, other):
        async with one.client() as client:
            await client.send(type="start", session_id="s", user_utterance="last words")
            await client.until("token")
            one.service.drain()
            frames = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    frames.append(await client.receive())
            assert client.socket.close_code == 1001
            assert "final" in [frame["type"] for frame in frames]
            # No waiting here: it was written before the close.
            async with other.client() as elsewhere:
                await elsewhere.turn(session_id="s", user_utterance="x")
        assert prompt(other) == f"[user] last words [assistant] {SAID} [user] x"


@real
async def test_what_lies_in_the_store_tells_nobody_and_moves_nowhere(
    server: Valkey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = "11" * 32, "22" * 32
    files = {name: tmp_path / name for name in ("old", "both", "new")}
    files["old"].write_text(old)
    files["both"].write_text(f"# the first encrypts\n{new}\n{old}\n")
    files["new"].write_text(new)

    def cli(*command: str) -> bytes:
        return subprocess.run(["valkey-cli", "-p", str(server.port), *command], check=True, capture_output=True).stdout

    async def turn(name: str, session: str, words: str) -> str:
        key = files.get(name)
        values: dict[str, Any] = {"session_store_key_file": key} if key is not None else {}
        async with serving(session_store=server.url, session_store_timeout_s=5, **values) as running:
            async with running.client() as client:
                await client.turn(session_id=session, user_utterance=words)
            return prompt(running)

    cli("FLUSHALL")
    await turn("old", "jane", "Xanadu")
    (place,) = cli("KEYS", "*").split()
    assert b"jane" not in place
    assert b"Xanadu" not in cli("HGETALL", place.decode())
    assert "Xanadu" in await turn("both", "jane", "two"), "what the old key wrote is read"
    assert "Xanadu" in await turn("new", "jane", "three"), "and written with the new one"
    assert "Xanadu" not in await turn("old", "jane", "four"), "who has not the key has nothing"
    assert "it was encrypted with a key that SESSION_STORE_KEY_FILE does not have" in capsys.readouterr().out
    # Another session's value in this one's place.
    await turn("new", "joe", "Kubla")
    (other,) = (found for found in cli("KEYS", "*").split() if found != place)
    fields = cli("--json", "HGETALL", place.decode())
    assert fields
    script = "for _, f in ipairs({'v', 'w', 'e'}) do redis.call('HSET', KEYS[2], f, redis.call('HGET', KEYS[1], f)) end"
    cli("EVAL", script, "2", other.decode(), place.decode())
    assert "Kubla" not in await turn("new", "jane", "five")
    assert "it was altered, or written at another place" in capsys.readouterr().out
    assert "it is encrypted, and SESSION_STORE_KEY_FILE is not set" not in capsys.readouterr().out
    assert "Kubla" not in await turn("none", "joe", "six")
    assert "it is encrypted, and SESSION_STORE_KEY_FILE is not set" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value", [b"", b"\x01", b"\x01\xc1", b"\x01\x93\x01\x02\x03", b"\x01\x81\xa7version\x02", b"x" * 99]
)
async def test_a_value_that_is_none_counts_as_none(value: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    store = StandIn()
    async with two(store) as (one, other):
        async with one.client() as client:
            await client.turn(session_id="s", user_utterance="one")
        await settled(one)
        (there,) = store.places.values()
        there.value, there.left = value, {"id": value}
        async with other.client() as client:
            assert (await client.turn(session_id="s", user_utterance="two"))[-1]["type"] == "done"
            assert prompt(other) == "[user] two"
        await settled(other)
        assert not there.left
    assert capsys.readouterr().out.count("session_store_value_refused") == 2


async def test_what_does_not_fit_is_not_kept_and_nothing_old_is() -> None:
    store = StandIn()
    limits = {"session_store_max_bytes": 4096, "ws_max_messages_per_window": 0}
    async with two(store, **limits) as (one, other):
        async with one.client() as client:
            for number in range(40):
                await client.turn(session_id="s", user_utterance=f"{'x' * 200} {number}", history=None)
                if number == 20:
                    await asyncio.sleep(0)
            await settled(one)
            assert all(len(there.value or b"") <= 4200 for there in store.places.values())
        async with other.client() as client:
            await client.turn(session_id="s", user_utterance="x")
            said = prompt(other)
            assert " 39 " in said
            assert " 0 " not in said, "the oldest went"
        async with one.client() as client:
            await client.turn(session_id="big", user_utterance="small")
            await settled(one)
            await client.turn(session_id="big", persona_text="y" * 6000)
        await settled(one)
        async with other.client() as client:
            await client.turn(session_id="big", user_utterance="z")
            assert prompt(other) == "[user] z"


async def test_sessions_of_a_key_that_is_gone_and_those_over_the_quota_leave_the_store() -> None:
    store = StandIn()
    async with serving(store=store, text_api_key="alice,bob", max_sessions_per_key=2) as running:
        for key in ("alice", "bob"):
            async with running.client(key) as client:
                for number in range(4):
                    await client.turn(session_id=f"s{number}", user_utterance="hi")
        await settled(running)
        await eventually(lambda: sum(there.value is not None for there in store.places.values()) == 4)
        gone = running.service.keyring.replace([ApiKey(SecretStr("bob"))])
        assert running.service.sessions is not None
        for principal in gone:
            running.service.sessions.forget(principal)
        await eventually(lambda: sum(there.value is not None for there in store.places.values()) == 2)


async def test_holders_that_are_gone_are_removed_together_also_when_the_store_was_away() -> None:
    store, names = StandIn(), [f"holder{number}" for number in range(20)]
    async with serving(store=store, text_api_key=",".join(names)) as running:
        sessions, keyring = running.service.sessions, running.service.keyring
        assert sessions is not None

        def lying() -> int:
            return sum(there.value is not None for there in store.places.values())

        def remove(*stay: str) -> None:
            for principal in keyring.replace([ApiKey(SecretStr(name)) for name in stay]):
                sessions.forget(principal)

        for name in names:
            async with running.client(name) as client:
                await client.turn(session_id="s", user_utterance="hi")
        await settled(running)
        remove(*names[:5])
        await eventually(lambda: lying() == 5)
        assert store.scans == 1, "once for all of them"
        store.down = True
        remove("holder0", "holder1")
        await eventually(lambda: metric(running, "yap_session_store_up") == 0)
        keyring.replace([ApiKey(SecretStr(name)) for name in ("holder0", "holder1", "holder2")])
        async with running.client("holder2") as client:  # given again: what is said now is its own
            await client.turn(session_id="new", user_utterance="hi")
        store.down = False
        await eventually(lambda: lying() == 4)
        await settled(running)


async def test_without_a_store_nothing_is_asked_and_the_metric_says_well() -> None:
    async with serving() as running:
        async with running.client() as client:
            await client.turn(session_id="s")
        assert running.service._keeper is None
        assert metric(running, "yap_session_store_up") == 1


async def test_many_changes_are_few_writes() -> None:
    writes = []

    class Counting(StandIn):
        async def apply(self, changes: Any) -> Any:
            writes.append(len(changes))
            return await super().apply(changes)

    async with serving(store=Counting(), ws_max_messages_per_window=0) as running, running.client() as client:
        began = time.monotonic()
        for number in range(50):
            await client.turn(session_id="s", user_utterance=f"turn {number}")
        took = time.monotonic() - began
        await settled(running)
    assert len(writes) <= took / PACE_S + 5, "rounds are apart, but for where a client waits"
