"""What a store promises, held of the real one, and of its stand-in by doing the same to both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.deployment.session_store import StoreAddress, parse
from runtime.turns.stores.interface import MOST_LEFT, Found, Leave, Outcome, StoreError, Write, place, shelf
from runtime.turns.stores.valkey_store import CONNECTIONS, ValkeyStore
from tests.harness.server import free_port
from tests.harness.stores.session_store import MISSING, VALKEY, StandIn, Valkey, valkey

pytestmark = pytest.mark.skipif(VALKEY is None, reason=MISSING)

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with valkey() as running:
        yield running


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[ValkeyStore]:
    address = parse(url)
    assert isinstance(address, StoreAddress)
    store = ValkeyStore(address, **{"ttl": 60, "timeout": 5, **options})
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def real(server: Valkey) -> AsyncIterator[ValkeyStore]:
    async with opened(server.url) as store:
        yield store


def a_place() -> str:
    return f"yap:session:test:{next(NUMBERS)}"


async def raw(server: Valkey, *command: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, ["valkey-cli", "-p", str(server.port), *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


PLACES, IDS, VALUES = st.integers(0, 1), st.sampled_from("abc"), st.binary(max_size=5)
# What comes to the store at once.
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PLACES, st.integers(0, 3), st.none() | VALUES, st.lists(IDS, max_size=2)),
        st.tuples(st.just("leave"), PLACES, IDS, VALUES),
    ),
    min_size=1,
    max_size=4,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), PLACES),
        st.tuples(st.just("look"), PLACES),
        st.tuples(st.just("change"), CHANGES),
        st.tuples(st.just("remove")),
    ),
    max_size=25,
)


@given(STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_stand_in_does_what_the_real_one_does(server: Valkey, steps: list[Any]) -> None:
    prefix = f"yap:session:test{next(NUMBERS)}:"

    async def play() -> None:
        stand_in = StandIn()
        async with opened(server.url) as store:
            epochs: list[tuple[int, int]] = [(0, 0)]  # real and stand-in's, of each take

            def seen(found: Found, which: int) -> tuple[object, ...]:
                index = next((n for n, pair in enumerate(epochs) if pair[which] == found.written), None)
                return found.value, index, found.left, found.taken or found.value is not None

            def change(which: int, kind: str, place: int, *rest: Any) -> Write | Leave:
                where = f"{prefix}{place}"
                if kind == "leave":
                    return Leave(where, *rest)
                number, value, merged = rest
                return Write(where, epochs[min(number, len(epochs) - 1)][which], value, tuple(merged))

            for kind, *rest in steps:
                where = f"{prefix}{rest[0]}" if rest else prefix
                if kind == "take":
                    await asyncio.sleep(0.001)  # so that epochs differ, also where all was removed between them
                    stand_in.now += 1
                    ours, theirs = await store.take(where), await stand_in.take(where)
                    epochs.append((ours.epoch, theirs.epoch))
                    assert seen(ours.found, 0)[:3] == seen(theirs.found, 1)[:3]
                elif kind == "look":
                    assert seen(await store.look(where), 0) == seen(await stand_in.look(where), 1)
                elif kind == "remove":
                    assert await store.remove_all(prefix) == await stand_in.remove_all(prefix)
                else:
                    both = [[change(which, *each) for each in rest[0]] for which in (0, 1)]
                    assert await store.apply(both[0]) == await stand_in.apply(both[1])

    asyncio.run(play())


async def test_who_takes_it_last_writes_and_nobody_else(real: ValkeyStore) -> None:
    where = a_place()
    first = await real.take(where)
    assert first.found == Found()
    assert await real.apply([Write(where, first.epoch, b"one")]) == [Outcome(True)]
    second = await real.take(where)
    assert second.epoch > first.epoch
    assert (second.found.value, second.found.written) == (b"one", first.epoch)
    assert await real.apply([Write(where, first.epoch, b"late")]) == [Outcome(False)]
    assert (await real.look(where)).value == b"one"
    assert await real.apply([Write(where, second.epoch, b"two")]) == [Outcome(True)]
    assert await real.apply([Write(where, first.epoch, None)]) == [Outcome(False)]
    assert (await real.look(where)).value == b"two"


async def test_what_is_left_lies_there_once_until_it_was_merged(real: ValkeyStore) -> None:
    where = a_place()
    taken = await real.take(where)
    leave = Leave(where, "01", b"a turn")
    assert await real.apply([leave, leave, Leave(where, "00", b"another")]) == [Outcome(True)] * 3
    (outcome,) = await real.apply([Write(where, taken.epoch, b"v")])
    assert outcome.left == (("00", b"another"), ("01", b"a turn"))
    (outcome,) = await real.apply([Write(where, taken.epoch, b"v", ("00",))])
    assert outcome.left == (("01", b"a turn"),)
    assert (await real.take(where)).found.left == outcome.left


async def test_turns_beside_a_session_are_bounded(real: ValkeyStore) -> None:
    where = a_place()
    taken = await real.take(where)
    await real.apply([Write(where, taken.epoch, b"v")])
    outcomes = await real.apply([Leave(where, f"{number:03}", b"t") for number in range(MOST_LEFT + 2)])
    assert [outcome.accepted for outcome in outcomes] == [True] * MOST_LEFT + [False] * 2


async def test_a_session_that_was_removed_can_be_written_by_nobody_from_before(real: ValkeyStore) -> None:
    where = a_place()
    old = await real.take(where)
    new = await real.take(where)
    await real.apply([Write(where, new.epoch, b"v"), Write(where, new.epoch, None)])
    assert (await real.look(where)).value is None
    assert await real.apply([Write(where, old.epoch, b"ghost")]) == [Outcome(False)]


async def test_epochs_rise_where_the_store_has_forgotten_everything(server: Valkey, real: ValkeyStore) -> None:
    where = a_place()
    before = await real.take(where)
    await asyncio.sleep(0.002)
    await raw(server, "DEL", where)
    assert (await real.take(where)).epoch > before.epoch


async def test_a_session_is_kept_for_its_time_and_each_change_begins_it_anew(server: Valkey) -> None:
    where = a_place()
    async with opened(server.url, ttl=40) as store:
        taken = await store.take(where)
        for change in (Write(where, taken.epoch, b"v"), Leave(where, "1", b"t"), Write(where, taken.epoch, None)):
            await raw(server, "PEXPIRE", where, "5000")
            await store.apply([change])
            assert 5_000 < int(await raw(server, "PTTL", where)) <= 40_000


@pytest.mark.parametrize(
    "foreign",
    [("SET", "x"), ("RPUSH", "x"), ("SADD", "x"), ("HSET", "e", "nan"), ("HSET", "e", "1e300"), ("HSET", "e", "-5")],
    ids=str,
)
async def test_what_is_none_of_ours_is_replaced(server: Valkey, real: ValkeyStore, foreign: tuple[str, ...]) -> None:
    where = a_place()
    await raw(server, foreign[0], where, *foreign[1:])
    assert (await real.look(where)).value is None
    taken = await real.take(where)
    assert taken.found.value is None
    assert taken.found.foreign is (foreign[0] != "HSET")
    assert 0 < taken.epoch < 9e15
    await raw(server, "DEL", where)
    await raw(server, foreign[0], where, *foreign[1:])
    assert await real.apply([Write(where, taken.epoch, b"v")]) == [Outcome(True)]
    assert (await real.look(where)).value == b"v"


async def test_a_server_that_has_forgotten_its_scripts_is_told_them_again(server: Valkey, real: ValkeyStore) -> None:
    where = a_place()
    await real.take(where)
    await raw(server, "SCRIPT", "FLUSH")
    with pytest.raises(StoreError):
        await real.take(where)
    assert await real.take(where)


async def test_no_answer_is_an_error_in_time_and_not_for_ever(server: Valkey) -> None:
    async with opened(server.url, timeout=2) as store:
        where = a_place()
        await store.take(where)
        await raw(server, "CLIENT", "PAUSE", "4000", "ALL")
        with pytest.raises(StoreError, match="no answer within 2 s"):
            await store.take(where)
        await raw(server, "PING")  # answered when the pause is over
        assert await store.take(where)


@asynccontextmanager
async def far_away(port: int, seconds: float) -> AsyncIterator[int]:
    """A port that leads to another one, over a way that takes so long."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(seconds)
                writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.ensure_future(carry(reader, back)), asyncio.ensure_future(carry(there, writer))]
        running.extend(ways)
        await asyncio.wait(ways)

    running: list[asyncio.Future[None]] = []
    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        if running:
            await asyncio.wait(running)


