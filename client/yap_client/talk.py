"""A talk: one session, over one WebSocket at a time, which comes back when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from yap_client.backoff import Backoff
from yap_client.dialogue import Dialogue
from yap_client.errors import (
    AuthenticationError,
    CapacityError,
    ClosedError,
    ProtocolError,
    ServerGoneError,
    YapError,
)
from yap_client.events import Ack, Frame, Warmed
from yap_client.exchanges import Request
from yap_client.session import Facts, HistoryItem, Sampling, Session, Value, read_messages
from yap_client.transcript import Message, Transcript
from yap_client.turn import Turn, came_within

if TYPE_CHECKING:
    from typing_extensions import Unpack

SESSION_HEADER = "X-Session-Id"
# What goes through every proxy as it is.
PLAIN = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")
# The server closes what is silent for 150 s; people think for longer.
KEEP_ALIVE_S = 50.0
# A connection that lasted as long was a good one: the next loss is a new misfortune.
LASTING_S = 5.0
CLOSE_TIMEOUT_S = 2.0
MOST_FRAME_BYTES = 2**22
NOT_OPENED = "the client was not opened: `async with connect(…) as talk`"
SENDABLE_KEY = re.compile(r"[ -~]*")
# What an address may have before its host.
USER = re.compile(r"//[^/@]*@")
# Statuses of a handshake that say that a later one may succeed.
PASSING = frozenset({408, 425, 429})


def routing_key(session: str) -> str:
    """The session's name as a router sees it: itself where a header can hold it, else its hash.

    >>> routing_key("caller-42"), routing_key("Ä")
    ('caller-42', '2fe5ca1c1a3d50bd92f1d3cf6da34ceddabe02022b2a0183ab0b805ada6f787a')
    """
    return session if PLAIN.fullmatch(session) else hashlib.sha256(session.encode()).hexdigest()


class Talk:
    """A conversation with a server; `connect` makes it. It says things in turns, and one turn at a time is heard.

    Attributes:
        history: what was said so far, as the session's history has it.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        session: Session,
        *,
        backoff: Backoff | None,
        silence: float | None,
        open_timeout: float,
    ) -> None:
        self._url = url  # may hold a key
        # Of each handshake.
        self._headers = {SESSION_HEADER: routing_key(session.key)}
        self._key = (key or "").strip()  # of a file that ends with its line, say
        if self._key:
            self._headers["X-API-Key"] = self._key
        self._session = session  # what is said, and what the server has been told
        self._backoff = backoff  # none never connects again
        self._silence = silence  # seconds
        self._open_timeout = open_timeout  # seconds
        self._dialogue = Dialogue(session)  # the protocol
        self._dialogue.dead = ClosedError(NOT_OPENED)
        self._dialogue.flush = self._flush
        self._dialogue.welcomed = self._welcomed
        self._outgoing = asyncio.Event()  # set while the dialogue has texts to be sent
        self._retry = asyncio.Event()  # set when something is said while nobody tries to connect any more
        self._socket: ClientConnection | None = None  # none between connections
        self._entered: asyncio.Future[None] | None = None  # done when a server took the client for the first time
        self._runner: asyncio.Task[None] | None = None  # connects, and connects again

    @property
    def session(self) -> str:
        """The session's name, with which another client, or another process, goes on."""
        return self._session.key

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said so far, as the session's history has it."""
        return self._session.transcript.messages

    @property
    def transcript(self) -> Transcript:
        """What was said so far, and whether that is all that the session's history has."""
        return self._session.transcript

    @property
    def gone(self) -> YapError | None:
        """Why nothing can be said over this client any more; none while something can, if only after a pause."""
        return self._dialogue.dead

    @property
    def current(self) -> str | None:
        """The `request_id` of the turn that runs; none between turns."""
        state = self._dialogue.current
        return state.id if state is not None and not state.over else None

    # Turns

    def say(
        self,
        utterance: str,
        *,
        heard: str | int | None = None,
        history: Iterable[HistoryItem] | None = None,
        sampling: Sampling | None = None,
        runtime_text: str | None = None,
        traceparent: str | None = None,
        **facts: Unpack[Facts],
    ) -> Turn:
        """Say something, and listen to the reply. A turn that runs ends: this is how one interrupts.

        Args:
            utterance: the user's words; where there are none, the assistant speaks first.
            heard: what the listener got of the reply before, a beginning of its text or so many characters.
            history: replaces what was said so far.
            sampling: how this and later replies are drawn.
            runtime_text: follows the persona in this turn.
            traceparent: the caller's span, as W3C Trace Context writes it.
            facts: what the session keeps from now on.
        """
        _check_text("utterance", utterance)
        self._say_heard(heard)
        undo = self._session.want(facts, sampling)
        if history is not None:
            self._session.replace_history(history)
        fields: dict[str, Value] = {"user_utterance": utterance}
        fields.update({"runtime_text": runtime_text} if runtime_text else {})
        fields.update({"traceparent": traceparent} if traceparent else {})
        state = self._dialogue.say("start", fields, utterance)
        state.undo = undo
        self._awake()
        return Turn(self._dialogue, state, self._silence)

    def prepare(
        self,
        utterance: str,
        *,
        heard: str | int | None = None,
        history: Iterable[HistoryItem] | None = None,
        sampling: Sampling | None = None,
        runtime_text: str | None = None,
        **facts: Unpack[Facts],
    ) -> bool:
        """Have the reply begun to something that will probably be said, for a recognizer that believes in its end.

        A `say` of the same gets what is ready at once; anything else is as it was without. The newest counts, for a few
        seconds. A turn that runs goes on. It never waits and never fails: where there is no connection right now, or
        the server is asked too often, nothing is prepared.

        Args:
            utterance: what `say` will say.
            heard, history, sampling, runtime_text, facts: as for `say`. What was heard counts from now on; of all the
                others nothing is kept.

        Returns:
            Whether the server was asked.
        """
        _check_text("utterance", utterance)
        self._say_heard(heard)
        fields = self._session.due_with(facts, sampling, history)
        fields["user_utterance"] = utterance
        fields.update({"runtime_text": runtime_text} if runtime_text else {})
        return self._dialogue.prepare(fields)

    def followup(self, analysis: str, *, heard: str | int | None = None, sampling: Sampling | None = None) -> Turn:
        """Say what was seen on the screen: a turn without a decision.

        Args:
            analysis: what a model of the client's own made of the picture.
            heard: as for `say`.
            sampling: how this reply is drawn.
        """
        _check_text("analysis", analysis)
        self._say_heard(heard)
        fields: dict[str, Value] = {"analysis_text": analysis}
        fields.update({"sampling": msgspec.to_builtins(sampling)} if sampling else {})
        state = self._dialogue.say("followup", fields, self._session.followed_up(analysis))
        self._awake()
        return Turn(self._dialogue, state, self._silence)

    async def cancel(self) -> None:
        """End the turn that runs, and wait until the engine has let go of it."""
        state = self._dialogue.current
        if state is not None and not state.over:
            self._dialogue.cancel(state)
            previous, ended = state.wake, asyncio.Event()

            def wake() -> None:
                previous()
                ended.set()

            state.wake = wake
            while not state.over:
                ended.clear()
                await ended.wait()

    # Between turns

    async def heard(self, text: str | None = None, *, chars: int | None = None) -> Ack | None:
        """Say how much of the last reply the listener got; the history keeps that much of it.

        Args:
            text: a beginning of the reply.
            chars: so many characters of it.

        Returns:
            The server's answer; none where no turn was said yet.
        """
        request = self._say_heard(text if text is not None else chars)
        answer = None if request is None else await self._answer(request)
        return answer if isinstance(answer, Ack) else None

    async def warm(
        self,
        *,
        persona: str | None = None,
        history: Iterable[HistoryItem] | None = None,
        runtime_text: str | None = None,
    ) -> Warmed:
        """Prefill what the next turn will begin with, so that its first word comes sooner.

        Args:
            persona: another system prompt than the session's.
            history: another history than the session's.
            runtime_text: what will follow the persona.
        """
        chosen = self._session.wanted("persona_text") if persona is None else persona
        if history is None:
            known = list(self._session.transcript.newest()) if persona is None else []
        else:
            known = read_messages(history)
        if chosen and not known and not runtime_text:
            request = self._dialogue.request("warm_persona", {"persona_text": chosen})
        else:
            fields: dict[str, Value] = {"history": msgspec.to_builtins(known)}
            fields.update({"persona_text": chosen} if chosen else {})
            fields.update({"runtime_text": runtime_text} if runtime_text else {})
            request = self._dialogue.request("warm_history", fields)
        answer = await self._answer(request)
        if not isinstance(answer, Warmed):
            raise ProtocolError(f"expected a frame of type warmed, found {answer}")
        return answer

    async def set_persona(self, persona: str, *, gender: str | None = None, style: str | None = None) -> Ack | None:
        """Replace the persona from the next turn on; the history stays.

        Returns:
            The server's answer; none where it is told with the next turn, since it does not know the session yet.

        Raises:
            RateLimitError: the server takes so many new personas a minute.
            RefusedError: it does not take this one.
        """
        undo = self._session.want({"persona": persona, "gender": gender, "style": style})
        if not self._session.begun:
            return None
        fields: dict[str, Value] = {"session_id": self._session.key, "persona_text": persona}
        fields.update({"gender": gender} if gender else {})
        fields.update({"persona_style": style} if style else {})
        request = self._dialogue.request("chat_prompt", fields)
        request.undo = undo
        answer = await self._answer(request)
        return answer if isinstance(answer, Ack) else None

    def set_history(self, history: Iterable[HistoryItem]) -> None:
        """Replace what was said so far, from the next turn on."""
        self._session.replace_history(history)

    async def ping(self) -> float:
        """Ask for a sign of life, and return the seconds that it took."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._answer(self._dialogue.request("ping", {}))
        return clock() - began

    def _say_heard(self, heard: str | int | None) -> Request | None:
        state = self._dialogue.current
        if heard is None or state is None:
            return None
        return self._dialogue.heard(state, {"text": heard} if isinstance(heard, str) else {"chars": heard})

    async def _answer(self, request: Request) -> Frame | None:
        came = asyncio.Event()
        request.wake = came.set
        self._awake()
        if not request.over and not await came_within(self._silence, came):
            raise ServerGoneError(f"expected an answer within {self._silence:g} s, got none")
        if request.error is not None:
            raise request.error
        return request.answer

    # The connection

    async def __aenter__(self) -> Talk:
        loop = asyncio.get_running_loop()
        if self._dialogue.closed or (self._runner is not None and not self._runner.done()):
            raise ClosedError("the client was opened already: `connect` makes another")
        self._dialogue.dead = None
        self._outgoing, self._retry = asyncio.Event(), asyncio.Event()  # those of an attempt before are its loop's
        self._entered = loop.create_future()
        self._runner = loop.create_task(self._run(self._entered))
        try:
            await self._entered
        except BaseException:
            self._runner.cancel()
            await asyncio.wait((self._runner,))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave: a turn that runs ends, and the server forgets nothing of the session."""
        self._dialogue.end()
        runner = self._runner
        if runner is not None:
            if self._socket is None:
                runner.cancel()
            if not runner.done():  # else it may be another loop's, which is closed
                await asyncio.wait((runner,), timeout=CLOSE_TIMEOUT_S)
            if not runner.done():
                runner.cancel()
                await asyncio.wait((runner,))
            if not runner.cancelled():
                runner.result()

    def _flush(self) -> None:
        self._outgoing.set()

    def _awake(self) -> None:
        self._retry.set()

    def _welcomed(self) -> None:
        if self._entered is not None and not self._entered.done():
            self._entered.set_result(None)

    async def _run(self, entered: asyncio.Future[None]) -> None:
        """Converse until the client is closed or it is of no use. Whatever ends this, nobody waits for it in vain."""
        try:
            await self._stay(entered)
        except Exception as error:
            self._dialogue.give_up(ClosedError(f"the client failed: {type(error).__name__}"), for_good=True)
            if not entered.done():
                entered.set_exception(error)
            raise

    async def _stay(self, entered: asyncio.Future[None]) -> None:
        """Connect, and connect again."""
        clock = asyncio.get_running_loop().time
        dialogue, backoff = self._dialogue, self._backoff
        attempt, since = 0, clock()
        while True:
            began = clock()
            error = await self._connect_once()
            if dialogue.closed:
                return
            if dialogue.proven or (self._lasted and clock() - began >= LASTING_S):
                attempt, since = 0, clock()
            dialogue.proven = False
            hopeless = backoff is None or isinstance(error, (AuthenticationError, ProtocolError))
            # Whoever begins wants to know at once that there is no server; a full one may have a place soon.
            hopeless = hopeless or not (entered.done() or isinstance(error, CapacityError))
            pause = 0.0 if backoff is None else backoff.pause(attempt)
            if hopeless or (backoff is not None and clock() + pause > since + backoff.within):
                dialogue.give_up(error, for_good=hopeless)
                if not entered.done():
                    entered.set_exception(error)
                    return
                if hopeless:
                    return
                self._retry.clear()
                await self._retry.wait()  # the next one to say something tries again
                attempt, since = 0, clock()
            else:
                attempt += 1
                await asyncio.sleep(pause)

    async def _connect_once(self) -> YapError:
        """Open a socket and converse over it to its end; return why it ended."""
        self._lasted = False
        shown = USER.sub("//", self._url.partition("?")[0])  # a key may be behind it, and a password in it
        if not SENDABLE_KEY.fullmatch(self._key):
            return AuthenticationError(
                "the key has characters that a field of a head cannot hold; put it into the address: ?api_key=…, "
                "percent-encoded"
            )
        try:
            socket = await open_socket(
                self._url,
                additional_headers=self._headers,
                compression=None,
                max_size=MOST_FRAME_BYTES,
                open_timeout=self._open_timeout,
                close_timeout=CLOSE_TIMEOUT_S,
            )
        except (InvalidURI, ValueError) as wrong:
            why = wrong.msg if isinstance(wrong, InvalidURI) else wrong
            return ProtocolError(f"expected an address such as ws://127.0.0.1:8000/ws, found {shown}: {why}")
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status in (401, 403):
                return AuthenticationError(f"{shown} answered {status}")
            kind = ProtocolError if 400 <= status < 500 and status not in PASSING else ServerGoneError
            return kind(f"cannot reach {shown}: it answered {status}")
        except (OSError, asyncio.TimeoutError, InvalidHandshake, EOFError) as wrong:
            why = str(wrong) or f"no answer within {self._open_timeout:g} s"
            return ServerGoneError(f"cannot reach {shown}: {why}")
        self._socket, self._lasted = socket, True
        loop = asyncio.get_running_loop()
        writer = loop.create_task(self._write(socket))
        patience = loop.call_later(self._open_timeout, self._give_up_on, socket)
        wrong_frame: ProtocolError | None = None
        try:
            self._dialogue.connected()
            async for text in socket:
                self._dialogue.received(text)
        except ConnectionClosed:
            pass
        except ProtocolError as wrong:
            wrong_frame = wrong
        finally:
            self._socket = None
            patience.cancel()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await socket.close()
            error = wrong_frame or self._ended(socket)
            self._dialogue.lost(str(error), socket.close_code)
        return error

    def _give_up_on(self, socket: ClientConnection) -> None:
        """Cut a connection whose server took it and says nothing."""
        if not self._dialogue.greeted:
            socket.transport.abort()

    def _ended(self, socket: ClientConnection) -> YapError:
        """Say why a connection has ended."""
        if self._dialogue.refusal is not None:
            return self._dialogue.refusal
        code, reason = socket.close_code or 1006, socket.close_reason or "no close frame"
        kind = {1008: AuthenticationError, 1013: CapacityError}.get(code, ServerGoneError)
        return kind(f"the server closed the connection: {code} {reason}")

    async def _write(self, socket: ClientConnection) -> None:
        """Send what the dialogue has to say, and a sign of life where it has nothing."""
        outgoing, texts = self._outgoing, self._dialogue.outgoing
        with contextlib.suppress(ConnectionClosed):
            while True:
                while texts:
                    await socket.send(texts.popleft())
                outgoing.clear()
                if not await came_within(KEEP_ALIVE_S, outgoing):
                    await socket.send('{"type":"pong"}')


