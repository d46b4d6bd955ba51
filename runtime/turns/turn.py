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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from runtime.artifact import SCREENSHOT_TOOL
from runtime.deployment.classifier import Decision
from runtime.deployment.models import Chat, Classifier, Deployment
from runtime.deployment.traces import Tracer, TurnFacts, TurnTimes
from runtime.engines import Delta, EngineDeadError, Sampling
from runtime.host import eager_tasks
from runtime.host.supervision import attempt
from runtime.text.prompt import Message
from runtime.text.replies.speech import Heard, Speech
from runtime.turns.outbox import Outbox
from runtime.turns.principal import Principal
from runtime.wire import frames
from runtime.wire.frames import RequestId, Usage

log = structlog.get_logger(__name__)

# One gap in so many is measured: enough for a histogram, and little beside the cost of a token.
GAP_SAMPLE = 8

# What `toolcall` says of each tool that is asked for.
ToolCalls = Sequence[dict[str, str | float]]

# The calls of a classifier that has one tool alone.


class Stop(enum.Enum):
    """Why a turn ends before its reply does."""

    CANCEL = "cancelled"
    BARGE_IN = "barged_in"
    DISCONNECT = "disconnected"
    TIMEOUT = "timeout"
    ENGINE_DEAD = "engine_dead"


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a turn is about.

    Attributes:
        persona: the system prompt.
        runtime_text: follows the persona.
        history: what was said before.
        utterance: the user's words; the classifier and the history see these.
        prefix: precedes the words in the prompt, always or, with `decide`, after the decision yes.
        sampling: how the reply is drawn.
        sanitize: whether the reply is made fit to be spoken.
        decide: whether the classifier is asked.
        conversation: the session's id, for traces.
        traceparent: the client's span, for traces; none where it named none.
        tools: those whose call is the whole answer, and no others are told; none where every call is told beside a
            reply.
        stream: whether the client gets the reply as it comes, for traces.
        ended: called once at the end; told whether the history keeps the turn, which a failed one never is, nor one
            that a cancel ended before its first word. Whoever barged in goes on speaking: their first words are kept.
    """

    persona: str
    runtime_text: str
    history: tuple[Message, ...]
    utterance: str
    prefix: str
    sampling: Sampling
    sanitize: bool
    decide: bool
    ended: Callable[[bool], None]
    conversation: str = ""
    traceparent: str | None = None
    tools: frozenset[str] | None = None
    stream: bool = True

    def prefixed(self) -> str:
        """The utterance behind its prefix."""
        gap = "" if not self.prefix or self.prefix[-1].isspace() else " "
        return f"{self.prefix}{gap}{self.utterance}"


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
        self._asked: float | None = None  # when the engine was given the prompt
        self._decided_from: float | None = None  # when the classifier was asked
        self._decided: float | None = None  # when the decision was sent
        self._tools: tuple[str, ...] = ()  # that were asked for
        self._last_token = 0.0  # when it came
        self._steps = 0  # deltas after the first
        self._prompt_tokens = 0  # for `usage`
        self._cached_tokens = 0  # for `usage`
        self._completion_tokens = 0  # for `usage`
        self._thinking_tokens = 0  # for `usage`
        self._finish_reason = "stop"  # for `usage`
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

    def begin(self, request: TurnRequest) -> None:
        """Run the turn. Its `ack` must have been sent."""
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._deployment.generation_timeout, self.stop, Stop.TIMEOUT)

        def finish(task: asyncio.Future[None]) -> None:
            deadline.cancel()
            self._finish(request, task)

        if self._stop is None:
            self._task = eager_tasks.start(self._run(request))
        else:
            self._task = loop.create_task(self._run(request))
            self._task.cancel()
        self._task.add_done_callback(finish)

    def refuse(self) -> None:
        """End a turn that never began: its message was answered with an error. Its cancels still want their answer."""
        if not self.ended:
            self._answer_cancels()
            self._end()

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended_at = loop.time()
        self._ended.set_result(None)

    async def _run(self, request: TurnRequest) -> None:
        chat, classifier = self._deployment.chat, self._deployment.classifier
        if chat is None:
            if classifier is not None:
                calls = await self._decide(classifier, request, alone=True)
                self._send_decision(_offered(calls, request.tools))
        elif classifier is not None and request.decide:
            await self._decide_and_generate(chat, classifier, request)
        else:
            await self._stream_reply(chat, request, request.utterance if request.decide else request.prefixed())

    async def _decide_and_generate(self, chat: Chat, classifier: Classifier, request: TurnRequest) -> None:
        """Prefill for the likelier answer, no, while the classifier thinks; a look starts again behind the prefix."""
        decision = asyncio.ensure_future(self._decide(classifier, request, alone=False))
        reply: asyncio.Future[None] | None = None
        try:
            prompt = await self._render(chat, request, request.utterance)
            speech = Speech(
                self._record_delta,
                self._send_text,
                sanitize=request.sanitize,
                held=True,
                form=chat.form,
                stops=request.sampling.stop,
            )
            reply = eager_tasks.start(chat.reply(prompt, request.sampling, speech, self._principal.cache_salt))
            # A reply that fails is told at once: what the classifier says does not matter then.
            await asyncio.wait((decision, reply), return_when=asyncio.FIRST_COMPLETED)
            if not decision.done():
                await reply
            calls = _offered(await decision, request.tools)
            self._send_decision(calls)
            if calls and request.tools is not None:
                return
            if not any(call["name"] == SCREENSHOT_TOOL for call in calls):
                speech.release()
                await reply
                speech.finish()
                return
        finally:
            await _cancel_and_wait(*(helper for helper in (decision, reply) if helper is not None))
        await self._stream_reply(chat, request, request.prefixed())

    async def _stream_reply(self, chat: Chat, request: TurnRequest, text: str) -> None:
        """Send the reply as it comes."""
        prompt = await self._render(chat, request, text)
        speech = Speech(
            self._record_delta, self._send_text, sanitize=request.sanitize, form=chat.form, stops=request.sampling.stop
        )
        await chat.reply(prompt, request.sampling, speech, self._principal.cache_salt)
        speech.finish()

    async def _render(self, chat: Chat, request: TurnRequest, text: str) -> list[int]:
        prompt = await chat.render(
            request.persona, request.runtime_text, request.history, text, self._principal.cache_salt
        )
        self._prompt_tokens = len(prompt)
        self._asked = time.perf_counter()
        return prompt

    def _record_delta(self, delta: Delta, heard: Heard) -> None:
        """Account for what the engine made."""
        if self._completion_tokens == 0:
            self._cached_tokens = delta.cached_tokens
        self._completion_tokens += delta.tokens
        self._thinking_tokens += heard.hidden
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
        if self._first_token is None:
            if heard.speech:
                self._first_token = self._last_token = time.perf_counter()
        else:
            now = time.perf_counter()
            if self._steps % GAP_SAMPLE == 0 and delta.tokens:
                self._gaps.append((now - self._last_token) / delta.tokens)
            self._steps += 1
            self._last_token = now

    def _send_text(self, text: str) -> None:
        self._said.append(text)
        self._outbox.put_text(text, self.request_id)

    async def _decide(self, classifier: Classifier, request: TurnRequest, *, alone: bool) -> ToolCalls:
        if not request.utterance.strip():
            return ()
        breaker = self._deployment.breaker
        if breaker.open:
            self._deployment.metrics.tool_skipped()
            return ()
        users = [message.content for message in request.history if message.role == "user"]
        started = self._decided_from = time.perf_counter()
        question = asyncio.ensure_future(classifier.decide(users, request.utterance))
        opening = breaker.opening()
        try:
            # Not `wait_for`: before Python 3.12 it can swallow a cancellation, and the turn would go on. Whoever waits
            # when the breaker opens waits no longer than those who come after.
            await asyncio.wait(
                (question, opening),
                timeout=self._deployment.tool_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            calls = _calls(question.result()) if question.done() else ()
            status = ("yes" if calls else "no") if question.done() else "skipped" if opening.done() else "timeout"
        except Exception:
            self._deployment.metrics.tool_decided("failed", time.perf_counter() - started)
            if alone:
                raise
            breaker.missed()
            log.exception("tool_decision_failed")  # a chat that cannot look is better than none
            return ()
        finally:
            await _cancel_and_wait(question)
        if status == "skipped":
            self._deployment.metrics.tool_skipped()
            return ()
        self._deployment.metrics.tool_decided(status, time.perf_counter() - started)
        if status == "timeout":
            breaker.missed()
        else:
            breaker.answered()
        return calls

    def _send_decision(self, calls: ToolCalls) -> None:
        status = "yes" if calls else "no"
        self._decided, self._tools = time.perf_counter(), tuple(str(call["name"]) for call in calls)
        self._outbox.put(frames.ToolCall(status=status, raw=list(calls), request_id=self.request_id))

    def _finish(self, request: TurnRequest, task: asyncio.Future[None]) -> None:
        """Send the terminal frames; runs exactly once, after the task has let go of the engine."""
        try:
            self._send_end(request, task)
        finally:
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
        times = TurnTimes(self._received, self._decided_from, self._decided, self._asked, self._first_token, ended)
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
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            thinking_tokens=self._thinking_tokens,
            finish_reason=self._finish_reason,
            ttft_ms=None if first is None else round((first - self._received) * 1000, 1),
            duration_ms=round((time.perf_counter() - self._received) * 1000, 1),
        )


def _calls(decision: Decision) -> ToolCalls:
    if decision.calls:
        return tuple({"name": call.name, "probability": round(call.probability, 4)} for call in decision.calls)
    if not decision.take_screenshot:
        return ()
    return ({"name": SCREENSHOT_TOOL, "probability": round(decision.probability, 4)},)


def _offered(calls: ToolCalls, tools: frozenset[str] | None) -> ToolCalls:
    return calls if tools is None else tuple(call for call in calls if call["name"] in tools)


async def _cancel_and_wait(*helpers: asyncio.Future[Any]) -> None:
    """Cancel helpers and wait until they are over, so that they hold nothing; told afterwards of a cancellation."""
    for helper in helpers:
        helper.cancel()
    cancelled: asyncio.CancelledError | None = None
    for helper in helpers:
        while not helper.done():
            try:
                await asyncio.wait((helper,))
            except asyncio.CancelledError as error:
                cancelled = error
        if not helper.cancelled():
            helper.exception()  # seen here: what matters was raised where the result was awaited
    if cancelled is not None:
        raise cancelled
