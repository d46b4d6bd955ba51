"""The store in a Valkey server: each session a hash that scripts change in one step; changes go as one pipeline."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from runtime.deployment.session_store import StoreAddress
from runtime.host.timeouts import within
from runtime.turns.stores import scripts
from runtime.turns.stores.interface import MOST_LEFT, PREFIX, Found, Leave, Outcome, StoreError, Taken, Write
from runtime.turns.stores.wire import Argument, Command, Refusal, Wire, told

# Open connections at most: one has the writes, the other what clients wait for who have just come.
CONNECTIONS = 2
_ACCEPTED, _REFUSED = Outcome(True), Outcome(False)
# A connection may take as many times longer than an answer: it is several of them, one after the other. Nobody waits so
# long; who comes when it is made has it.
CONNECT_TIMES = 6
# Keys that one step of a search looks at.
_SCAN = "1000"
# What a server says that has forgotten the scripts, or is a replica now: a new connection brings them, or finds it.
_ANEW = ("NOSCRIPT", "READONLY")

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
        # Once: reading the system's certificates takes tens of milliseconds, in which no reply would go on.
        self._tls = _tls(ca_file) if address.tls else None
        self._ttl = str(max(1, round(ttl * 1000)))
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()  # its clock
        # By whether they have the writes, or all else.
        self._wires: dict[bool, Wire] = {}  # open, or closed since
        self._opening: dict[bool, asyncio.Future[Wire]] = {}  # those that are being made

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
        groups: list[list[Write | Leave]] = []
        last: type | None = None
        for change in changes:  # writes that follow each other are one command
            if last is not Write or type(change) is not Write:
                groups.append([])
            groups[-1].append(change)
            last = type(change)
        answers = await self._ask_all([self._command(group) for group in groups], writes=True)
        outcomes: list[Outcome] = []
        for group, answer in zip(groups, answers, strict=True):
            if isinstance(answer, Refusal) and len(group) > 1:  # it may be the fault of one alone
                for change in group:
                    outcomes += await self.apply([change])
            else:
                outcomes += _outcomes(len(group), answer)
        return outcomes

    def _command(self, group: Sequence[Write | Leave]) -> tuple[Argument, ...]:
        places: list[Argument] = []
        heads: list[str] = []
        values: list[Argument] = []
        for change in group:
            if isinstance(change, Leave):
                return _call(scripts.LEAVE, change.place, self._ttl, change.id, change.value, MOST_LEFT)
            value, merged = change.value, change.merged
            places.append(change.place)
            heads.append(f"{change.epoch} {0 if value is None else 1} {len(merged)}")
            values.append(value or b"")
            if merged:
                values += merged
        return ("EVALSHA", _SHA[scripts.WRITE], len(places), *places, self._ttl, " ".join(heads), *values)

    async def remove_all(self, *prefixes: str) -> int:
        """Remove every session whose place begins with one of these; return how many there were.

        However many there are, the store is gone through once.
        """
        pattern = f"{prefixes[0] if len(prefixes) == 1 else PREFIX}*"
        wanted = {prefix.encode() for prefix in prefixes}
        lengths = {len(prefix) for prefix in wanted}
        cursor, removed = b"0", 0
        while prefixes:
            answer = await self._ask(("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN))
            found, listed = _listed(answer, 2)
            places = [
                place
                for place in (listed if isinstance(listed, list) else ())
                if isinstance(place, bytes) and any(place[:length] in wanted for length in lengths)
            ]
            if places:
                removed += _number(await self._ask(("UNLINK", *places)))
            cursor = found if isinstance(found, bytes) else b"0"
            if cursor == b"0":
                break
        return removed

    async def ping(self) -> None:
        """Ask whether it can be written: one that is full, or lets this user only read, answers a PING too."""
        await self._ask(_call(scripts.PROBE, PREFIX + "probe", self._ttl))

    async def close(self) -> None:
        """Let go of all connections."""
        for opening in list(self._opening.values()):
            opening.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for wire in self._wires.values():
            wire.close()
        self._wires.clear()

    async def _ask(self, command: Command) -> object:
        (answer,) = await self._ask_all([command])
        if isinstance(answer, Refusal):
            raise StoreError(str(answer))
        return answer

    async def _ask_all(self, commands: Sequence[Command], *, writes: bool = False) -> list[object]:
        """Send commands at once, and return what each is answered with, which may be a `Refusal`."""
        deadline = self._loop.time() + self._timeout
        wire = self._wires.get(writes)
        if wire is None or not wire.open:
            wire = await self._connected(writes)
            if deadline - self._loop.time() < self._timeout / 2:
                # A late answer would end the connection; the next attempt has it, and all of its time.
                raise StoreError("connecting left no time for an answer")
        try:
            answers = await wire.ask(commands, deadline)
        except asyncio.TimeoutError:
            raise StoreError(f"no answer within {self._timeout:g} s") from None
        for answer in answers:
            if isinstance(answer, Refusal) and str(answer).startswith(_ANEW):
                wire.close()
                raise StoreError(str(answer))
        return answers

    async def _connected(self, writes: bool) -> Wire:
        """A new connection, which all who want it meanwhile share. Where it takes long nobody waits, and it is made."""
        opening = self._opening.get(writes)
        if opening is None:
            opening = self._opening[writes] = asyncio.ensure_future(self._connect())
            opening.add_done_callback(partial(self._connect_ended, writes))
        try:
            return await within(self._timeout, asyncio.shield(opening))
        except asyncio.TimeoutError:
            raise StoreError(f"no connection within {self._timeout:g} s") from None

    def _connect_ended(self, writes: bool, opening: asyncio.Future[Wire]) -> None:
        del self._opening[writes]
        if not opening.cancelled() and opening.exception() is None:
            self._wires[writes] = opening.result()

    async def _connect(self) -> Wire:
        try:
            return await within(self._timeout * CONNECT_TIMES, self._open())
        except asyncio.TimeoutError:
            raise StoreError(f"no connection within {self._timeout * CONNECT_TIMES:g} s") from None
        except (OSError, ValueError) as error:  # a name that cannot be asked for is a ValueError
            raise StoreError(told(error)) from None

    async def _open(self) -> Wire:
        address = self._address
        _, wire = await self._loop.create_connection(Wire, address.host, address.port, ssl=self._tls)
        commands: list[Command] = [("SCRIPT", "LOAD", script) for script in scripts.ALL]
        if address.database:
            commands.insert(0, ("SELECT", address.database))
        if address.user is not None or self._password is not None:
            user = (address.user,) if address.user is not None else ()
            commands.insert(0, ("AUTH", *user, self._password or ""))
        try:
            for answer in await wire.ask(commands, self._loop.time() + self._timeout * CONNECT_TIMES):
                if isinstance(answer, Refusal):
                    raise StoreError(str(answer))
        except BaseException:
            wire.close()
            raise
        return wire


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _call(script: str, place: str, *arguments: Argument) -> tuple[Argument, ...]:
    return ("EVALSHA", _SHA[script], 1, place, *arguments)


def _outcomes(changes: int, answer: object) -> list[Outcome]:
    """What an answer says of so many changes: a digit for each; then the numbers of some, and turns beside these."""
    if isinstance(answer, Refusal):
        return [Outcome(False, error=str(answer))] * changes
    digits = answer[0] if isinstance(answer, list) and answer else None
    if not isinstance(digits, bytes) or len(digits) != changes:
        return [Outcome(False, error="an answer of another form")] * changes
    if isinstance(answer, list) and len(answer) == 1:  # as nearly always: nothing lies beside any of them
        return [_ACCEPTED if digit == ord("1") else _REFUSED for digit in digits]
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
