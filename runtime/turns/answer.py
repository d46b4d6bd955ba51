"""One answer: the tool decision beside prompt and prefill, then the reply, told as they come.

    decide ∥ (render → prefill) ──► [ asked for ] ──► toolcall ──► token …

With a `Pause` it may be made before anybody asks for it: then nothing is told until the pause is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from runtime.artifact import SCREENSHOT_TOOL
from runtime.deployment.classifier import Decision
from runtime.deployment.models import Chat, Classifier, Deployment
from runtime.engines import Delta, Sampling
from runtime.host import eager_tasks
from runtime.text.prompt import Message, Prompt
from runtime.text.replies.pause import Pause
from runtime.text.replies.speech import Heard, Speech
from runtime.turns.principal import Principal

log = structlog.get_logger(__name__)

# What `toolcall` says of each tool that is asked for.
ToolCalls = Sequence[dict[str, str | float]]


def prefixed(prefix: str, words: str) -> str:
    """Words behind a prefix, with a space between them where it has none."""
    gap = "" if not prefix or prefix[-1].isspace() else " "
    return f"{prefix}{gap}{words}"


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
        return prefixed(self.prefix, self.utterance)

    def asks_the_same(self, other: TurnRequest) -> bool:
        """Whether both would get the same answer, as far as the server can tell. The cheap differences first."""
        return self._content() == other._content() and self.history == other.history

    def _content(self) -> tuple[object, ...]:
        return (
            self.conversation,
            self.utterance,
            self.decide,
            self.sanitize,
            self.prefix,
            self.sampling,
            self.tools,
            self.runtime_text,
            self.persona,
        )


class Listener(Protocol):
    """Whom an answer is told to. It calls these for every token, so nothing in them waits."""

    def on_decision(self, calls: ToolCalls) -> None:
        """Take the classifier's decision."""

    def on_delta(self, delta: Delta, heard: Heard) -> None:
        """Take account of what the engine made."""

    def on_text(self, text: str) -> None:
        """Take a piece of the reply."""