async def test_connecting_may_take_longer_than_an_answer(server: Valkey) -> None:
    """Else a store over a way on which each answer is in time would never be reached."""
    async with far_away(server.port, 0.3) as port, opened(f"valkey://127.0.0.1:{port}", timeout=1) as store:
        refusals = []
        for _ in range(50):
            try:
                await store.ping()
                break
            except StoreError as error:
                refusals.append(str(error))
                await asyncio.sleep(0.05)
        else:
            pytest.fail(f"never reached: {refusals[:5]}")
        assert refusals, "whoever comes first does not wait for all of it"


async def test_a_server_that_is_not_there_is_an_error() -> None:
    async with opened(f"valkey://127.0.0.1:{free_port()}") as store:
        with pytest.raises(StoreError):
            await store.ping()
        with pytest.raises(StoreError):
            await store.apply([Leave("p", "i", b"v")])


async def test_a_full_store_is_told_of_each_change(server: Valkey, real: ValkeyStore) -> None:
    where = a_place()
    taken = await real.take(where)
    await raw(server, "CONFIG", "SET", "maxmemory", "1")
    try:
        (outcome,) = await real.apply([Write(where, taken.epoch, b"v")])
        assert (outcome.accepted, "maxmemory" in outcome.error) == (False, True)
    finally:
        await raw(server, "CONFIG", "SET", "maxmemory", "0")
    assert await real.apply([Write(where, taken.epoch, b"v")]) == [Outcome(True)]


