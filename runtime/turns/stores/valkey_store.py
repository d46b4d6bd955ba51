"""The store in a Valkey server: each session a hash that scripts change in one step; changes go as one pipeline.

Connections are the client's own, used plainly: a request is written, its answers are read. A connection on which
anything went wrong is closed, since nobody knows what still comes on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from valkey.asyncio.connection import Connection, SSLConnection
from valkey.exceptions import NoScriptError, ReadOnlyError, ResponseError, ValkeyError

from runtime.deployment.session_store import StoreAddress
from runtime.host.timeouts import within
from runtime.turns.stores import scripts
from runtime.turns.stores.interface import MOST_LEFT, Found, Leave, Outcome, StoreError, Taken, Write

T = TypeVar("T")
Argument = bytes | str | int

# Open connections at most: one writes, the others take sessions for clients that have just come.
CONNECTIONS = 8
# Keys that one step of a search looks at.
_SCAN = "1000"

_SHA = {script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in scripts.ALL}


class ValkeyStore:
    """A Valkey server as a store.

    Args:
        address: where it is.
        password: of the address's user.
        ca_file: certificates that its own must come from; the system's where there is none.
        ttl: seconds that a session is kept after its last change.
        timeout: seconds that anything may take.
    """

    def __init__(
        self,
        address: StoreAddress,
        *,
        password: str | None = None,
        ca_file: Path | None = None,
        ttl: float,
        timeout: float,
    ) -> None:
        self._address = address
        self._password = password
        self._ca_file = ca_file
        self._ttl = str(max(1, round(ttl * 1000)))
        self._timeout = timeout
        self._idle: list[Connection] = []  # that nobody uses now
        self._free = asyncio.Semaphore(CONNECTIONS)  # how many more may be used

    async def take(self, place: str) -> Taken:
        """Take a session: nobody else may write it from now on."""
        answer = await self._ask(_call(scripts.TAKE, place, self._ttl))
        foreign, epoch, value, written, left = _listed(answer, 5)
        found = Found(_bytes_or_none(value), _number(written), _pairs(left), foreign == 1)
        return Taken(_number(epoch), found)

    async def look(self, place: str) -> Found:
        """What lies at a place. Changes nothing."""
        value, written, left, epoch = _listed(await self._ask(_call(scripts.LOOK, place)), 4)
        return Found(_bytes_or_none(value), _number(written), _pairs(left), taken=_number(epoch) > 0)

    async def apply(self, changes: Sequence[Write | Leave]) -> list[Outcome]:
        """Make changes, in their order, each whole or not at all."""
        groups: list[list[Write | Leave]] = [[]]
        for change in changes:  # writes that follow each other are one command
            if groups[-1] and not (isinstance(change, Write) and isinstance(groups[-1][-1], Write)):
                groups.append([])
            groups[-1].append(change)
        answers = await self._ask_all([self._command(group) for group in groups])
        outcomes: list[Outcome] = []
        for group, answer in zip(groups, answers, strict=True):
            if isinstance(answer, ResponseError) and len(group) > 1:  # it may be the fault of one alone
                for change in group:
                    outcomes += await self.apply([change])
            else:
                outcomes += _outcomes(len(group), answer)
        return outcomes

    def _command(self, group: Sequence[Write | Leave]) -> tuple[Argument, ...]:
        places: list[Argument] = []
        arguments: list[Argument] = [self._ttl]
        for change in group:
            if isinstance(change, Leave):
                return _call(scripts.LEAVE, change.place, self._ttl, change.id, change.value, MOST_LEFT)
            # As bytes, which the client takes as they are; of others it asks what they are, one class after the other.
            there = b"0" if change.value is None else b"1"
            places.append(change.place.encode())
            arguments += (b"%d" % change.epoch, there, change.value or b"", b"%d" % len(change.merged), *change.merged)
        return ("EVALSHA", _SHA[scripts.WRITE], len(places), *places, *arguments)

    async def remove_all(self, prefix: str) -> int:
        """Remove every session whose place begins so; return how many there were."""
        cursor, removed = b"0", 0
        while True:
            answer = await self._ask(("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", _SCAN))
            found, places = _listed(answer, 2)
            if isinstance(places, list) and places:
                removed += _number(await self._ask(("UNLINK", *places)))
            cursor = found if isinstance(found, bytes) else b"0"
            if cursor == b"0":
                return removed

    async def ping(self) -> None:
        """Ask for a sign of life."""
        await self._ask(("PING",))

    async def close(self) -> None:
        """Let go of all connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await _disconnect(connection)

    async def _ask(self, command: tuple[Argument, ...]) -> object:
        (answer,) = await self._ask_all([command])
        if isinstance(answer, ResponseError):
            raise StoreError(told(answer))
        return answer

    async def _ask_all(self, commands: Sequence[tuple[Argument, ...]]) -> list[object]:
        """Send commands at once, and return what each is answered with, which may be an error."""
        try:
            return await within(self._timeout, self._exchange(commands))
        except asyncio.TimeoutError:
            raise StoreError(f"no answer within {self._timeout:g} s") from None
        except (ValkeyError, OSError) as error:
            raise StoreError(told(error)) from None

    async def _exchange(self, commands: Sequence[tuple[Argument, ...]]) -> list[object]:
        async with self._connection() as connection:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            answers: list[object] = []
            for _ in commands:
                try:
                    answers.append(await connection.read_response(disable_decoding=True))
                except ResponseError as error:
                    answers.append(error)
            for answer in answers:
                # The server has forgotten the scripts, or is a replica now: a new connection brings them, or finds it.
                if isinstance(answer, (NoScriptError, ReadOnlyError)):
                    raise answer
            return answers

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._free:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                yield connection
            except BaseException:
                await _disconnect(connection)
                raise
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        address = self._address
        options: dict[str, Any] = {
            "host": address.host,
            "port": address.port,
            "db": address.database,
            "username": address.user,
            "password": self._password,
            "socket_timeout": None,  # all of an exchange has one
            "lib_name": None,
            "lib_version": None,
        }
        if address.tls:
            connection: Connection = SSLConnection(
                **options,
                ssl_ca_certs=str(self._ca_file) if self._ca_file is not None else None,
                ssl_check_hostname=True,
                ssl_min_version=ssl.TLSVersion.TLSv1_2,
            )
        else:
            connection = Connection(**options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            for script in scripts.ALL:
                await connection.send_command("SCRIPT", "LOAD", script, check_health=False)
                await connection.read_response()
        except BaseException:
            await _disconnect(connection)
            raise
        return connection


def told(error: BaseException) -> str:
    """An error of the store for the log: what it says, which holds neither values nor passwords, in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def _disconnect(connection: Connection) -> None:
    # At once: what waits in its buffers is for nobody.
    await connection.disconnect(nowait=True)


def _call(script: str, place: str, *arguments: Argument) -> tuple[Argument, ...]:
    return ("EVALSHA", _SHA[script], 1, place, *arguments)


def _outcomes(changes: int, answer: object) -> list[Outcome]:
    """What an answer says of so many changes: a digit for each; then the numbers of some, and turns beside these."""
    if isinstance(answer, ResponseError):
        return [Outcome(False, error=told(answer))] * changes
    digits = answer[0] if isinstance(answer, list) and answer else None
    if not isinstance(digits, bytes) or len(digits) != changes:
        return [Outcome(False, error="an answer of another form")] * changes
    beside = dict(zip(answer[1::2], answer[2::2], strict=False)) if isinstance(answer, list) else {}
    return [Outcome(digit == ord("1"), _pairs(beside.get(number))) for number, digit in enumerate(digits, 1)]


def _listed(answer: object, length: int) -> list[object]:
    if not isinstance(answer, list) or len(answer) > length:
        raise StoreError("an answer of another form")
    return [*answer, *([None] * (length - len(answer)))]


def _number(answer: object) -> int:
    try:
        return int(answer) if isinstance(answer, (bytes, int)) else 0
    except ValueError:
        return 0


def _bytes_or_none(answer: object) -> bytes | None:
    return answer if isinstance(answer, bytes) else None


def _pairs(answer: object) -> tuple[tuple[str, bytes], ...]:
    """Turns that lie beside a session, oldest first."""
    if not isinstance(answer, list):
        return ()
    pairs = zip(answer[::2], answer[1::2], strict=False)
    return tuple(sorted((name.decode("utf-8", "replace"), value) for name, value in pairs))
