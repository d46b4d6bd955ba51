"""A prepared reply: made before its `start`, and held back until then.

    waits ──► made ──► rests ──► released to a turn
      │         │        │
      └─────────┴────────┴──► ended: another start, a newer prepare, cancel, time, the connection's end, turns that need
                              the engine's places

Nothing of it is seen, and nothing is kept of it but what the engine's prefix cache has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from runtime.deployment.models import Deployment
from runtime.engines import EngineDeadError
from runtime.host import eager_tasks
from runtime.host.supervision import attempt
from runtime.text.replies.pause import Pause
from runtime.turns.answer import Answer, HeldAnswer, TurnRequest
from runtime.turns.principal import Principal

log = structlog.get_logger(__name__)

# Whose it is: the principal, and its name of the session.
Place = tuple[Principal, str]


class PreparedReply:
    """One prepared reply.

    Attributes:
        over: whether it was released, or ended.

    Args:
        deployment: shared by all turns.
        principal: whose it is.
        failed: called where it could not be made.
    """

    def __init__(self, deployment: Deployment, principal: Principal, failed: Callable[[], None]) -> None:
        self._deployment = deployment
        self._principal = principal
        self._failed = failed
        self._request: TurnRequest | None = None  # none before it begins, and once it is made
        self._held: HeldAnswer | None = None  # the same
        self._fits = False  # whether its system prompt is known to be within its budget
        self._pause = Pause(deployment.prepare_tokens, self._rests)  # until its `start`
        self._give_way: Callable[[], None] = lambda: self.end("displaced")  # what its place is lent to
        # Ends it when its time is over.
        self._timer = asyncio.get_running_loop().call_later(deployment.prepare_ttl, self.end, "expired")
        self.over = False

    @property
    def making(self) -> asyncio.Future[None] | None:
        """The task that makes it; done when the engine holds nothing of it. None where it never began."""
        return self._held.making if self._held is not None else None

    def begin(self, request: TurnRequest, refused: Callable[[], Awaitable[bool]]) -> None:
        """Make the reply, where there is room for it beside all turns.

        Args:
            request: what the `start` would ask.
            refused: says so where that would be refused, and returns whether it would.
        """
        if self.over:
            return
        deployment = self._deployment
        chat = deployment.chat
        if not deployment.prepare_tokens or (chat is not None and not chat.places.lend(self._give_way)):
            self.end("displaced")
            return
        answer = Answer(request, deployment, self._principal, pause=self._pause)
        self._request = request
        making = eager_tasks.start(self._make(answer, refused))
        self._held = HeldAnswer(answer, making)
        making.add_done_callback(self._made)

    async def _make(self, answer: Answer, refused: Callable[[], Awaitable[bool]]) -> None:
        if not await refused():
            self._fits = True
            await answer.make()

    def fits(self, persona: str, runtime_text: str) -> bool:
        """Whether such a system prompt is known to be within its budget, since it is this reply's own."""
        mine = self._request
        return self._fits and mine is not None and (mine.persona, mine.runtime_text) == (persona, runtime_text)

    def answers(self, request: TurnRequest) -> bool:
        """Whether it is the reply to a request, and the same that would be made now."""
        mine = self._request
        return not self.over and not self._pause.spoilt and mine is not None and mine.asks_the_same(request)

    def release(self) -> HeldAnswer:
        """Hand it over to the turn that asks for it.

        Raises:
            RuntimeError: it is over, or never began.
        """
        if self._held is None or self.over:
            raise RuntimeError("there is nothing to release")
        self._finish("hit", 0)
        return self._held

    def end(self, outcome: str) -> None:
        """Throw it away, for a reason that `yap_prepared_replies_total` knows; nothing where it is over."""
        if not self.over:
            self._finish(outcome, self._pause.made)
            if self._held is not None:
                self._held.making.cancel()

    def _finish(self, outcome: str, wasted: int) -> None:
        self.over = True
        self._timer.cancel()
        self._rests()
        self._pause.rests = self._give_way = _nothing  # which know this reply
        if self._held is None:  # else when that is made
            self._failed = _nothing  # which knows the message, with all of its history
        attempt("prepared", partial(self._deployment.metrics.prepared_ended, outcome, wasted))

    def _rests(self) -> None:
        """The engine holds nothing of it."""
        if self._deployment.chat is not None:
            self._deployment.chat.places.give_back(self._give_way)

    def _made(self, making: asyncio.Future[None]) -> None:
        """Its task is over: it was handed over, thrown away, refused, or it has failed."""
        self._request = self._held = None  # what was said: its connection may know this reply for long
        failed, self._failed = self._failed, _nothing
        error = None if making.cancelled() else making.exception()
        if isinstance(error, EngineDeadError):
            attempt("prepared", partial(self._deployment.died, error))
        if self.over:
            return
        self.end("failed")
        if error is not None:
            log.error("prepare_failed", error=type(error).__name__, exc_info=error)
            failed()


class PreparedReplies:
    """All that are held: one a session, whichever connection asked for it."""

    def __init__(self) -> None:
        self._held: dict[Place, PreparedReply] = {}

    def __len__(self) -> int:
        return sum(not held.over for held in self._held.values())

    def put(self, place: Place, prepared: PreparedReply) -> None:
        """Hold a reply; the one before it is thrown away."""
        self.end(place, "replaced", but=prepared)
        self._held[place] = prepared

    def end(self, place: Place, outcome: str, but: PreparedReply | None = None) -> None:
        """Throw away what is held for a session, unless it is that one."""
        held = self._held.pop(place, None)
        if held is not None and held is not but:
            held.end(outcome)

    def forget(self, place: Place, prepared: PreparedReply) -> None:
        """Let go of one that is over."""
        if self._held.get(place) is prepared:
            del self._held[place]


def _nothing() -> None:
    pass