def connect(
    url: str,
    key: str | None = None,
    *,
    session: str | None = None,
    history: Iterable[HistoryItem] | None = None,
    sampling: Sampling | None = None,
    backoff: Backoff | None = Backoff(),  # noqa: B008 - frozen
    silence: float | None = 90.0,
    open_timeout: float = 10.0,
    **facts: Unpack[Facts],
) -> Talk:
    """Make a client: `async with connect(url, key) as talk: …`.

    Args:
        url: the server's WebSocket, such as `wss://example.com/ws`.
        key: an API key; it travels in a header.
        session: the session's name; none for a new one.
        history: what was said before; replaces what the session has.
        sampling: how replies are drawn.
        backoff: pauses between attempts to connect; none never connects again.
        silence: seconds without a frame after which a server that is waited for counts as gone; none waits for ever.
        open_timeout: seconds that a handshake may take.
        facts: what the session keeps: persona, gender, style and others.

    Raises:
        AuthenticationError, CapacityError, ServerGoneError, ProtocolError: on entering.
    """
    return Talk(
        url,
        key,
        Session(session, facts, sampling, history),
        backoff=backoff,
        silence=silence,
        open_timeout=open_timeout,
    )


def _check_text(name: str, value: object) -> None:
    """Refuse what is no text before anything is changed by it."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, found {type(value).__name__}")