async def test_a_store_that_answers_and_cannot_be_written_is_told_as_one_that_does_not(server: Valkey) -> None:
    async def refused(why: str, url: str = server.url, password: str | None = None) -> None:
        async with opened(url, password=password) as store:
            with pytest.raises(StoreError, match=why):
                await store.ping()

    where = f"127.0.0.1:{server.port}"
    await raw(server, "CONFIG", "SET", "maxmemory", "1")
    try:
        await refused("maxmemory")
    finally:
        await raw(server, "CONFIG", "SET", "maxmemory", "0")
    for user, rights in (("reader", ("~*", "+@all", "-@write")), ("stranger", ("~other:*", "+@all"))):
        await raw(server, "ACL", "SETUSER", user, "on", ">word", *rights)
        await refused("ACL|NOPERM|permission", f"valkey://{user}@{where}", "word")
    await raw(server, "REPLICAOF", "127.0.0.1", "1")
    try:
        await refused("READONLY")
    finally:
        await raw(server, "REPLICAOF", "NO", "ONE")
    before = await raw(server, "DBSIZE")
    async with opened(server.url) as store:
        await store.ping()
    assert await raw(server, "DBSIZE") == before, "asking leaves nothing"


async def test_the_rights_that_the_page_names_are_enough(server: Valkey) -> None:
    page = (Path(__file__).parents[5] / "docs" / "operations.md").read_text()
    said = page.partition("It needs ")[2].partition(" on `yap:session:*`")[0]
    commands = [f"+{name.lower().replace(' ', '|')}" for name in re.findall(r"`([A-Z ]+)`", said)]
    assert "+evalsha" in commands
    await raw(server, "ACL", "SETUSER", "least", "on", ">word", "~yap:session:*", "-@all", *commands)
    async with opened(f"valkey://least@127.0.0.1:{server.port}", password="word") as store:
        await store.ping()
        where = a_place()
        taken = await store.take(where)
        outcomes = await store.apply(
            [Write(where, taken.epoch, b"v"), Leave(where, "a", b"t"), Leave(where, "b", b"t")]
        )
        outcomes += await store.apply([Write(where, taken.epoch, b"v", ("a",)), Write(a_place(), 1, None)])
        assert all(outcome.accepted for outcome in outcomes), outcomes
        assert (await store.look(where)).left == (("b", b"t"),)
        assert await store.remove_all(where) == 1


