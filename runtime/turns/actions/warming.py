"""Prefills ahead of a turn: what a connection asked to have in the prefix cache. They run beside turns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

import structlog

from runtime.deployment.models import Chat, Deployment
from runtime.engines import EngineDeadError
from runtime.host.supervision import attempt, watch
from runtime.host.timeouts import within
from runtime.text.prompt import Message
from runtime.turns.outbox import Outbox
from runtime.turns.principal import Principal
from runtime.wire import frames
from runtime.wire.frames import RequestId

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt, to be prefilled.

    Attributes:
        segment: what the answer calls it.
        request_id: the message's.
        persona: the system prompt.
        runtime_text: follows the persona.
        history: none for what every prompt with the persona begins with, whatever history follows.
        warnings: the message's.
    """

    segment: str
    request_id: RequestId | None
    persona: str
    runtime_text: str = ""
    history: tuple[Message, ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the texts that it is made of."""
        texts = (self.persona, self.runtime_text, *(message.content for message in self.history or ()))
        return sum(len(text.encode()) for text in texts)


class Warming:
    """The prefills of one connection.

    Attributes:
        tasks: those that run, and what for.
        ended_at: loop time at which the last one ended.
    """

    def __init__(self, outbox: Outbox, deployment: Deployment, principal: Principal) -> None:
        self._principal = principal
        self._outbox = outbox
        self._deployment = deployment
        self.tasks: dict[asyncio.Task[None], Prefix] = {}
        self.ended_at = 0.0
        self._refused: set[asyncio.Task[None]] = set()  # cancelled and not over yet

    def begin(self, chat: Chat, prefix: Prefix) -> None:
        """Prefill; the answer comes through the outbox."""
        loop = asyncio.get_running_loop()
        task = watch("warming", loop.create_task(self._prefill(chat, prefix)))
        self.tasks[task] = prefix

        def done(task: asyncio.Task[None]) -> None:
            self.tasks.pop(task, None)
            self.ended_at = loop.time()

        task.add_done_callback(done)

    def refuse(self, code: str, message: str) -> None:
        """End all of them, with an error each."""
        for task in [task for task in self.tasks if not task.done()]:
            task.cancel()
            self._error(code, message, self.tasks.pop(task))
            self._refused.add(task)
            task.add_done_callback(self._refused.discard)

    async def close(self) -> None:
        """End all of them, and wait until the engine holds nothing of them."""
        tasks = [*self.tasks, *self._refused]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _prefill(self, chat: Chat, prefix: Prefix) -> None:
        try:
            tokens = await chat.render_prefix(
                prefix.persona, prefix.runtime_text, prefix.history, self._principal.cache_salt
            )
            if tokens:  # a template may begin with the first message
                warming = chat.engine.warm(tokens, self._principal.cache_salt)
                await within(self._deployment.generation_timeout, warming)
            reusable = chat.engine.reusable(len(tokens))
        except asyncio.TimeoutError:
            self._error("generation_timeout", "The prefix was not prefilled in time.", prefix)
            return
        except Exception as error:
            if isinstance(error, EngineDeadError):
                attempt("warming", partial(self._deployment.died, error))
            log.exception("warm_failed", error=type(error).__name__)
            self._error("generation_failed", "The prefix could not be prefilled.", prefix)
            return
        attempt("warming", self._deployment.warmed)
        self._outbox.put(
            frames.Warmed(
                segment=prefix.segment,
                tokens=reusable,
                bytes=prefix.size,
                warning=list(prefix.warnings),
                request_id=prefix.request_id,
            )
        )

    def _error(self, code: str, message: str, prefix: Prefix) -> None:
        self._outbox.put(frames.Error(error_code=code, message=message, request_id=prefix.request_id))
