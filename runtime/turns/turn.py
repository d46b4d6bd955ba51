"""One turn: tool decision beside prompt and prefill, then the reply, then exactly one `done`.

    begin ──► decide ∥ (render → prefill) ──► toolcall ──► token … ──► final ──► done
      │                                                                           ▲
      └── cancel, barge-in, disconnect, timeout, engine failure ── engine abort ──┘

The terminal frames are sent by the task's done-callback, which asyncio runs whatever becomes of the task: that makes
"exactly one `done`" a property of the structure. The engine's request is aborted inside the task, so it is gone then.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from functools import partial

import structlog

from runtime.deployment.models import Deployment
from runtime.deployment.traces import Tracer, TurnFacts, TurnTimes
from runtime.engines import Delta, EngineDeadError
from runtime.host import eager_tasks
from runtime.host.supervision import attempt
from runtime.text.replies.speech import Heard
from runtime.turns.answer import Answer, HeldAnswer, ToolCalls, TurnRequest, cancel_and_wait
from runtime.turns.outbox import Outbox
from runtime.turns.principal import Principal
from runtime.wire import frames
from runtime.wire.frames import RequestId, Usage

log = structlog.get_logger(__name__)

# One gap in so many is measured: enough for a histogram, and little beside the cost of a token.
GAP_SAMPLE = 8


class Stop(enum.Enum):
    """Why a turn ends before its reply does."""

    CANCEL = "cancelled"
    BARGE_IN = "barged_in"
    DISCONNECT = "disconnected"
    TIMEOUT = "timeout"
    ENGINE_DEAD = "engine_dead"


class Turn:
    """A turn from the moment its message was read. It can be stopped from then on, also before it begins.

    Attributes:
        request_id: its message's; every frame of the turn carries it.
        heard: characters of the reply that the listener got; none where nobody has said.
        ended_at: loop time of its end; 0 before.
    """

    def __init__(
        self, request_id: RequestId | None, outbox: Outbox, deployment: Deployment, principal: Principal
    ) -> None:
        self.request_id = request_id
        self._principal = principal  # whose turn it is
        self._outbox = outbox  # takes the turn's frames
        self._deployment = deployment  # shared by all turns
        self._received = time.perf_counter()  # when its message was read
        self._stop: Stop | None = None  # why it is to end early
        self._cancels: list[RequestId | None] = []  # ids of the cancels that it will answer
        self._task: asyncio.Future[None] | None = None  # none before it begins
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done when its `done` was sent
        self._said: list[str] = []  # the texts that were sent
        self._gaps: list[float] = []  # sampled seconds between tokens
        self._first_token: float | None = None  # when it came
        self._answer: Answer | None = None  # what it says; none before it begins
        self._prepared = False  # whether that was begun before the turn
        self._decided: float | None = None  # when the decision was sent
        self._tools: tuple[str, ...] = ()  # that were asked for
        self._last_token = 0.0  # when it came
        self._steps = 0  # deltas after the first
        self._cached_tokens = 0  # for `usage`
        self._completion_tokens = 0  # for `usage`
        self._thinking_tokens = 0  # for `usage`
        self._finish_reason = "stop"  # for `usage`
        self._generated = False  # what the engine made last was the last of all, unless it is asked for more
        self.heard: int | None = None
        self.ended_at = 0.0

    @property
    def said(self) -> str:
        """What was sent of the reply so far."""
        return "".join(self._said)

    @property
    def begun(self) -> bool:
        """Whether it runs or has run."""
        return self._task is not None

    @property
    def ended(self) -> bool:
        """Whether its `done` was sent."""
        return self._ended.done()

    @property
    def stopping(self) -> bool:
        """Whether it is to end early."""
        return self._stop is not None

    @property
    def leaves_words(self) -> bool:
        """Whether the history would have the user's words, were it interrupted now."""
        return bool(self._said) or self._stop in (None, Stop.BARGE_IN)

    @property
    def cancelled(self) -> bool:
        """Whether a `cancel` awaits its answer from this turn."""
        return bool(self._cancels)

    def stop(self, why: Stop) -> None:
        """End the turn early. The first reason counts; its `done` follows when the engine has let go."""
        if self._stop is None and not self.ended:
            self._stop = why
            if self._task is not None:
                self._task.cancel()

    def cancel(self, request_id: RequestId | None) -> None:
        """End the turn on a `cancel`, which the turn's `done` will answer."""
        self._cancels.append(request_id)
        self.stop(Stop.CANCEL)

    async def wait(self) -> None:
        """Wait until its `done` was sent. Cancelling the wait does not touch the turn."""
        await asyncio.shield(self._ended)

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call something soon after its `done` was sent."""
        self._ended.add_done_callback(lambda _: call())

    def begin(self, request: TurnRequest, held: HeldAnswer | None = None) -> None:
        """Run the turn, where an answer to the same is `held` with that. Its `ack` must have been sent."""
        loop = asyncio.get_running_loop()
        deployment = self._deployment
        if deployment.chat is not None:
            deployment.chat.places.take()
        self._prepared = held is not None
        self._answer = held.answer if held is not None else Answer(request, deployment, self._principal, self)
        run = self._answer.make if held is None else partial(self._take_over, held)
        deadline = loop.call_later(deployment.generation_timeout, self.stop, Stop.TIMEOUT)

        def finish(task: asyncio.Future[None]) -> None:
            deadline.cancel()
            self._finish(request, task)

        if self._stop is None:
            self._task = eager_tasks.start(run())
        else:
            self._task = loop.create_task(run())
            self._task.cancel()
        self._task.add_done_callback(finish)

    def refuse(self) -> None:
        """End a turn that never began: its message was answered with an error. Its cancels still want their answer."""
        if not self.ended:
            self._answer_cancels()
            self._end()

    def _end(self) -> None:
        self.ended_at = asyncio.get_running_loop().time()
        if self._task is not None:
            self._task = self._ended  # one that was cancelled keeps its traceback, whose frames know this turn
        self._ended.set_result(None)

    async def _take_over(self, held: HeldAnswer) -> None:
        """Tell an answer that was begun before the turn. From now on it ends with the turn."""
        try:
            held.answer.tell(self)
            await asyncio.wait((held.making,))
            held.making.result()
        finally:
            await cancel_and_wait(held.making)

    # What the answer tells

    def on_decision(self, calls: ToolCalls) -> None:
        """Send the classifier's decision."""
        status = "yes" if calls else "no"
        self._decided, self._tools = time.perf_counter(), tuple(str(call["name"]) for call in calls)
        self._outbox.put(frames.ToolCall(status=status, raw=list(calls), request_id=self.request_id))

    def on_delta(self, delta: Delta, heard: Heard) -> None:
        """Account for what the engine made."""
        if self._completion_tokens == 0:
            self._cached_tokens = delta.cached_tokens
        self._completion_tokens += delta.tokens
        self._thinking_tokens += heard.hidden
        reason = delta.finish_reason
        self._generated = reason is not None
        if reason is not None:
            self._finish_reason = reason
        if self._first_token is None:
            if heard.speech:
                self._first_token = self._last_token = time.perf_counter()
        else:
            now = time.perf_counter()
            if self._steps % GAP_SAMPLE == 0 and delta.tokens:
                self._gaps.append((now - self._last_token) / delta.tokens)
            self._steps += 1
            self._last_token = now

    def on_text(self, text: str) -> None:
        """Send a piece of the reply."""
        self._said.append(text)
        self._outbox.put_text(text, self.request_id, self._generated)

    # The end

    def _finish(self, request: TurnRequest, task: asyncio.Future[None]) -> None:
        """Send the terminal frames; runs exactly once, after the task has let go of the engine."""
        try:
            self._send_end(request, task)
        finally:
            if self._deployment.chat is not None:
                self._deployment.chat.places.leave()
            self._answer = None  # which knows the turn
            self._end()  # whoever waits for the turn must not wait for ever

    def _send_end(self, request: TurnRequest, task: asyncio.Future[None]) -> None:
        error = None if task.cancelled() else task.exception()
        usage = self._usage()
        stop = self._stop
        said = self.said
        if isinstance(error, EngineDeadError):
            attempt("turn_end", partial(self._deployment.died, error))
        if stop is None and error is None and not task.cancelled():
            outcome = "done"
            if self._deployment.chat is not None:
                self._outbox.put(frames.Final(normalized_text=said, request_id=self.request_id))
            self._outbox.put(frames.Done(usage=usage, request_id=self.request_id))
        elif stop in (Stop.TIMEOUT, Stop.ENGINE_DEAD) or (stop is None and error is not None):
            outcome = self._fail(error)
        else:
            outcome = "cancelled"
            if not self._cancels:
                self._outbox.put(frames.Done(cancelled=True, request_id=self.request_id))
        self._answer_cancels()
        attempt("turn_end", partial(self._deployment.metrics.turn_ended, outcome, usage, self._gaps))
        if self._deployment.log_turns:
            attempt("turn_log", partial(self._log_end, outcome, usage))
        if self._deployment.tracer is not None:
            attempt("turn_trace", partial(self._trace, self._deployment.tracer, request, outcome, usage))
        attempt("turn_count", partial(self._principal.count, usage))
        # What was sent is what the user heard, unless they say otherwise, also when the turn was cut short. A failed
        # turn can be sent again as it was, so it leaves no trace.
        kept = outcome == "done" or (outcome == "cancelled" and (bool(said) or stop is Stop.BARGE_IN))
        attempt("turn_end", partial(request.ended, kept))

    def _trace(self, tracer: Tracer, request: TurnRequest, outcome: str, usage: Usage) -> None:
        ended = time.perf_counter()
        answer = self._answer
        # What was done before the turn has no place in its span.
        begun = answer if answer is not None and not self._prepared else None
        decided_from, asked = (begun.decided_from, begun.asked) if begun is not None else (None, None)
        times = TurnTimes(self._received, decided_from, self._decided, asked, self._first_token, ended)
        tracer.turn(
            TurnFacts(
                request.traceparent,
                request.conversation,
                self._principal.name,
                outcome,
                self._tools,
                usage,
                times,
                request.stream,
            )
        )

    def _log_end(self, outcome: str, usage: frames.Usage) -> None:
        log.info(
            "turn",
            outcome=outcome,
            key=self._principal.name,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            ttft_ms=usage.ttft_ms,
            duration_ms=usage.duration_ms,
        )

    def _fail(self, error: BaseException | None) -> str:
        timeout = self._stop is Stop.TIMEOUT
        if error is not None:
            log.error("turn_failed", error=type(error).__name__, exc_info=error)
        elif timeout:
            log.error("turn_timed_out", seconds=self._deployment.generation_timeout)
        code = "generation_timeout" if timeout else "generation_failed"
        text = (
            f"No complete reply within {self._deployment.generation_timeout:g} seconds."
            if timeout
            else "The reply could not be generated."
        )
        self._outbox.put(frames.Error(error_code=code, message=text, request_id=self.request_id))
        self._outbox.put(frames.Done(failed=True, request_id=self.request_id))
        return "timeout" if timeout else "failed"

    def _answer_cancels(self) -> None:
        """Each cancel gets its `done`. The first one's is the turn's own, under the cancel's id when it has one."""
        for index, request_id in enumerate(self._cancels):
            own = self.request_id if index == 0 and request_id is None else request_id
            self._outbox.put(frames.Done(cancelled=True, request_id=own))

    def _usage(self) -> Usage:
        first = self._first_token
        return Usage(
            prompt_tokens=self._answer.prompt_tokens if self._answer is not None else 0,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            thinking_tokens=self._thinking_tokens,
            finish_reason=self._finish_reason,
            ttft_ms=None if first is None else round((first - self._received) * 1000, 1),
            duration_ms=round((time.perf_counter() - self._received) * 1000, 1),
            prepared=self._prepared,
        )
