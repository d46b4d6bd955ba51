"""A reply between the engine, which says it token by token, and the client."""

from __future__ import annotations

from collections.abc import Callable

from runtime.engines import Delta
from runtime.text.sanitize import Sanitizer


class Speech:
    """A reply on its way from the engine to the client: sanitized, and held back for as long as the decision takes.

    Args:
        on_delta: told of every delta that is not held back any more.
        on_text: given every piece of text that is fit to be sent.
    """

    __slots__ = ("_feed", "_held", "_on_delta", "_on_text", "_sanitizer")

    def __init__(
        self, on_delta: Callable[[Delta], None], on_text: Callable[[str], None], *, sanitize: bool, held: bool = False
    ) -> None:
        self._on_delta = on_delta
        self._on_text = on_text
        self._sanitizer = Sanitizer() if sanitize else None
        self._feed: Callable[[str], str] = self._sanitizer.feed if self._sanitizer else str
        self._held: list[Delta] | None = [] if held else None

    def feed(self, delta: Delta) -> None:
        """Take what the engine made. It calls this for every token, so nothing here waits."""
        if self._held is not None:
            self._held.append(delta)
            return
        self._on_delta(delta)
        if text := self._feed(delta.text):
            self._on_text(text)

    def release(self) -> None:
        """Say what was held back, as one piece, and from now on everything at once."""
        held, self._held = self._held, None
        if held:
            text, tokens = "".join(delta.text for delta in held), sum(delta.tokens for delta in held)
            self.feed(Delta(text, tokens, held[-1].finish_reason, held[0].cached_tokens))

    def finish(self) -> None:
        """Say what the sanitizer kept until it knew what follows."""
        if self._sanitizer and (text := self._sanitizer.finish()):
            self._on_text(text)