class Answer:
    """One answer on its way.

    Attributes:
        prompt_tokens: of the prompt.
        asked: when the engine was given the prompt.
        decided_from: when the classifier was asked.

    Args:
        request: what it answers.
        deployment: shared by all turns.
        principal: whose turn it is.
        listener: whom it is told to; none where nobody has asked for it yet.
        pause: where it rests until then.
    """

    def __init__(
        self,
        request: TurnRequest,
        deployment: Deployment,
        principal: Principal,
        listener: Listener | None = None,
        pause: Pause | None = None,
    ) -> None:
        self._request = request
        self._deployment = deployment
        self._principal = principal
        self._listener = listener
        self._pause = pause
        self._ready: Callable[[], None] | None = None  # tells what is there; none before that waits to be asked for
        self.prompt_tokens = 0
        self.asked: float | None = None
        self.decided_from: float | None = None

    def tell(self, listener: Listener) -> None:
        """Tell it from now on, what was held back before this returns: no step of the loop lies between."""
        self._listener = listener
        if self._pause is not None:
            self._pause.end()
        ready, self._ready = self._ready, None
        if ready is not None:
            ready()

    async def make(self) -> None:
        """Make it, to its end. Cancelling that leaves nothing in the engine."""
        request = self._request
        chat, classifier = self._deployment.chat, self._deployment.classifier
        if chat is None:
            if classifier is not None:
                calls = _offered(await self._decide(classifier, alone=True), request.tools)
                await self._when_asked_for(lambda: self._tell_decision(calls))
        elif classifier is not None and request.decide:
            await self._decide_and_reply(chat, classifier)
        else:
            await self._reply(chat, request.utterance if request.decide else request.prefixed(), None)

    async def _decide_and_reply(self, chat: Chat, classifier: Classifier) -> None:
        """Prefill for the likelier answer, no, while the classifier thinks; a look starts again behind the prefix."""
        request = self._request
        decision = asyncio.ensure_future(self._decide(classifier, alone=False))
        reply: asyncio.Future[None] | None = None
        untold: ToolCalls | None = None
        try:
            prompt = await self._render(chat, request.utterance)
            speech = self._speech(chat, prompt, held=True)
            reply = eager_tasks.start(
                chat.reply(prompt.token_ids, request.sampling, speech, self._principal.cache_salt, self._pause)
            )
            # A reply that fails is told at once: what the classifier says does not matter then.
            await asyncio.wait((decision, reply), return_when=asyncio.FIRST_COMPLETED)
            if not decision.done():
                await reply
            calls = _offered(await decision, request.tools)
            replies = not calls or request.tools is None  # else the calls are the whole answer
            looks = any(call["name"] == SCREENSHOT_TOOL for call in calls)
            if not looks:
                await self._when_asked_for(lambda: self._tell_held(calls, speech if replies else None), reply)
            elif self._asked_for:
                self._tell_decision(calls)
            else:
                untold = calls
            if not replies:
                return
            if not looks:
                await reply
                speech.finish()
                return
        finally:
            await cancel_and_wait(*(helper for helper in (decision, reply) if helper is not None))
        await self._reply(chat, request.prefixed(), untold)

    async def _reply(self, chat: Chat, text: str, untold: ToolCalls | None) -> None:
        """Tell the reply as it comes; before it a decision that nobody was told of yet."""
        sampling, salt = self._request.sampling, self._principal.cache_salt
        prompt = await self._render(chat, text)
        if self._pause is None:
            speech = self._speech(chat, prompt, held=False)
            await chat.reply(prompt.token_ids, sampling, speech, salt)
            speech.finish()
            return
        speech = self._speech(chat, prompt, held=True)
        reply = eager_tasks.start(chat.reply(prompt.token_ids, sampling, speech, salt, self._pause))
        try:
            await self._when_asked_for(lambda: self._tell_held(untold, speech), reply)
            await reply
            speech.finish()
        finally:
            await cancel_and_wait(reply)

    @property
    def _asked_for(self) -> bool:
        return self._pause is None or self._pause.over

    async def _when_asked_for(self, tell: Callable[[], None], reply: asyncio.Future[None] | None = None) -> None:
        """Wait until somebody listens, who is told at that moment. A reply that fails meanwhile fails at once."""
        pause = self._pause
        if pause is None or pause.over:
            tell()
            return
        self._ready = tell
        try:
            if reply is not None:
                await pause.wait(reply)
                if not pause.over:
                    reply.result()
                    pause.rests()
            await pause.wait()
        finally:
            self._ready = None

    def _speech(self, chat: Chat, prompt: Prompt, *, held: bool) -> Speech:
        request, listener = self._request, self._listener
        return Speech(
            listener.on_delta if listener is not None else self._on_delta,
            listener.on_text if listener is not None else self._on_text,
            sanitize=request.sanitize,
            held=held,
            form=chat.form.behind(prompt.begun),
            stops=request.sampling.stop,
        )

    # For who comes later than the speech is made.

    def _on_delta(self, delta: Delta, heard: Heard) -> None:
        if self._listener is not None:
            self._listener.on_delta(delta, heard)

    def _on_text(self, text: str) -> None:
        if self._listener is not None:
            self._listener.on_text(text)

    def _tell_decision(self, calls: ToolCalls) -> None:
        if self._listener is not None:
            self._listener.on_decision(calls)

    def _tell_held(self, calls: ToolCalls | None, speech: Speech | None) -> None:
        """Tell a decision that nobody was told of, if any, and what was held back of the reply, if any is to be."""
        if calls is not None:
            self._tell_decision(calls)
        if speech is not None:
            speech.release()

    async def _render(self, chat: Chat, text: str) -> Prompt:
        request = self._request
        prompt = await chat.render(
            request.persona, request.runtime_text, request.history, text, self._principal.cache_salt
        )
        self.prompt_tokens = len(prompt.token_ids)
        self.asked = time.perf_counter()
        return prompt

    async def _decide(self, classifier: Classifier, *, alone: bool) -> ToolCalls:
        request, metrics = self._request, self._deployment.metrics
        if not request.utterance.strip():
            return ()
        breaker = self._deployment.breaker
        if breaker.open:
            metrics.tool_skipped()
            return ()
        users = [message.content for message in request.history if message.role == "user"]
        started, answers = time.perf_counter(), breaker.answers
        self.decided_from = started
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
            metrics.tool_decided("failed", time.perf_counter() - started)
            if alone:
                raise
            breaker.missed()
            log.exception("tool_decision_failed")  # a chat that cannot look is better than none
            return ()
        finally:
            await cancel_and_wait(question)
        if status == "skipped":
            metrics.tool_skipped()
            return ()
        metrics.tool_decided(status, time.perf_counter() - started)
        if status != "timeout":
            breaker.answered()
        elif breaker.answers == answers:
            breaker.missed()
        return calls


@dataclass(frozen=True, slots=True)
class HeldAnswer:
    """An answer that is being made, or was, and that nobody has been told yet.

    Attributes:
        answer: the answer.
        making: its task; whoever has it told waits for it, and ends it.
    """

    answer: Answer
    making: asyncio.Future[None]


def _calls(decision: Decision) -> ToolCalls:
    if decision.calls:
        return tuple({"name": call.name, "probability": round(call.probability, 4)} for call in decision.calls)
    if not decision.take_screenshot:
        return ()
    return ({"name": SCREENSHOT_TOOL, "probability": round(decision.probability, 4)},)


def _offered(calls: ToolCalls, tools: frozenset[str] | None) -> ToolCalls:
    return calls if tools is None else tuple(call for call in calls if call["name"] in tools)


async def cancel_and_wait(*helpers: asyncio.Future[Any]) -> None:
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
