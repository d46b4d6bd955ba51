"""One turn as its client sees it: frames and times."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from .frames import Ack, Done, Error, Final, Frame, Token, ToolCall

SENTENCE_END = re.compile(r"[.!?…](?=\s|$)")


@dataclass
class TurnRecord:
    """Collects a turn's frames and when they came, in seconds since the message was sent.

    Attributes:
        clock: what tells the time.
        started: when the message was sent, by the clock.
        ttfb: the first frame of any kind.
        ttft: the first token.
        first_words: the third complete word.
        first_sentence: the first sentence's end, which is what a speech synthesizer waits for.
        total: the `done`.
        gaps: the times between token frames.
        text: what the tokens said.
        final: what the `final` said.
        tool: the decision.
        error: the last error.
        done: the end.
        frames: all of them, in order.
        last_token: when the last token came, by the clock.
    """

    clock: object = time.perf_counter
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
    done: Done | None = None
    frames: list[Frame] = field(default_factory=list)
    _last_token: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def ok(self) -> bool:
        """Whether the turn ended as a turn should."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """What is wrong with the turn: an error, no proper end, or a `final` that contradicts its own tokens."""
        if self.error is not None:
            return f"{self.error.code}: {self.error.message}"
        if self.done is None or self.done.failed:
            return "it did not end as a turn should"
        if self.final is not None and self.final != self.text:
            return "the tokens are not the final text"
        return None

    @property
    def tokens(self) -> int:
        """The number of tokens that the server says it generated; of token frames where it does not say."""
        counted = self.done.usage.get("completion_tokens") if self.done else None
        return counted if counted is not None else len(self.gaps) + (self.ttft is not None)

    def add(self, frame: Frame) -> bool:
        """Take the next frame; returns true when the turn is over."""
        now = self.clock() - self.started
        self.frames.append(frame)
        if self.ttfb is None:
            self.ttfb = now
        if isinstance(frame, Token):
            self._add_token(frame.text, now)
        elif isinstance(frame, ToolCall):
            self.tool = frame
        elif isinstance(frame, Final):
            self.final = frame.text
        elif isinstance(frame, Error):
            self.error = frame
        elif isinstance(frame, Done):
            self.done = frame
            self.total = now
            return True
        # A message that was refused before its turn began is answered by one error and no done.
        return isinstance(frame, Error) and not any(isinstance(seen, Ack) for seen in self.frames)

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
        usage = self.done.usage if self.done else {}
        cached = f"  cached {usage['cached_tokens']}/{usage['prompt_tokens']}" if "cached_tokens" in usage else ""
        rate = ""
        if self.total and self.ttft is not None and self.total > self.ttft and self.tokens > 1:
            rate = f"  {(self.tokens - 1) / (self.total - self.ttft):.1f} tok/s"
        return f"{times}  {self.tokens} tokens{rate}{cached}"