async def test_a_name_that_cannot_be_asked_for_is_an_error() -> None:
    for host in ("a..b", "a" * 64, "a\0b"):
        store = ValkeyStore(StoreAddress(host), ttl=60, timeout=5)
        with pytest.raises(StoreError):
            await store.take("p")


async def test_many_at_once_share_few_connections(server: Valkey, real: ValkeyStore) -> None:
    taken = await asyncio.gather(*(real.take(a_place()) for _ in range(100)))
    assert len(taken) == 100
    clients = await raw(server, "CLIENT", "LIST")
    assert len(clients.splitlines()) <= CONNECTIONS + 1


async def test_one_principals_sessions_are_removed_and_nobody_elses(real: ValkeyStore) -> None:
    mine = [place(b"name:acme", f"s{number}") for number in range(30)]
    other = place(b"name:acme2", "s1")
    for where in (*mine, other):
        taken = await real.take(where)
        await real.apply([Write(where, taken.epoch, b"v")])
    assert await real.remove_all(shelf(b"name:acme")) == 30
    assert not (await real.look(mine[0])).taken
    assert (await real.look(other)).value == b"v"


async def test_many_principals_sessions_are_removed_together_and_nobody_elses(real: ValkeyStore) -> None:
    gone, stays = [f"gone {number}".encode() for number in range(40)], [b"gone 1 not", b"stays"]
    for identity in (*gone, *stays):
        where = place(identity, "s")
        await real.apply([Write(where, (await real.take(where)).epoch, b"v")])
    assert await real.remove_all() == 0
    assert await real.remove_all(*map(shelf, gone)) == len(gone)
    assert not [identity for identity in gone if (await real.look(place(identity, "s"))).taken]
    assert all([(await real.look(place(identity, "s"))).value == b"v" for identity in stays])


def test_a_place_tells_neither_principal_nor_session() -> None:
    where = place(b"name:acme", "customer-7")
    assert where.isascii()
    assert "acme" not in where
    assert "customer" not in where
    assert where.startswith(shelf(b"name:acme"))
    assert len({place(b"a", "bc"), place(b"ab", "c"), place(b"a", "b"), place(b"a", "bc\0"), where}) == 5
    assert place(b"a", "\ud83d") != place(b"a", "�")


async def test_a_password_a_user_and_a_database() -> None:
    with valkey("--requirepass", "geheim") as server:
        user = ("ACL", "SETUSER", "yap", "on", ">word", "~yap:session:*", "+@all")
        assert await raw(server, "-a", "geheim", "--no-auth-warning", *user) == "OK"
        for url, password in ((f"{server.url}/3", "geheim"), (f"valkey://yap@127.0.0.1:{server.port}", "word")):
            async with opened(url, password=password) as store:
                assert await store.take("yap:session:x")
        async with opened(server.url, password="wrong") as store:
            with pytest.raises(StoreError) as refused:
                await store.ping()
            assert "wrong" not in str(refused.value)
        async with opened(server.url) as store:
            with pytest.raises(StoreError):
                await store.ping()


def certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for 127.0.0.1, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=yap-store"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_behind_tls_the_servers_certificate_is_checked(tmp_path: Path) -> None:
    certificate, key = certificates(tmp_path)
    tls = free_port()
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate))
    with valkey("--tls-port", str(tls), *files, "--tls-auth-clients", "no", port=0):
        async with opened(f"rediss://127.0.0.1:{tls}", ca_file=certificate) as store:
            assert await store.take("yap:session:x")
        async with opened(f"rediss://127.0.0.1:{tls}") as store:
            with pytest.raises(StoreError):
                await store.ping()
        async with opened(f"rediss://localhost:{tls}", ca_file=certificate) as store:
            with pytest.raises(StoreError):
                await store.ping()
