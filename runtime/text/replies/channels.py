"""What a reply says on other channels than speech: thought, calls of tools, and the marks around them.

A model that thinks aloud says so by marks, in one stream with its speech. They are of four kinds:

- pairs: `<think>…</think>`, `[THINK]…[/THINK]`, Gemma 4's `<|channel>…<channel|>`, `<tool_call>…</tool_call>`. The
  opening one may stand in the prompt already, and then the reply begins hidden;
- channels with headers: `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`
  (gpt-oss), `<|start|>assistant to=self<|message|>…<|eom|>`. Speech is what is addressed to the user;
- marks that hide nothing and are not said either: the control tokens of the model;
- marks that end the reply: with which the template ends a turn or begins the next, where they are plain text. Engines
  stop at tokens alone, and what a model makes up behind one is not its reply.

Engines leave special tokens out of the text unless told otherwise; where a mark is one, they are told (`ReplyFormat`),
so that every mark is in the text. A `ChannelFilter` reads that once, from left to right. What it says does not depend
on where the text was cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from runtime.text.replies.marks import DEFAULT_MARKS, HEADER_MARKS, MESSAGE, MESSAGE_ENDS, Marks, small

# What `ChannelFilter` waits for where it is no mark of a pair.
IN_HEADER, IN_MESSAGE = "header", "message"

# Longest header that is read, in characters.
HEADER_LIMIT = 200

_RECIPIENT = re.compile(r"\bto=(\S+)")


class ChannelFilter:
    """One reply: takes what the engine says, gives what is speech.

    Args:
        marks: the model's.
        begun: what the prompt ends with, after the user's words: it may have opened a channel.

    Attributes:
        hidden: whether what comes now is not speech, as far as is known.
        plain: whether text in which no mark begins is speech as it comes.
        begins: finds where a mark may begin.
        said: whether something was speech.
        ended: whether the reply has come to the mark of another turn: it is over, whatever the engine goes on to make.
    """

    __slots__ = (
        "_fresh",
        "_header",
        "_held",
        "_marks",
        "_stops",
        "_waits_for",
        "begins",
        "ended",
        "hidden",
        "plain",
        "said",
    )

    def __init__(self, marks: Marks = DEFAULT_MARKS, begun: str = "") -> None:
        self._marks = marks
        self.begins = marks.begins.search
        self.hidden = False
        self.plain = True
        self._waits_for: str | None = None  # none in speech
        self._header = ""  # of the channel, as far as it has come
        self._held = ""  # may become a mark
        self.said = False
        self._fresh = False  # speech begins here: space before it belongs to what was hidden
        self._stops: Mapping[str, str] = {}  # none in the prompt: its marks are the template's
        self.ended = False
        if begun:
            self.feed(begun)
            self.said = False
            self._held = ""
            self._fresh = self.hidden
            self.plain = not self.hidden
        self._stops = marks.stops

    @property
    def in_header(self) -> bool:
        """Whether the channel is still to be named."""
        return self._waits_for == IN_HEADER

    @property
    def waits_for(self) -> str | None:
        """The mark that ends what is hidden; empty when nothing does, none in speech or in a channel with a header."""
        return None if self._waits_for in (IN_HEADER, IN_MESSAGE) else self._waits_for

    def feed(self, text: str) -> str:
        """Take what the engine said; return what of it is speech, and certain by now."""
        # Nearly every token of nearly every reply; `Speech` looks by itself.
        if self.plain and self.begins(text) is None:
            if text:
                self.said = True
            return text
        if self.ended:
            return ""
        self._held += text
        return self._run(final=False)

    def finish(self) -> str:
        """The reply has ended; return what was held back."""
        return self._run(final=True) if self._held else ""

    def _run(self, *, final: bool) -> str:
        text, at, spoken = self._held, 0, []
        marks = self._marks
        undecided = len(text)
        while match := marks.pattern.search(text, at):
            if not final and small(text[match.start() :]) in marks.unfinished:
                undecided = match.start()  # a longer mark may come of it
                break
            mark, at, before = small(match[0]), match.end(), at
            if self._waits_for is None and (written := self._stops.get(mark)) is not None:
                if written and written != match[0]:  # an ordinary word in another case
                    at = match.start() + 1
                    spoken.append(self._take(text[before:at]))
                    continue
                spoken.append(self._take(text[before : match.start()]))
                if self.said or mark not in marks.headers:
                    return self._end(spoken)
                continue
            spoken.append(self._take(text[before : match.start()]))
            self._mark(mark)
        if not final:
            undecided = min(undecided, self._unfinished_from(text, at))
        spoken.append(self._take(text[at:undecided]))
        self._held = text[undecided:]
        self.plain = not (self.hidden or self._held or self._fresh)
        return "".join(spoken)

    def _end(self, spoken: Iterable[str]) -> str:
        self.ended, self.plain, self._held = True, False, ""
        return "".join(spoken)

    def _unfinished_from(self, text: str, at: int) -> int:
        """Where an end of the text begins that may become a mark."""
        marks = self._marks
        for first in marks.begins.finditer(text, max(at, len(text) - marks.longest)):
            if small(text[first.start() :]) in marks.unfinished:
                return first.start()
        return len(text)

    def _take(self, text: str) -> str:
        """What of text without marks is speech."""
        if self._waits_for is not None:
            if self._waits_for == IN_HEADER and len(self._header) < HEADER_LIMIT:
                self._header += text
            return ""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        self.said = self.said or bool(text)
        return text

    def _mark(self, mark: str) -> None:
        self._waits_for = self._next(mark)
        if self.hidden and self._waits_for is None:
            self._fresh = not self.said
        self.hidden = self._waits_for is not None

    def _next(self, mark: str) -> str | None:
        """What is waited for behind a mark."""
        waits_for = self._waits_for
        if mark in HEADER_MARKS and waits_for in (None, IN_HEADER, IN_MESSAGE):
            self._header = self._header + mark if waits_for == IN_HEADER and mark != "<|start|>" else mark
            return IN_HEADER
        if waits_for is None:
            return self._marks.ends.get(mark)
        if waits_for == IN_HEADER and mark == MESSAGE:
            return None if _addresses_user(self._header) else IN_MESSAGE
        if waits_for in (IN_HEADER, IN_MESSAGE):
            if mark in MESSAGE_ENDS:
                self._header = ""
                return IN_HEADER
            return waits_for
        return None if mark == waits_for else waits_for


def _addresses_user(header: str) -> bool:
    """Whether a message is speech, told from what stands before it.

    >>> _addresses_user("<|start|>assistant<|channel|>final"), _addresses_user("<|start|>assistant to=self")
    (True, False)
    """
    _, named, channel = header.partition("<|channel|>")
    if header.startswith("<|start|>") and not header.startswith("<|start|>assistant"):
        return False
    if named:
        return channel.strip().lower() == "final"
    recipient = _RECIPIENT.search(header)
    return recipient is None or recipient[1] == "user"
