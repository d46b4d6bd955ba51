"""Text fit to be spoken, as it streams: `rules.RULES` is the table of what goes.

A `Sanitizer` reads its input once, from left to right. At each mark it decides with what stands before and a bounded
piece of what follows; when that piece has not arrived, the rest waits. What came out is never taken back, and since no
decision depends on where the input was cut, any chunking gives the same text. `sanitize` is one chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from runtime.text.sanitizer.backticks import backticks
from runtime.text.sanitizer.emoticons import EMOTICONS_BY_FIRST, emoticon_end, may_open_emoticon
from runtime.text.sanitizer.emphasis import asterisks, tildes, underscores
from runtime.text.sanitizer.lines import bar, greater, hashes, line_signs
from runtime.text.sanitizer.links import bang, bracket, closing_bracket, link_address, opening
from runtime.text.sanitizer.markup import BRACKETS, class_of
from runtime.text.sanitizer.names import begins_as_word
from runtime.text.sanitizer.output import MAY_GO
from runtime.text.sanitizer.reading import BLANK_LIMIT, NEWLINE, SPACE, UNDECIDED, Reading
from runtime.text.sanitizer.tags import ampersand, backslash, less

_SPACES = frozenset(chr(code) for code in range(0x80, 0x3001) if chr(code).isspace())
# No mark, no space, nothing that is dropped: letters and digits of ASCII, and nearly everything beyond ASCII.
_UNMARKED = rf"\x00-&(-/:-@\[-`{{-\x7f¯•{class_of(_SPACES | {*BRACKETS} - {'(', '['})}{MAY_GO}"
# Most tokens: a word, or what ends a sentence. Some letters may begin an emoticon.
_PLAIN_TOKEN = re.compile(
    rf" ?(?![Xx]D|[XxToO]\Z)(?:[A-Za-z0-9'\"][A-Za-z0-9'\".,?!]*|[^{_UNMARKED}](?:[^{_UNMARKED}]|[.,?!\"])*)"
    r"|[.,?!][.,?!'\"]*"
).fullmatch
# Tokens come again and again, and are known then; short ones, so that what is kept is small.
KNOWN_TOKENS, KNOWN_CHARS = 16_384, 24


@lru_cache(KNOWN_TOKENS)
def _is_plain(token: str) -> bool:
    return _PLAIN_TOKEN(token) is not None


_RUN = re.compile(rf"[^\s*_~`\]!<&\\#>\-+•=|:;^¯{re.escape(''.join(BRACKETS))}]+")
_CODE_RUN = re.compile(r"[^\s`]+")


_MARKS: dict[str, Callable[[Reading, str, int], int]] = {
    **dict.fromkeys(BRACKETS, opening),
    "*": asterisks,
    "_": underscores,
    "~": tildes,
    "-": line_signs,
    "+": line_signs,
    "•": line_signs,
    "=": line_signs,
    "#": hashes,
    ">": greater,
    "|": bar,
    "[": bracket,
    "]": closing_bracket,
    "!": bang,
    "<": less,
    "&": ampersand,
    "\\": backslash,
}


def sanitize(text: str) -> str:
    """The whole text at once.

    >>> sanitize("**hello** *waves*  world :)")
    'Hello world'
    """
    sanitizer = Sanitizer()
    return sanitizer.feed(text) + sanitizer.finish()


class Sanitizer(Reading):
    """One reply, in chunks. The outputs of all `feed`s and `finish` together are `sanitize` of the whole."""

    __slots__ = ("_plain",)

    def __init__(self) -> None:
        super().__init__()
        self._plain = False  # a plain word comes out as it is; `last` is the last of `recent` then

    def feed(self, text: str) -> str:
        """Take a chunk; return what is certain by now."""
        # Most tokens are a plain word behind a space: one look, no machinery.
        if self._plain and (_is_plain(text) if len(text) <= KNOWN_CHARS else _PLAIN_TOKEN(text)):
            self.recent.append(text)
            return text
        if self._plain:
            self.last = self.recent[-1][-1]
        self.held += text
        return self._run()

    def finish(self) -> str:
        """The reply has ended; return what was held back."""
        self.final = True
        text = self._run()
        if self.open and not self.removed:
            text += self.open
        return text

    def _run(self) -> str:
        text, at = self.held, 0
        while at < len(text):
            after = self._step(text, at)
            if after == UNDECIDED:
                break
            at = after
        self.held = text[at:]
        # A plain word that comes now comes out as it is, and changes nothing but what was said.
        self._plain = self.begun and not (
            self.held
            or self.blank
            or self.removed
            or self.line_start
            or self.code
            or self.open
            or self.skipped
            or self.in_link_address
        )
        self.links = [(text_end - at, end - at, unended) for text_end, end, unended in self.links]
        output = "".join(self.out)
        self.out.clear()
        return output

    def _step(self, text: str, at: int) -> int:
        """Handle what stands at `at`; return where to go on, or UNDECIDED when more must arrive."""
        first = text[at]
        if first == self.skipped:
            return at + 1
        if self.in_link_address:
            return link_address(self, text, at)
        self.skipped = ""
        if space := SPACE.match(text, at):
            return self._space(space[0], space.end())
        if first == "`":
            return backticks(self, text, at)
        if self.code:
            self.begun = True  # code has no sentences
            run = _CODE_RUN.match(text, at)
            return self.emit_run(run[0] if run else first, at)
        if first in EMOTICONS_BY_FIRST and may_open_emoticon(self, first):
            after = emoticon_end(self, text, at)
            if after != at:
                return after
        if not self.begun and first.isalnum() and not self._first_word(text, at):
            return UNDECIDED
        mark = _MARKS.get(first)
        if mark is not None:
            return mark(self, text, at)
        run = _RUN.match(text, at)
        found = run[0] if run else first
        if not self.begun and not first.isalnum():
            # The first letter is looked at by itself.
            found = next((found[:index] for index, char in enumerate(found) if char.isalnum()), found)
        return self.emit_run(found, at)

    def _first_word(self, text: str, at: int) -> bool:
        """Whether it is known if the first letter gets to be a capital; what is no word stays as it is."""
        if text[at].title() == text[at]:
            return True
        chunk = self.chunk(text, at)
        if chunk is None:
            return False
        following = ""
        if len(chunk) == 1:
            end = at + 1
            while end < len(text) and end - at < BLANK_LIMIT and text[end].isspace():
                end += 1
            if end + 2 > len(text) and not self.final:
                return False
            following = text[end : end + 2]
        if self.links:
            chunk = chunk[: max(0, self.links[-1][0] - at)]
        self.begun = not begins_as_word("" if self.blank or self.removed else self.word(), chunk, following)
        return True

    def _space(self, space: str, after: int) -> int:
        self.blank = True
        if NEWLINE.search(space):
            self.line_start = True
            self.row = self.underlined = self.starred = False
            if self.code < 3:
                self.code = 0
        return after
