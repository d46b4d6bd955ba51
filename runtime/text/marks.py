"""Marks that only the template may write: control tokens, role marks that are plain text, thinking and tool marks.

A model tells who speaks by marks. Some are control tokens of its tokenizer; others are plain text (`<|system|>` of
Zephyr, `[/INST] <<SYS>>` of Llama 2, `USER:` of Vicuna), which no tokenizer knows of: they are learned from what the
template renders around marker words, and from the literals of its source. Client text that holds one of either kind is
broken up: `<|im_end|>` becomes `< |im_end|>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from runtime.text.template import FIRST, REPLY, SECOND, SYSTEM, TemplateMessage

# A longer line of a template is an instruction, no mark.
LONGEST_MARK = 64
# How thoughts and tool calls are set apart, in models that have no control tokens for it. What begins so is a mark.
THINKING_AND_TOOLS = (
    *(
        f"<{slash}{name}"
        for name in ("think", "reasoning>", "thought>", "tool_", "tools>", "function_", "function>", "function=")
        for slash in ("", "/")
    ),
    *(f"[{slash}{name}]" for name in ("THINK", "TOOL_CALLS", "TOOL_RESULTS", "AVAILABLE_TOOLS") for slash in ("", "/")),
)

_Trie: TypeAlias = "dict[str, _Trie]"

_MARKER = re.compile("|".join((SYSTEM, FIRST, REPLY, SECOND)))
# `<|user|>`, `<<SYS>>`, `[/INST]`, `{{user}}`, `【user】`: no space inside.
_BRACKETED = re.compile(r"<{1,2}[^<>\[\]\s]+>{1,2}|\[[^\[\]<>\s]+\]|\{{1,2}[^{}\s]+\}{1,2}|【[^【】\s]+】")
# In a template's source, brackets also index and compare.
_LITERAL = re.compile(r"<{1,2}[|/]?[^\W\d][\w|/:=.-]+>{1,2}|\[/?[A-Z][A-Z_]{2,}\]")


@dataclass(frozen=True, slots=True)
class TemplateMarks:
    """The plain text by which a template tells who speaks.

    Attributes:
        anywhere: marks wherever they stand.
        lines: words that are marks where they fill a line.
    """

    anywhere: frozenset[str]
    lines: frozenset[str]


class Breaker:
    """Breaks marks up with a space behind their first character. The time is linear in the text, whatever the marks.

    Args:
        anywhere: marks wherever they stand. Those of one character cannot be broken up.
        lines: words that are marks where they fill a line.
    """

    def __init__(self, anywhere: Iterable[str], lines: Iterable[str] = ()) -> None:
        # A space at either end would be none of the mark: a wider gap does not break it up.
        words = [word for word in map(str.strip, anywhere) if len(word) > 1]
        fillers = [word for word in map(str.strip, lines) if len(word) > 1]
        # Only the first character is consumed: a mark that begins inside another one is found as well.
        branches = (f"{re.escape(first)}(?={_pattern(rest)})" for first, rest in _trie(words).items())
        self._begin = re.compile("|".join(branches) if words else r"(?!)")
        self._line = re.compile(rf"^([ \t]*)(?={any_of(fillers)}[ \t]*$)(.)", re.MULTILINE) if fillers else None

    def holds(self, text: str) -> bool:
        """Whether there is a mark in the text."""
        return self._begin.search(text) is not None or (self._line is not None and self._line.search(text) is not None)

    def broken(self, text: str) -> str:
        """The text with every mark in it broken up."""
        while True:
            # Again, because some marks have spaces in them. Each round widens the gaps, so that there is a last one.
            broken = self._begin.sub(r"\g<0> ", text)
            if self._line is not None:
                broken = self._line.sub(r"\1\2 ", broken)
            if broken == text:
                return text
            text = broken


def any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of some words that stands at a place.

    Words that begin alike share their beginning, so that the time does not grow with their number: a plain alternation
    would try each of the thousands of reserved tokens that some vocabularies have.

    >>> any_of(["<a>", "<ab>", "[x]"])
    '(?:<a(?:>|b>)|\\\\[x\\\\])'
    """
    return _pattern(_trie(words)) or r"(?!)"


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
                if not any(char.isalnum() for char in rest) or len(rest) > LONGEST_MARK:
                    continue
                if not (rest[0].isalnum() and rest[-1].isalnum()):
                    anywhere.add(rest)
                elif not in_header and number > 0:
                    lines.add(rest)
    return TemplateMarks(frozenset(anywhere), frozenset(lines))


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


def _trie(words: Iterable[str]) -> _Trie:
    root: _Trie = {}
    for word in words:
        node = root
        for char in word:
            node = node.setdefault(char, {})
        node[""] = {}
    return root


def _pattern(node: _Trie) -> str:
    branches = [re.escape(char) + _pattern(rest) for char, rest in node.items() if char]
    if not branches:
        return ""
    whole = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return f"{whole}?" if "" in node else whole
