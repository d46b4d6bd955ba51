"""The marks in what a model says: of thought, of calls of tools, of channels, and of other turns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
