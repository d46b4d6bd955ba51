"""What a reply says on other channels than speech: thought, calls of tools, and the marks around them.

A model that thinks aloud says so by marks, in one stream with its speech. They are of three kinds:

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from string import ascii_lowercase, ascii_uppercase

# What opens something that is not speech, and what ends it. An empty end: the rest of the reply.
PAIRS: Mapping[str, str] = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<thoughts>": "</thoughts>",
    "<reason>": "</reason>",
    "<reasoning>": "</reasoning>",
    "<analysis>": "</analysis>",
    "<reflection>": "</reflection>",
    "<scratchpad>": "</scratchpad>",
    "<inner_monologue>": "</inner_monologue>",
    "<seed:think>": "</seed:think>",
    "<longcat_think>": "</longcat_think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|thinking|>": "<|/thinking|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>": "<channel|>",
    "<unused94>": "<unused95>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<tool_call>": "</tool_call>",
    "<tool_calls>": "</tool_calls>",
    "<toolcall>": "</toolcall>",
    "<function_call>": "</function_call>",
    "<function_calls>": "</function_calls>",
    "<function=": "</function>",
    "<｜DSML｜function_calls>": "</｜DSML｜function_calls>",
    "<minimax:tool_call>": "</minimax:tool_call>",
    "<tool_response>": "</tool_response>",
    "<|tool_call>": "<tool_call|>",
    "<|tool_response>": "<tool_response|>",
    "<|tool_call|>": "<|/tool_call|>",
    "<|tool_call_start|>": "<|tool_call_end|>",
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>": "<｜tool▁call▁end｜>",
    "<|START_ACTION|>": "<|END_ACTION|>",
    "[TOOL_CALLS]": "",
    "<|python_tag|>": "",
}

HEADER_MARKS = frozenset({"<|start|>", "<|channel|>"})
MESSAGE = "<|message|>"
MESSAGE_ENDS = frozenset({"<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>"})

# What `ChannelFilter` waits for where it is no mark of a pair.
IN_HEADER, IN_MESSAGE = "header", "message"

# Longest header that is read, in characters.
HEADER_LIMIT = 200

_RECIPIENT = re.compile(r"\bto=(\S+)")


@dataclass(frozen=True, slots=True)
class TurnMarks:
    """The plain text by which a template tells that a reply is over.

    Attributes:
        anywhere: marks wherever they stand, in any case.
        exact: marks as they are written, with the break of line before them.
        headers: what a reply begins behind. One that says it again before anything else goes on.
    """

    anywhere: frozenset[str] = frozenset()
    exact: frozenset[str] = frozenset()
    headers: frozenset[str] = frozenset()


_SMALL = str.maketrans(ascii_uppercase, ascii_lowercase)


def small(text: str) -> str:
    """A mark in one case: of plain letters, that is. The long s, say, is an s in neither, whatever its capital is.

    >>> small("<THINK>"), small("\u017f\u212a")
    ('<think>', '\u017f\u212a')
    """
    return text.translate(_SMALL)


class Marks:
    """The marks that a model uses, compiled; shared by all of its replies.

    Args:
        pairs: what opens a hidden part, and what ends it.
        dropped: further marks that are not said.
        turns: what the reply ends before.

    Attributes:
        ends: what is waited for behind each mark that opens a hidden part.
        decisive: the marks that tell where speech begins and ends.
        headers: marks of `stops` behind which a reply may begin.
        stops: what the reply ends before; each with how it is written where only that counts, else with nothing.
        longest: characters of the longest mark.
        pattern: finds a mark.
        begins: finds where one may begin.
        unfinished: beginnings of marks.
    """

    __slots__ = ("begins", "decisive", "ends", "headers", "longest", "pattern", "stops", "unfinished")

    def __init__(
        self, pairs: Mapping[str, str] = PAIRS, dropped: Iterable[str] = (), turns: TurnMarks | None = None
    ) -> None:
        turns = turns or TurnMarks()
        self.ends = {small(opens): small(ends) for opens, ends in pairs.items()}
        self.decisive = frozenset({*self.ends, *self.ends.values(), *HEADER_MARKS} - {""})
        known = {*self.decisive, MESSAGE, *MESSAGE_ENDS}
        known |= {small(mark) for mark in dropped}
        self.headers = frozenset(small(mark) for mark in turns.headers)
        self.stops = {small(mark): "" for mark in (*turns.anywhere, *turns.headers)}
        self.stops |= {small(mark): mark for mark in turns.exact if small(mark) not in self.stops}
        known |= self.stops.keys()
        marks = sorted(known, key=len, reverse=True)
        self.longest = len(marks[0])
        # Longest first: one mark may begin like another.
        self.pattern = re.compile("|".join(map(re.escape, marks)), re.IGNORECASE | re.ASCII)
        # In either case: a mark is one in both.
        firsts = {char for mark in marks for char in (mark[0], mark[0].upper())}
        self.begins = re.compile(f"[{re.escape(''.join(sorted(firsts)))}]")
        self.unfinished = frozenset(mark[:length] for mark in marks for length in range(1, len(mark)))


DEFAULT_MARKS = Marks()


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


def _no_tokens(text: str) -> list[int]:
    return []


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How a model's replies begin, go on and end; found out by rendering (`template`).

    Attributes:
        marks: of everything that is not speech.
        begun: what a prompt ends with, after the user's words; a prompt that ends otherwise says so (`behind`).
        thinks: replies begin with thought, in some conversations at least, and nothing in the template turns that off.
        thought_ends: what ends thought, up to the first spoken word.
        stop_token_ids: the control tokens that end a turn.
        shows_special_tokens: marks are among the special tokens, which the engine must then leave in the text.
        encode: text to token ids, control tokens among them.
    """

    marks: Marks = DEFAULT_MARKS
    begun: str = ""
    thinks: bool = False
    thought_ends: str = "\n</think>\n\n"
    stop_token_ids: tuple[int, ...] = ()
    shows_special_tokens: bool = False
    encode: Callable[[str], list[int]] = field(default=_no_tokens, repr=False)

    def filter(self) -> ChannelFilter:
        """Make the filter of one reply."""
        return ChannelFilter(self.marks, self.begun)

    def behind(self, begun: str | None) -> ReplyFormat:
        """The format of a reply to a prompt that ends so; none where it ends as all do."""
        return self if begun is None or begun == self.begun else replace(self, begun=begun)


PLAIN = ReplyFormat()
