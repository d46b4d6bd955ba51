"""One turn as its client sees it: frames and times."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import msgspec

from yap_client import Done, Error, Final, Interrupted, RefusedError, Token, ToolCall, Turn, TurnEvent, Usage

SCREENSHOT = {"take_screenshot"}

SENTENCE_END = re.compile(r"[.!?…](?=\s|$)")


def plain(event: TurnEvent) -> object:
    """Return an event as its JSON reads, without what has its default."""
    return msgspec.to_builtins(event)


def told(decision: ToolCall) -> str:
    """The decision for a person: the status, and the tools where one of them is not the screenshot."""
    if set(decision.tools) <= SCREENSHOT:
        return decision.status
    calls = (name if likely is None else f"{name} {likely:.2f}" for name, likely in decision.tools.items())
    return f"{decision.status}: {', '.join(calls)}"


@dataclass
class TurnRecord:
    """Follows a turn that was just said: its events, and when they came, in seconds since it was said.

    Attributes:
        turn: the turn.
        clock: what tells the time.
        started: when it was said, by the clock.
        ttfb: the first event of any kind.
        ttft: the first token.
        first_words: the third complete word.
        first_sentence: the first sentence's end, which is what a speech synthesizer waits for.
        total: the end.
        gaps: the times between token frames.
        text: what the tokens said.
        final: what the `final` said.
        tool: the decision.
        error: the last error of a turn that failed.
        refused: why the server did not begin it; none where it did.
        ended: the last event.
        events: all of them, in order.
        last_token: when the last token came, by the clock.
    """

    turn: Turn
    clock: Callable[[], float] = time.perf_counter
    started: float = 0.0
    ttfb: float | None = None
    ttft: float | None = None
    first_words: float | None = None
    first_sentence: float | None = None
    total: float | None = None
    gaps: list[float] = field(default_factory=list)
    text: str = ""
    final: str | None = None
    tool: ToolCall | None = None
    error: Error | None = None
    refused: RefusedError | None = None
    ended: Done | Interrupted | None = None
    events: list[TurnEvent] = field(default_factory=list)
    _last_token: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def ok(self) -> bool:
        """Whether the turn ended as a turn should."""
        return self.problem is None

    @property
    def cancelled(self) -> bool:
        """Whether the turn was ended before its reply was."""
        return isinstance(self.ended, Done) and self.ended.cancelled

    @property
    def usage(self) -> Usage:
        """What the server says that the turn cost; nothing where it does not say."""
        return (self.ended.usage if isinstance(self.ended, Done) else None) or Usage()

    @property
    def problem(self) -> str | None:
        """What is wrong with the turn: an error, no proper end, or a `final` that contradicts its own tokens."""
        if self.refused is not None:
            return str(self.refused)
        if self.error is not None:
            return f"{self.error.error_code}: {self.error.message}"
        if isinstance(self.ended, Interrupted):
            return self.ended.reason
        if self.ended is None or self.ended.failed:
            return "it did not end as a turn should"
        if self.final is not None and self.final != self.text:
            return "the tokens are not the final text"
        return None

    @property
    def tokens(self) -> int:
        """The number of tokens that the server says it generated; of token frames where it does not say."""
        return self.usage.completion_tokens or len(self.gaps) + (self.ttft is not None)

    async def __aiter__(self) -> AsyncIterator[TurnEvent]:
        """Yield the turn's events as they come; a refusal is its end and is not raised."""
        try:
            async for event in self.turn:
                self.add(event)
                yield event
        except RefusedError as refused:
            self.refused = refused

    async def whole(self) -> TurnRecord:
        """Follow the turn to its end."""
        async for _ in self:
            pass
        return self

    async def first_token(self) -> TurnRecord:
        """Follow the turn to its first token, and let it go on.

        Raises:
            ValueError: it ended without one.
        """
        async for event in self._going_on():
            if isinstance(event, Token):
                return self
        raise ValueError(f"expected a token, found {self.problem or 'the end'}")

    async def _going_on(self) -> AsyncIterator[TurnEvent]:
        while True:  # not `async for`, which ends the turn of whoever leaves it
            try:
                event = await self.turn.__anext__()
            except StopAsyncIteration:
                return
            self.add(event)
            yield event

    def add(self, event: TurnEvent) -> None:
        """Take the next event."""
        now = self.clock() - self.started
        self.events.append(event)
        if self.ttfb is None:
            self.ttfb = now
        if isinstance(event, Token):
            self._add_token(event.text, now)
        elif isinstance(event, ToolCall):
            self.tool = event
        elif isinstance(event, Final):
            self.final = event.text
        elif isinstance(event, Error):
            self.error = event
        elif isinstance(event, (Done, Interrupted)):
            self.ended, self.total = event, now

    def _add_token(self, text: str, now: float) -> None:
        if self.ttft is None:
            self.ttft = now
        else:
            self.gaps.append(now - self._last_token)
        self._last_token = now
        self.text += text
        if self.first_words is None and len(self.text.split()) > 3:
            self.first_words = now
        if self.first_sentence is None and SENTENCE_END.search(self.text):
            self.first_sentence = now

    def report(self, indent: str = "") -> str:
        """Word the summary and, where the turn went wrong, the problem."""
        lines = [self.summary()]
        if self.problem:
            lines.append(f"failed: {self.problem}")
        return "\n".join(indent + line for line in lines)

    def summary(self) -> str:
        """Word the turn's times in milliseconds, in one line."""
        named = {
            "ttfb": self.ttfb,
            "ttft": self.ttft,
            "3 words": self.first_words,
            "sentence": self.first_sentence,
            "total": self.total,
        }
        times = "  ".join(f"{name} {value * 1000:.0f} ms" for name, value in named.items() if value is not None)
        usage = self.usage
        cached = f"  cached {usage.cached_tokens}/{usage.prompt_tokens}" if usage.prompt_tokens else ""
        rate = ""
        if self.total and self.ttft is not None and self.total > self.ttft and self.tokens > 1:
            rate = f"  {(self.tokens - 1) / (self.total - self.ttft):.1f} tok/s"
        return f"{times}  {self.tokens} tokens{rate}{cached}"
