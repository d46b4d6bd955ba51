"""How a chat template has its model think, and how it is told not to. Found out by rendering with and without."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.text.replies.channels import ChannelFilter
from runtime.text.replies.marks import DEFAULT_MARKS, PAIRS, Marks
from runtime.text.shapes import SYSTEM
from runtime.text.template_call import TemplateCall, TemplateMessage, in_order

FIRST, REPLY, THOUGHT = "Qfirstq", "Qreplyq", "Qthoughtq"

# Names under which templates look for what was thought before a reply.
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
USUAL_ENDS = "\n</think>\n\n"
# A mark of a pair, as it stands in a template.
TAG = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z][A-Z_]{1,30}\]|◁[^▷\s]{1,40}▷")

# Values that mean off, in the order in which they are tried; one that closes thought is taken.
OFF: tuple[Any, ...] = (False, True, "none", "off", "disabled", "no", "no_think", "chat", 0)
# A variable that is a switch by its name: what it does shows in the system message (Gemma 4), or it is off by default.
SWITCH = re.compile(r"think|reason|thought", re.IGNORECASE)
NEGATED = re.compile(r"^(no|not|disable|skip|without|suppress)_?|_off$|no_?think", re.IGNORECASE)
# Words in a system message that some templates look for, to the same end.
OFF_WORDS = ("/no_think", "/nothink", "detailed thinking off")


# What tells of thought in what a prompt ends with, unless it is closed again, and what of a tag tells that it is none.
OF_THOUGHT = re.compile(
    r"think|thought|reason|reflect|ponder|scratch|analy[sz]|deliberat|\bplan|\bcot\b|chain.of|step.by.step",
    re.IGNORECASE,
)
CLOSED = re.compile(r"<([^<>\s/]+)>\s*</\1>")
OF_SPEECH = re.compile(
    r"respon|answer|reply|repl|final|output|speech|say|assistant|bot|model|text|message", re.IGNORECASE
)


# Why a model that always thinks is refused, and the way out.
THINKS = "a budget for thought: the model thinks before each reply, and its chat template has no switch for that"
WAY_OUT = "set it to the tokens that thought may take, such as 512, or choose a model that need not think"


@dataclass(frozen=True, slots=True)
class Thought:
    """What is known of a template's thought.

    Attributes:
        pairs: marks of what is not speech, with those that only this template has.
        marks: the same, compiled.
        ends: what ends thought, up to the first spoken word.
        off: variables that turn it off, as far as it can be.
        off_words: words in the system message that do.
    """

    pairs: Mapping[str, str]
    marks: Marks
    ends: str
    off: Mapping[str, Any]
    off_words: str


def thought_of(call: TemplateCall) -> Thought:
    """Find out; `call` is left as it was."""
    pairs, ends = _own_marks(call)
    marks = DEFAULT_MARKS if pairs is PAIRS else Marks(pairs)
    off: dict[str, Any] = {}
    for name in call.variables():
        if off and not _opens(call, marks, off):
            break
        if (value := _off_value(call, marks, pairs, off, name)) is not None:
            off[name] = value[0]
    words = ""
    if _opens(call, marks, off):
        candidates = (words for words in OFF_WORDS if words in call.source)
        words = next((words for words in candidates if not _opens(call, marks, off, words)), "")
    return Thought(pairs, marks, ends, off, words)


# Conversations that may begin a thought: some templates let a model think only beside a system message.
OPENINGS: Sequence[Sequence[TemplateMessage]] = (
    [("user", FIRST)],
    [("system", SYSTEM), ("user", FIRST)],
    [("user", "Qaq"), ("assistant", REPLY), ("user", FIRST)],
    [("assistant", REPLY), ("user", FIRST)],
    [("system", SYSTEM), ("assistant", REPLY), ("user", FIRST)],
)


def hides(marks: Marks, beginning: str) -> bool:
    """Whether a reply that begins so is a thought; not where its channel is still to be named."""
    channel = ChannelFilter(marks, beginning)
    return channel.hidden and not channel.in_header


def unknown_opening(marks: Marks, header: str, beginning: str) -> str | None:
    """What opens a thought in a way whose end nobody knows; none where nothing does.

    Args:
        marks: those that are known.
        header: what stands before a reply in the history.
        beginning: what a prompt ends with.
    """
    header = header.rstrip()
    if not beginning.startswith(header):
        return None
    channel = ChannelFilter(marks)
    more = CLOSED.sub("", channel.feed(beginning[len(header) :]) + channel.finish()).strip()
    tags = [tag for tag in TAG.findall(more) if not OF_SPEECH.search(tag)]
    return more if tags or OF_THOUGHT.search(more) else None


def _own_marks(call: TemplateCall) -> tuple[Mapping[str, str], str]:
    """The pairs, with one that the template puts around a thought that it is given; and how it ends that."""
    conversation = call.conversation([("user", FIRST), ("assistant", REPLY)])
    conversation[-1] |= dict.fromkeys(THOUGHT_FIELDS, THOUGHT)
    text = call.attempt_conversation(conversation, reply_begins=False)
    if text is None or not in_order(text, FIRST, THOUGHT, REPLY):
        return PAIRS, USUAL_ENDS
    opens = text[text.index(FIRST) + len(FIRST) : text.index(THOUGHT)]
    ends = text[text.index(THOUGHT) + len(THOUGHT) : text.index(REPLY)]
    before, after = TAG.findall(opens), TAG.findall(ends)
    if not after:
        return PAIRS, USUAL_ENDS
    if before and before[-1] != after[0] and not ChannelFilter(begun=opens).hidden:
        if before[-1] in text[: text.index(FIRST)]:
            return PAIRS, USUAL_ENDS  # it opens messages: thought is one of its own, and a reply begins behind it
        return {**PAIRS, before[-1]: after[0]}, ends
    return PAIRS, ends


def _off_value(
    call: TemplateCall, marks: Marks, pairs: Mapping[str, str], off: Mapping[str, Any], name: str
) -> tuple[Any] | None:
    """The value that keeps the reply from beginning with thought; none where the variable is no switch for that."""

    def closes(beginning: str) -> bool:
        return any(end and end in beginning for end in pairs.values()) and not hides(marks, beginning)

    turns = _opening(call, marks, off) or OPENINGS[0]
    before = _beginning(call.attempt(turns, **off)) or ""
    opened = hides(marks, before)
    for value in OFF:
        beginning = _beginning(call.attempt(turns, **{**off, name: value}))
        if beginning is None or beginning == before or hides(marks, beginning):
            continue
        if opened or (closes(beginning) and not closes(before)):
            return (value,)
    if opened or not SWITCH.search(name):
        return None
    meant = bool(NEGATED.search(name))
    wanted, other = (call.attempt(turns, **{**off, name: value}) for value in (meant, not meant))
    if wanted is None or other in (None, wanted) or hides(marks, _beginning(wanted) or ""):
        return None
    return (meant,)


def _opening(call: TemplateCall, marks: Marks, off: Mapping[str, Any]) -> Sequence[TemplateMessage] | None:
    """A conversation whose prompt begins a thought; none where no prompt does."""
    return next((turns for turns in OPENINGS if hides(marks, _beginning(call.attempt(turns, **off)) or "")), None)


def _opens(call: TemplateCall, marks: Marks, off: Mapping[str, Any], words: str = "") -> bool:
    """Whether a prompt begins a thought; with `words` in the system message, one that has them."""
    if not words:
        return _opening(call, marks, off) is not None
    return hides(marks, _beginning(call.attempt([("system", words), ("user", FIRST)], **off)) or "")


def _beginning(text: str | None) -> str | None:
    """What a prompt ends with, after the user's words."""
    return None if text is None or FIRST not in text else text[text.rindex(FIRST) + len(FIRST) :]
