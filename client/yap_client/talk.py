"""A talk: one session, over one WebSocket at a time, which comes back when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType

import msgspec

from yap_client.arguments import Facts, HistoryItem, Sampling, Unpack, check_facts, check_text
from yap_client.dialogue import Dialogue
from yap_client.dialogue.exchanges import Request, TurnState
from yap_client.errors import ProtocolError, ServerGoneError, YapError
from yap_client.events import Ack, Frame, Warmed
from yap_client.network.backoff import Backoff
from yap_client.network.connection import Connection
from yap_client.session import Session, read_messages, some
from yap_client.transcript import Message, Transcript
from yap_client.turn import Turn, came_within

# The server closes what is silent for 150 s; people think for longer.
KEEP_ALIVE_S = 50.0


class Talk:
    """A conversation with a server; `connect` makes it. It says things in turns, and one turn at a time is heard.

    Attributes:
        history: what was said so far, as the session's history has it.
    """

    def __init__(self, dialogue: Dialogue, connection: Connection, silence: float | None) -> None:
        self._dialogue = dialogue  # the protocol
        self._session = dialogue.session  # what is said, and what the server has been told
        self._connection = connection
        self._silence = silence  # seconds

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

        Raises:
            TypeError: one of them is something else; nothing was said.
        """
        check_text("utterance", utterance)
        check_facts("say", facts, Talk.say.__kwdefaults__)
        past = None if history is None else read_messages(history)
        self._say_heard(heard)
        undo = self._session.want(facts, sampling)
        if past is not None:
            self._session.replace_history(past)
        fields = {"user_utterance": utterance, **some(runtime_text=runtime_text, traceparent=traceparent)}
        state = self._dialogue.say("start", fields, utterance)
        state.undo = undo
        return self._listen(state)

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

        Raises:
            TypeError: an argument is something else; nothing was asked.
        """
        check_text("utterance", utterance)
        check_facts("prepare", facts, Talk.prepare.__kwdefaults__)
        past = None if history is None else read_messages(history)
        self._say_heard(heard)
        due = self._session.due_with(facts, sampling, past)
        return self._dialogue.prepare({**due, "user_utterance": utterance, **some(runtime_text=runtime_text)})

    def followup(self, analysis: str, *, heard: str | int | None = None, sampling: Sampling | None = None) -> Turn:
        """Say what was seen on the screen: a turn without a decision.

        Args:
            analysis: what a model of the client's own made of the picture.
            heard: as for `say`.
            sampling: how this reply is drawn.
        """
        check_text("analysis", analysis)
        self._say_heard(heard)
        fields = {"analysis_text": analysis, **some(sampling=msgspec.to_builtins(sampling))}
        return self._listen(self._dialogue.say("followup", fields, self._session.followed_up(analysis)))

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
            also = some(persona_text=chosen, runtime_text=runtime_text)
            request = self._dialogue.request("warm_history", {"history": msgspec.to_builtins(known), **also})
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
        check_text("persona", persona)
        undo = self._session.want({"persona": persona, "gender": gender, "style": style})
        if not self._session.begun:
            return None
        also = some(gender=gender, persona_style=style)
        fields = {"session_id": self._session.key, "persona_text": persona, **also}
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

    def _listen(self, state: TurnState) -> Turn:
        self._connection.awake()
        return Turn(self._dialogue, state, self._silence)

    def _say_heard(self, heard: str | int | None) -> Request | None:
        state = self._dialogue.current
        if heard is None or state is None:
            return None
        return self._dialogue.heard(state, {"text": heard} if isinstance(heard, str) else {"chars": heard})

    async def _answer(self, request: Request) -> Frame | None:
        came = asyncio.Event()
        request.wake = came.set
        self._connection.awake()
        if not request.over and not await came_within(self._silence, came):
            raise ServerGoneError(f"expected an answer within {self._silence:g} s, got none")
        if request.error is not None:
            raise request.error
        return request.answer

    # The connection

    async def __aenter__(self) -> Talk:
        await self._connection.open(KEEP_ALIVE_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave: a turn that runs ends, and the server forgets nothing of the session."""
        self._dialogue.end()
        await self._connection.close()


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
        TypeError: an argument is something else.
    """
    check_text("url", url)
    for name, value in (("key", key), ("session", session)):
        check_text(name, value or "")
    check_facts("connect", facts, connect.__kwdefaults__)
    dialogue = Dialogue(Session(session, facts, sampling, history))
    return Talk(dialogue, Connection(dialogue, url, key, backoff=backoff, open_timeout=open_timeout), silence)
