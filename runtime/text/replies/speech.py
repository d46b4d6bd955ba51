"""A reply between the engine, which says it token by token, and the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from runtime.engines import Delta
from runtime.text.replies.reply_format import PLAIN, ReplyFormat
from runtime.text.replies.stops import StopFilter
from runtime.text.sanitizer.sanitize import Sanitizer


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of a delta.

    Attributes:
        hidden: how many of its tokens are no speech.
        speech: whether anything of it is.
    """

    hidden: int
    speech: bool


SPEECH, SILENCE = Heard(0, True), Heard(0, False)


@dataclass(slots=True)
class _Held:
    """What came of a reply while all of it is held back, summed up: it is said as one piece.

    Attributes:
        said: the texts, fit to be sent.
        first: the first delta; none where none has come.
        tokens: of all deltas.
        hidden: how many of them are no speech.
        speech: whether anything is.
        finish_reason: the last delta's.
    """

    said: list[str] = field(default_factory=list)
    first: Delta | None = None
    tokens: int = 0
    hidden: int = 0
    speech: bool = False
    finish_reason: str | None = None

    def add(self, delta: Delta, heard: Heard, *, speech: bool) -> None:
        """Add what the engine made."""
        if self.first is None:
            self.first = delta
        self.tokens += delta.tokens
        self.hidden += heard.hidden
        self.speech = self.speech or speech
        self.finish_reason = delta.finish_reason


class Speech:
    """A reply on its way from the engine to the client.

    It goes without what is not speech (`channels`), sanitized, and is held back for as long as the decision takes.

    Args:
        on_delta: told of every delta that is not held back any more, and what became of it.
        on_text: given every piece of text that is fit to be sent.
        form: how the model's replies begin and what is no speech in them.
        stops: texts that end the reply where it says one.

    Attributes:
        hidden_tokens: those that were no speech so far, held back or not.
        spoken_tokens: the others.
    """

    __slots__ = (
        "_channel",
        "_feed",
        "_held",
        "_on_delta",
        "_on_text",
        "_sanitizer",
        "_stops",
        "hidden_tokens",
        "spoken_tokens",
    )

    def __init__(
        self,
        on_delta: Callable[[Delta, Heard], None],
        on_text: Callable[[str], None],
        *,
        sanitize: bool,
        held: bool = False,
        form: ReplyFormat = PLAIN,
        stops: Sequence[str] = (),
    ) -> None:
        self._on_delta = on_delta
        self._on_text = on_text
        self._stops = StopFilter(stops) if stops else None  # ends speech early
        self._channel = form.filter()  # takes out what is no speech
        self._sanitizer = Sanitizer() if sanitize else None  # makes it fit to be spoken
        # Text to text.
        self._feed: Callable[[str], str] = self._sanitizer.feed if self._sanitizer else str
        # What came while everything is held back; none from then on.
        self._held = _Held() if held else None
        self.hidden_tokens = 0
        self.spoken_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether the reply has said what ends it: it is over, whatever the engine goes on to make."""
        return self._channel.ended or (self._stops is not None and self._stops.stopped)

    @property
    def hidden(self) -> bool:
        """Whether what comes now is no speech."""
        return self._channel.hidden

    def feed(self, delta: Delta) -> None:
        """Take what the engine made. It calls this for every token, so nothing here waits."""
        text, channel = delta.text, self._channel
        # Nearly every token of nearly every reply: what `feed` of the channel says of it, without the call.
        if text and channel.plain and channel.begins(text) is None:
            channel.said = True
            self.spoken_tokens += delta.tokens
            heard = SPEECH
        else:
            was_hidden = channel.hidden
            text = channel.feed(text)
            if channel.hidden or (was_hidden and not text):
                self.hidden_tokens += delta.tokens
                heard = Heard(delta.tokens, bool(text))
            else:
                self.spoken_tokens += delta.tokens
                heard = SPEECH if text else SILENCE
            if channel.ended:
                delta = replace(delta, finish_reason="stop")
        if text and self._stops is not None:
            text = self._stops.feed(text)
            if self._stops.stopped:
                delta = replace(delta, finish_reason="stop")
        held = self._held
        if held is None:
            self._on_delta(delta, heard)
            if text and (said := self._feed(text)):
                self._on_text(said)
        else:
            held.add(delta, heard, speech=bool(text))
            if text:  # made fit to be sent now, so that whoever waits for the release does not wait for that
                held.said.append(self._feed(text))

    def end_hidden(self, thought_ends: str) -> str:
        """Go on as if what is hidden had ended; return what ends it, empty where nothing does."""
        ends = self._channel.waits_for
        for text in (thought_ends, f"{ends}\n\n" if ends else ""):
            self._channel.feed(text)
            if not self._channel.hidden:
                return text
        return ""

    def release(self) -> None:
        """Say what was held back, as one piece, and from now on everything at once."""
        held, self._held = self._held, None
        if held is None or held.first is None:
            return
        whole = Delta("", held.tokens, held.finish_reason, held.first.cached_tokens)
        self._on_delta(whole, Heard(held.hidden, held.speech))
        if said := "".join(held.said):
            self._on_text(said)

    def finish(self) -> None:
        """Say what was kept until it was known what follows."""
        text = self._channel.finish()
        if self._stops is not None:
            text = self._stops.feed(text) + self._stops.finish()
        if text and (said := self._feed(text)):
            self._on_text(said)
        if self._sanitizer and (text := self._sanitizer.finish()):
            self._on_text(text)
