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
    """What came out of one reply so far, and what is about to: space, and brackets that may be hollow.

    Attributes:
        out: decided, not returned yet.
        last: the last character that came out.
        blank: there was space since.
        removed: something was removed since.
        begun: the first letter or digit is out.
        line_start: nothing of the line came out.
        open: brackets that nothing was said in yet, with the space before them.
        recent: what came out last, in pieces of a character or more.
    """

    __slots__ = ("begun", "blank", "last", "line_start", "open", "out", "recent", "removed")

    def __init__(self) -> None:
        self.out: list[str] = []
        self.last = ""
        self.blank = False
        self.removed = False
        self.begun = False
        self.line_start = True
        self.open = ""
        self.recent: deque[str] = deque(maxlen=RECENT)

    def emit(self, text: str, at: int, *, keep_space: bool = False) -> int:
        """Let text without space or emoji come out. Returns where it ends in the input."""
        self.line_start = False
        self._write(text, keep_space=keep_space)
        return at + len(text)

    def emit_run(self, text: str, at: int) -> int:
        """Let text without space come out, up to and without its first emoji."""
        self.line_start = False
        if self.open and self.removed and text[0] == BRACKETS[self.open[-1]]:
            self._close_hollow()
            return at + 1
        if text.isascii() and text.isprintable():
            self._write(text)
            return at + len(text)
        for found in _MAY_GO.finditer(text):
            # The joiner belongs to what stands before it: an emoji, or a letter of a script that needs it.
            joins = found[0] == _JOINER and found.start() == 0 and self.removed
            if found[0] not in DROPPED and not joins:
                continue
            if found.start():
                self._write(text[: found.start()])
            self.removed = True
            return at + found.end()
        self._write(text)
        return at + len(text)

    def _write(self, text: str, *, keep_space: bool = False) -> None:
        if self.open:
            if self.removed and text[0] == BRACKETS[self.open[-1]]:
                self._close_hollow()
                if len(text) > 1:
                    self._write(text[1:], keep_space=keep_space)
                return
            self._keep_brackets()
            self.blank = self.blank and not self.removed
        if self.blank and self.last:
            closes = text[0] in ",?!" or (self.removed and text[0] in _CLOSING)
            if keep_space or not closes:
                text = " " + text
        self.blank = self.removed = False
        self.last = text[-1]
        if not self.begun:
            text = self._capitalized(text)
        self.out.append(text)
        self.recent.append(text)

    def open_bracket(self, bracket: str, at: int) -> int:
        """Keep a bracket until it is known whether anything stands in it."""
        if len(self.open) >= OPEN_LIMIT:
            self._keep_brackets()
        if self.blank and self.last:
            self.open += " "
        self.open += bracket
        self.blank = self.removed = self.line_start = False
        self.last = bracket
        return at + 1

    def _keep_brackets(self) -> None:
        """Let out the brackets that were opened."""
        self.out.append(self.open)
        self.recent.append(self.open)
        self.open = ""

    def _close_hollow(self) -> None:
        """Nothing is left of what stood in the bracket that was opened last: it goes as well."""
        outer = self.open[:-1]
        self.open = outer.rstrip(" ")
        self.blank = outer != self.open
        self.removed = True
        self.last = (self.open or self.said())[-1:]

    def said(self) -> str:
        """What came out last."""
        return "".join(self.recent)[-RECENT:]

    def _capitalized(self, text: str) -> str:
        for index, char in enumerate(text):
            if char.isalnum():
                self.begun = True
                capital = char.title()  # where a script has no capitals for titles, its upper case is another script
                return text[:index] + (capital if len(capital) == 1 else char) + text[index + 1 :]
        return text

    def drop(self, after: int) -> int:
        """Let what stands before `after` go; return it."""
        self.removed = True
        self.line_start = False
        return after

    # What stands around

    def after_blank(self) -> bool:
        """Whether nothing touches what comes next on its left."""
        return self.blank or not self.last

    def after_word(self) -> bool:
        """Whether a word touches what comes next on its left."""
        return self.last.isalnum() and not self.blank and not self.removed

    def word(self) -> str:
        """What was said of the word that is being said."""
        return (self.said() + self.open).rpartition(" ")[2]

    def in_address(self) -> bool:
        """Whether the word that is being said is an address."""
        return not self.blank and not self.removed and is_address(self.said().rpartition(" ")[2])

    def in_path(self) -> bool:
        """Whether the word that is being said is a path, or an address."""
        return not self.blank and not self.removed and ("/" in self.word() or self.in_address())
