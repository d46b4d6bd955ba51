"""What comes out of the sanitizer: words with one space between them, and no bracket around nothing."""

from __future__ import annotations

import re
from collections import deque

from runtime.text.sanitizer.markup import BRACKETS, DROPPED, class_of
from runtime.text.sanitizer.names import is_address

# Longest row of brackets, with the spaces between them, of which it is still open whether anything stands in them.
OPEN_LIMIT = 16
# What came out last is looked back at by so many characters.
RECENT = 240

_JOINER = "\u200d"
# Beyond, emoji are many and letters few: all are looked at one by one. Classes of many ranges are slow.
_EMOJI_PLANES = "\U0001f000-\U0010ffff"
# What of a class of a pattern may have to go.
MAY_GO = class_of(frozenset(char for char in DROPPED if char < "\U0001f000")) + _JOINER + _EMOJI_PLANES
_MAY_GO = re.compile(f"[{MAY_GO}]")
_CLOSING = frozenset(".;:…)")


class Output:
    """What came out of one reply so far, and what is about to: space, and brackets that may be hollow."""

    __slots__ = ("_begun", "_blank", "_last", "_line_start", "_open", "_out", "_recent", "_removed")

    def __init__(self) -> None:
        self._out: list[str] = []  # decided, not returned yet
        self._last = ""  # the last character that came out
        self._blank = False  # there was space since
        self._removed = False  # something was removed since
        self._begun = False  # the first letter or digit is out
        self._line_start = True  # nothing of the line came out
        self._open = ""  # brackets that nothing was said in yet, with the space before them
        self._recent: deque[str] = deque(maxlen=RECENT)  # what came out last, in pieces of a character or more

    def _emit(self, text: str, at: int, *, keep_space: bool = False) -> int:
        """Let text without space or emoji come out. Returns where it ends in the input."""
        self._line_start = False
        self._write(text, keep_space=keep_space)
        return at + len(text)

    def _emit_run(self, text: str, at: int) -> int:
        """Let text without space come out, up to and without its first emoji."""
        self._line_start = False
        if self._open and self._removed and text[0] == BRACKETS[self._open[-1]]:
            self._close_hollow()
            return at + 1
        if text.isascii() and text.isprintable():
            self._write(text)
            return at + len(text)
        for found in _MAY_GO.finditer(text):
            # The joiner belongs to what stands before it: an emoji, or a letter of a script that needs it.
            joins = found[0] == _JOINER and found.start() == 0 and self._removed
            if found[0] not in DROPPED and not joins:
                continue
            if found.start():
                self._write(text[: found.start()])
            self._removed = True
            return at + found.end()
        self._write(text)
        return at + len(text)

    def _write(self, text: str, *, keep_space: bool = False) -> None:
        if self._open:
            if self._removed and text[0] == BRACKETS[self._open[-1]]:
                self._close_hollow()
                if len(text) > 1:
                    self._write(text[1:], keep_space=keep_space)
                return
            self._keep_brackets()
            self._blank = self._blank and not self._removed
        if self._blank and self._last:
            closes = text[0] in ",?!" or (self._removed and text[0] in _CLOSING)
            if keep_space or not closes:
                text = " " + text
        self._blank = self._removed = False
        self._last = text[-1]
        if not self._begun:
            text = self._capitalized(text)
        self._out.append(text)
        self._recent.append(text)

    def _open_bracket(self, bracket: str, at: int) -> int:
        """Keep a bracket until it is known whether anything stands in it."""
        if len(self._open) >= OPEN_LIMIT:
            self._keep_brackets()
        if self._blank and self._last:
            self._open += " "
        self._open += bracket
        self._blank = self._removed = self._line_start = False
        self._last = bracket
        return at + 1

    def _keep_brackets(self) -> None:
        """Let out the brackets that were opened."""
        self._out.append(self._open)
        self._recent.append(self._open)
        self._open = ""

    def _close_hollow(self) -> None:
        """Nothing is left of what stood in the bracket that was opened last: it goes as well."""
        outer = self._open[:-1]
        self._open = outer.rstrip(" ")
        self._blank = outer != self._open
        self._removed = True
        self._last = (self._open or self._said())[-1:]

    def _said(self) -> str:
        """What came out last."""
        return "".join(self._recent)[-RECENT:]

    def _capitalized(self, text: str) -> str:
        for index, char in enumerate(text):
            if char.isalnum():
                self._begun = True
                capital = char.title()  # where a script has no capitals for titles, its upper case is another script
                return text[:index] + (capital if len(capital) == 1 else char) + text[index + 1 :]
        return text

    def _drop(self, after: int) -> int:
        self._removed = True
        self._line_start = False
        return after

    # What stands around

    def _after_blank(self) -> bool:
        return self._blank or not self._last

    def _after_word(self) -> bool:
        return self._last.isalnum() and not self._blank and not self._removed

    def _word(self) -> str:
        """What was said of the word that is being said."""
        return (self._said() + self._open).rpartition(" ")[2]

    def _in_address(self) -> bool:
        """Whether the word that is being said is an address."""
        return not self._blank and not self._removed and is_address(self._said().rpartition(" ")[2])

    def _in_path(self) -> bool:
        """Whether the word that is being said is a path, or an address."""
        return not self._blank and not self._removed and ("/" in self._word() or self._in_address())
