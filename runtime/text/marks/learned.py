"""The marks that tell who speaks, what is thought and what is a call: those that are plain text, not control tokens.

Tokenizers do not know of them (`<|system|>` of Zephyr, `[/INST] <<SYS>>` of Llama 2, `USER:` of Vicuna). They are
learned from what the template renders around marker words, and from the literals of its source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runtime.text.replies.marks import HEADER_MARKS, MESSAGE, MESSAGE_ENDS, PAIRS, TurnMarks
from runtime.text.shapes import SYSTEM
from runtime.text.template import SECOND
from runtime.text.template_call import TemplateMessage
from runtime.text.thought import FIRST, REPLY

# A longer line of a template is an instruction, no mark.
LONGEST_MARK = 64
# How thoughts and tool calls are set apart in any model, and what such marks begin with.
CHANNEL_MARKS = frozenset(
    {
        *(word for mark in (*PAIRS, *PAIRS.values()) if mark for word in (mark, mark.upper(), mark.lower())),
        *HEADER_MARKS,
        *MESSAGE_ENDS,
        MESSAGE,
        *(f"<{slash}{name}" for name in ("think", "tool_", "tools>", "function=", "function_") for slash in ("", "/")),
        *(f"[{slash}{name}]" for name in ("TOOL_CALLS", "TOOL_RESULTS", "AVAILABLE_TOOLS") for slash in ("", "/")),
    }
)

_MARKER = re.compile("|".join((SYSTEM, FIRST, REPLY, SECOND)))
# `<|user|>`, `<<SYS>>`, `[/INST]`, `{{user}}`, `【user】`: no space inside.
_BRACKETED = re.compile(r"<{1,2}[^<>\[\]\s]+>{1,2}|\[[^\[\]<>\s]+\]|\{{1,2}[^{}\s]+\}{1,2}|【[^【】\s]+】")
# Of them what nobody writes who means something else: `<|user|>`, `<end_of_turn>`, `[INST]`; no `<b>`, `[1]`.
MARKUP = re.compile(
    r"<{1,2}[^<>\[\]\s]*[|｜▁_][^<>\[\]\s]*>{1,2}|<<[^<>\[\]\s]+>>|\[/?[A-Z][A-Z_]+\]|\{\{[^{}\s]+\}\}|【[^【】\s]+】"
)
# In a template's source, brackets also index and compare.
_LITERAL = re.compile(r"<{1,2}[|/]?[^\W\d][\w|/:=.-]+>{1,2}|\[/?[A-Z][A-Z_]{2,}\]")
# A mark without a word: `>>>`, `::`. A single sign is none.
_SIGNS = re.compile(r"[^\w\s]{2,}")
# A user's name that nobody writes so who means something else.
_LOUD = re.compile(r"[A-Z][A-Z ]{3,30}:")


@dataclass(frozen=True, slots=True)
class TemplateMarks:
    """The plain text by which a template tells who speaks.

    Attributes:
        anywhere: marks wherever they stand.
        lines: words that are marks where they fill a line.
    """

    anywhere: frozenset[str]
    lines: frozenset[str]

    def union(self, other: TemplateMarks) -> TemplateMarks:
        """Return the marks of both."""
        return TemplateMarks(self.anywhere | other.anywhere, self.lines | other.lines)


def template_marks(
    render: Callable[[str, Sequence[TemplateMessage]], str], source: str, control: re.Pattern[str]
) -> TemplateMarks:
    """The marks that are plain text, of a template.

    Args:
        render: renders a system message and turns.
        source: the template itself.
        control: matches control tokens, which are no plain text.
    """
    turns = [("user", FIRST), ("assistant", REPLY), ("user", SECOND)]
    anywhere: set[str] = set(_literals(source))
    lines: set[str] = set()
    for system in (SYSTEM, ""):
        opening, *between = _MARKER.split(render(system, turns))
        # What opens a conversation may say more than who speaks; the mark is nearest to the words.
        for number, segment in enumerate((opening.rstrip("\n").rpartition("\n")[2], *between)):
            for line, in_header in _lines(segment, control):
                rest = _BRACKETED.sub(" ", line).strip()
                anywhere.update(found for found in _BRACKETED.findall(line) if len(found) > 2)
                if len(rest) > LONGEST_MARK:
                    continue
                if not any(char.isalnum() for char in rest):
                    if _SIGNS.fullmatch(rest) and not in_header:
                        anywhere.add(rest)
                elif not (rest[0].isalnum() and rest[-1].isalnum()):
                    anywhere.add(rest)
                elif not in_header and (number > 0 or rest.isalnum()):  # one word in the opening: who speaks there
                    lines.add(rest)
    return TemplateMarks(frozenset(anywhere), frozenset(lines))


def turn_marks(
    render: Callable[[str, Sequence[TemplateMessage]], str], control: re.Pattern[str], *, ends_by_token: bool
) -> TurnMarks:
    """The plain text that a reply ends before, of a template.

    Markup ends it wherever it stands. What may be an ordinary word does not: `### Response:` and `USER:` end it where a
    line begins with them. Where no control token ends a turn, what stands between a reply and the user's next words is
    all that ends one, and counts as it is written.

    Args:
        render: renders a system message and turns.
        control: matches control tokens, at which engines stop or which they leave out.
        ends_by_token: whether a control token ends a turn.
    """
    turns = [("user", FIRST), ("assistant", REPLY), ("user", SECOND)]
    anywhere: set[str] = set()
    exact: set[str] = set()
    for system in (SYSTEM, ""):
        opening, *between = _MARKER.split(render(system, turns))
        for segment in (opening.rstrip("\n").rpartition("\n")[2], *between):
            for line, _ in _lines(segment, control):
                anywhere.update(MARKUP.findall(line))
                if (
                    line[-1] == ":"
                    and not line[0].isalnum()
                    and any(map(str.isalnum, line))
                    and not MARKUP.search(line)
                ):
                    exact.add(f"\n{line}")
        exact.update(_separator(between[-2], control, ends_by_token=ends_by_token))
    header = control.split(between[-1])[-1].strip().rpartition("\n")[2].strip()
    return TurnMarks(frozenset(anywhere), frozenset(exact), frozenset([header] if MARKUP.search(header) else []))


def _separator(segment: str, control: re.Pattern[str], *, ends_by_token: bool) -> Iterable[str]:
    """The word, no markup, with which a user's turn begins behind a reply, with the space before it."""
    if ends_by_token:
        word = segment[max((match.end() for match in control.finditer(segment)), default=0) :].strip()
        return [f"\n{word}"] if _LOUD.fullmatch(word) else []
    if control.search(segment) or MARKUP.search(segment) or not any(map(str.isalnum, segment)):
        return []
    word = segment.strip()
    space = segment[: segment.index(word)]
    if word[-1].isalnum():
        return [segment] if "\n" in space and segment.endswith("\n") else []
    return [f"\n{word}" if "\n" in space else f"{space}{word}"] if space or not word[0].isalnum() else []


def _lines(segment: str, control: re.Pattern[str]) -> Iterable[tuple[str, bool]]:
    """The lines of plain text in a segment, each with whether control tokens on the same line set it apart.

    `user` in `<|im_start|>user` is an ordinary word everywhere else; alone on its line it would be a mark.
    """
    place, parts = 0, []
    for match in control.finditer(segment):
        parts.append(segment[place : match.start()])
        place = match.end()
    parts.append(segment[place:])
    for number, part in enumerate(parts):
        inside = part.split("\n")
        for index, line in enumerate(inside):
            after_control = index == 0 and number > 0
            before_control = index == len(inside) - 1 and number < len(parts) - 1
            if line.strip():
                yield line.strip(), after_control or before_control


def _literals(source: str) -> Iterable[str]:
    """Marks in the literal text of a template: also those that only thoughts and tool calls would bring out."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        for _, kind, text in Environment(autoescape=False).lex(source):  # noqa: S701 - nothing is rendered
            if kind in ("data", "string"):
                yield from _LITERAL.findall(text)
    except TemplateSyntaxError:
        return
