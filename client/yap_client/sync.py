"""A client for scripts without asyncio: a loop in a thread of its own, and plain iterators.

    with connect("ws://127.0.0.1:8000/ws", key) as talk:
        for event in talk.say("Hello!"):
            ...

Ctrl-C inside a loop ends the turn on the server, and leaving `with` closes the connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import TypeVar

from yap_client import talk
from yap_client.arguments import Facts, HistoryItem, Sampling, Unpack
from yap_client.errors import ClosedError
from yap_client.events import Ack, Done, Interrupted, TurnEvent, Usage, Warmed
from yap_client.network.backoff import Backoff
from yap_client.talk import Talk
from yap_client.transcript import Message
from yap_client.turn import Turn

T = TypeVar("T")

CLOSED = "the client is closed, or was not opened: `with connect(…) as talk`"


class Options(Facts, total=False):
    """What `connect` takes beside address and key: see `yap_client.connect`."""

    session: str | None
    history: Iterable[HistoryItem] | None
    sampling: Sampling | None
    backoff: Backoff | None
    silence: float | None
    open_timeout: float


class Ahead(Facts, total=False):
    """What `prepare` takes beside the utterance: see `yap_client.Talk.prepare`."""

    heard: str | int | None
    history: Iterable[HistoryItem] | None
    sampling: Sampling | None
    runtime_text: str | None


class Words(Ahead, total=False):
    """What `say` takes beside the utterance: see `yap_client.Talk.say`."""

    traceparent: str | None


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopped = False
        # Nothing comes to a loop that will not run it. Reentrant: an iterator may be collected anywhere.
        self._lock = threading.RLock()
        # A daemon: a script that forgets to close can end all the same.
        self._thread = threading.Thread(target=self._loop.run_forever, name="yap-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[None, None, T]) -> T:
        """Run a coroutine to its end; whoever stops waiting, by Ctrl-C say, cancels it.

        Raises:
            ClosedError: the thread has ended, or ends meanwhile.
        """
        with self._lock:
            if self._stopped:
                work.close()
                raise ClosedError(CLOSED)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            if self._stopped:
                raise ClosedError(CLOSED) from None
            raise
        except BaseException:
            future.cancel()
            raise

    def soon(self, call: Callable[[], None]) -> None:
        """Call something in the thread, and do not wait."""
        with self._lock:
            if not self._stopped:
                self._loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        """End the thread, and whatever still runs in it."""
        with self._lock:
            stopped, self._stopped = self._stopped, True
        if not stopped:
            asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _end_all() -> None:
    """End every other task of this loop."""
    loop = asyncio.get_running_loop()
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in others:
            task.cancel()
        await asyncio.wait(others)
    await loop.shutdown_asyncgens()


class SyncTurn:
    """One turn: `for event in turn` yields its events as they come, as those of `yap_client.Turn`."""

    def __init__(self, thread: LoopThread, turn: Turn) -> None:
        self._thread = thread
        self._turn = turn

    @property
    def request_id(self) -> str:
        """The id that every event of the turn carries."""
        return self._turn.request_id

    @property
    def text(self) -> str:
        """The reply so far, as far as its events were taken."""
        return self._turn.text

    @property
    def ended(self) -> Done | Interrupted | None:
        """The last event; none before."""
        return self._turn.ended

    @property
    def usage(self) -> Usage | None:
        """What the turn cost; none before its end, and where it was cut short."""
        return self._turn.usage

    def cancel(self) -> None:
        """End the turn; its last event follows when the engine has let go."""
        self._thread.soon(self._turn.cancel)

    def reply(self) -> str:
        """Take all events, and return the whole text; see `yap_client.Turn.reply`."""
        return self._thread.run(self._turn.reply())

    def __iter__(self) -> Iterator[TurnEvent]:
        try:
            while (event := self._thread.run(_next(self._turn))) is not None:
                yield event
        finally:
            self.cancel()


class SyncTalk:
    """A conversation with a server, as `yap_client.Talk`, whose methods wait."""

    def __init__(self, made: Talk) -> None:
        self._talk = made
        self._thread: LoopThread | None = None

    @property
    def session(self) -> str:
        """The session's name."""
        return self._talk.session

    @property
    def history(self) -> tuple[Message, ...]:
        """What was said so far, as the session's history has it."""
        return self._talk.history

    def say(self, utterance: str, **words: Unpack[Words]) -> SyncTurn:
        """Say something, and listen to the reply; a turn that runs ends."""

        async def say() -> Turn:
            return self._talk.say(utterance, **words)

        return SyncTurn(self._running, self._running.run(say()))

    def prepare(self, utterance: str, **words: Unpack[Ahead]) -> bool:
        """Have the reply begun to something that will probably be said; return whether the server was asked."""

        async def prepare() -> bool:
            return self._talk.prepare(utterance, **words)

        return self._running.run(prepare())

    def followup(self, analysis: str, *, heard: str | int | None = None, sampling: Sampling | None = None) -> SyncTurn:
        """Say what was seen on the screen: a turn without a decision."""

        async def follow_up() -> Turn:
            return self._talk.followup(analysis, heard=heard, sampling=sampling)

        return SyncTurn(self._running, self._running.run(follow_up()))

    def cancel(self) -> None:
        """End the turn that runs, and wait until the engine has let go of it."""
        self._running.run(self._talk.cancel())

    def heard(self, text: str | None = None, *, chars: int | None = None) -> Ack | None:
        """Say how much of the last reply the listener got."""
        return self._running.run(self._talk.heard(text, chars=chars))

    def warm(
        self,
        *,
        persona: str | None = None,
        history: Iterable[HistoryItem] | None = None,
        runtime_text: str | None = None,
    ) -> Warmed:
        """Prefill what the next turn will begin with."""
        return self._running.run(self._talk.warm(persona=persona, history=history, runtime_text=runtime_text))

    def set_persona(self, persona: str, *, gender: str | None = None, style: str | None = None) -> Ack | None:
        """Replace the persona from the next turn on."""
        return self._running.run(self._talk.set_persona(persona, gender=gender, style=style))

    def set_history(self, history: Iterable[HistoryItem]) -> None:
        """Replace what was said so far, from the next turn on."""

        async def replace() -> None:
            self._talk.set_history(history)

        self._running.run(replace())

    def ping(self) -> float:
        """Ask for a sign of life, and return the seconds that it took."""
        return self._running.run(self._talk.ping())

    def close(self) -> None:
        """Leave: a turn that runs ends, and the thread too."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.run(self._talk.close())
            finally:
                thread.stop()

    @property
    def _running(self) -> LoopThread:
        if self._thread is None:
            raise ClosedError(CLOSED)
        return self._thread

    def __enter__(self) -> SyncTalk:
        if self._thread is not None:
            raise ClosedError("the client was opened already: `connect` makes another")
        self._thread = LoopThread()
        try:
            self._thread.run(self._talk.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next(turn: Turn) -> TurnEvent | None:
    """The turn's next event; none at its end."""
    try:
        return await turn.__anext__()
    except StopAsyncIteration:
        return None


def connect(url: str, key: str | None = None, **options: Unpack[Options]) -> SyncTalk:
    """Make a client: `with connect(url, key) as talk: …`; takes what `yap_client.connect` does."""
    return SyncTalk(talk.connect(url, key, **options))
