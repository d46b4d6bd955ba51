"""Text fit to be spoken, as it streams: `rules.RULES` is the table of what goes.

A `Sanitizer` reads its input once, from left to right. At each mark it decides with what stands before and a bounded
piece of what follows; when that piece has not arrived, the rest waits. What came out is never taken back, and since no
decision depends on where the input was cut, any chunking gives the same text. `sanitize` is one chunk.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from functools import lru_cache
from html.entities import html5

from runtime.text.sanitizer.emoticons import EMOTICONS_BY_FIRST, reads_as_content
from runtime.text.sanitizer.markup import (
    BLOCK_TAGS,
    BRACKETS,
    DROPPED,
    ENTITY,
    LINK,
    REFERENCE,
    TAG,
    UNENDED_LINK,
    class_of,
    reads_as_direction,
)
from runtime.text.sanitizer.names import (
    begins_as_word,
    is_unspaced,
    reads_as_reference,
    underlined_name,
)
from runtime.text.sanitizer.output import MAY_GO, Output
from runtime.text.sanitizer.rules import RULES, Rule

__all__ = ["RULES", "Rule", "Sanitizer", "sanitize"]

# Longest text that is held back while it may still become one thing, in characters.
STAGE_LIMIT = 200
LINK_LIMIT = 400
TAG_LIMIT = 400
FENCE_LIMIT = 40
BLANK_LIMIT = 40
# As many of one mark in a row draw something; which of its meanings they have is not waited for.
RUN_LIMIT = 80
# Longest piece without a space that is waited for, to see whether it is a word or a name.
CHUNK_LIMIT = 64

UNDECIDED = -1
LONG = -2

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
_SPACE = re.compile(r"\s+")
_NEWLINE = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_STAGE_EDGE = re.compile(r"\*+|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_ADDRESS_END = re.compile(r"[\s)]")
_KEYCAP = frozenset("\ufe0f\u20e3")
_ESCAPED = frozenset("*_`~#[]|>")
_STAGE_BEGINS = DROPPED | set("\"'“‘(…¿¡«「（")
_ENDS_SENTENCE = frozenset(".!?…:\"'”’)。！？｡：؟۔।॥።᙮»」』）】")
_PART_OF_ADDRESS = frozenset("/=&?#%@")
# Behind a mark that stands alone, and is meant: `press *, then #`.
_BEHIND_LONE = frozenset(".,;:?!)]")


def sanitize(text: str) -> str:
    """The whole text at once.

    >>> sanitize("**hello** *waves*  world :)")
    'Hello world'
    """
    sanitizer = Sanitizer()
    return sanitizer.feed(text) + sanitizer.finish()


class Sanitizer(Output):
    """One reply, in chunks. The outputs of all `feed`s and `finish` together are `sanitize` of the whole."""

    __slots__ = (
        "_code",
        "_final",
        "_in_link_address",
        "_links",
        "_plain",
        "_row",
        "_skipped",
        "_starred",
        "_text",
        "_underlined",
    )

    def __init__(self) -> None:
        super().__init__()
        self._text = ""  # arrived, not decided
        self._final = False  # nothing more will arrive
        self._plain = False  # a plain word comes out as it is; `_last` is the last of `_recent` then
        self._row = False  # in a table's row
        self._code = 0  # backticks that opened the code we are in
        # Where the texts of the links we are in end, where they do, and whether their address goes on there.
        self._links: list[tuple[int, int, bool]] = []
        self._in_link_address = False  # in an address that is too long to wait for its end
        self._skipped = ""  # the mark of a long run that may go on
        self._underlined = False  # underscores were opened
        self._starred = False  # an asterisk was opened

    def feed(self, text: str) -> str:
        """Take a chunk; return what is certain by now."""
        # Most tokens are a plain word behind a space: one look, no machinery.
        if self._plain and (_is_plain(text) if len(text) <= KNOWN_CHARS else _PLAIN_TOKEN(text)):
            self._recent.append(text)
            return text
        if self._plain:
            self._last = self._recent[-1][-1]
        self._text += text
        return self._run()

    def finish(self) -> str:
        """The reply has ended; return what was held back."""
        self._final = True
        text = self._run()
        if self._open and not self._removed:
            text += self._open
        return text

    def _run(self) -> str:
        text, at = self._text, 0
        while at < len(text):
            after = self._step(text, at)
            if after == UNDECIDED:
                break
            at = after
        self._text = text[at:]
        # A plain word that comes now comes out as it is, and changes nothing but what was said.
        self._plain = self._begun and not (
            self._text
            or self._blank
            or self._removed
            or self._line_start
            or self._code
            or self._open
            or self._skipped
            or self._in_link_address
        )
        self._links = [(text_end - at, end - at, unended) for text_end, end, unended in self._links]
        output = "".join(self._out)
        self._out.clear()
        return output

    def _step(self, text: str, at: int) -> int:
        """Handle what stands at `at`; return where to go on, or UNDECIDED when more must arrive."""
        first = text[at]
        if first == self._skipped:
            return at + 1
        if self._in_link_address:
            return self._link_address(text, at)
        self._skipped = ""
        if space := _SPACE.match(text, at):
            return self._space(space[0], space.end())
        if first == "`":
            return self._backticks(text, at)
        if self._code:
            self._begun = True  # code has no sentences
            run = _CODE_RUN.match(text, at)
            return self._emit_run(run[0] if run else first, at)
        if first in EMOTICONS_BY_FIRST and self._may_open_emoticon(first):
            after = self._emoticon(text, at)
            if after != at:
                return after
        if not self._begun and first.isalnum() and not self._first_word(text, at):
            return UNDECIDED
        handler = _HANDLERS.get(first)
        if handler is not None:
            return handler(self, text, at)
        run = _RUN.match(text, at)
        found = run[0] if run else first
        if not self._begun and not first.isalnum():
            # The first letter is looked at by itself.
            found = next((found[:index] for index, char in enumerate(found) if char.isalnum()), found)
        return self._emit_run(found, at)

    def _chunk(self, text: str, at: int) -> str | None:
        """What stands at `at` up to the next space, or the beginning of it; None when it may go on."""
        space = _SPACE.search(text, at, at + CHUNK_LIMIT)
        if space is None and len(text) - at < CHUNK_LIMIT and not self._final:
            return None
        return text[at : space.start() if space else at + CHUNK_LIMIT]

    def _first_word(self, text: str, at: int) -> bool:
        """Whether it is known if the first letter gets to be a capital; what is no word stays as it is."""
        if text[at].title() == text[at]:
            return True
        chunk = self._chunk(text, at)
        if chunk is None:
            return False
        following = ""
        if len(chunk) == 1:
            end = at + 1
            while end < len(text) and end - at < BLANK_LIMIT and text[end].isspace():
                end += 1
            if end + 2 > len(text) and not self._final:
                return False
            following = text[end : end + 2]
        if self._links:
            chunk = chunk[: max(0, self._links[-1][0] - at)]
        self._begun = not begins_as_word("" if self._blank or self._removed else self._word(), chunk, following)
        return True

    def _space(self, space: str, after: int) -> int:
        self._blank = True
        if _NEWLINE.search(space):
            self._line_start = True
            self._row = self._underlined = self._starred = False
            if self._code < 3:
                self._code = 0
        return after

    # What stands around

    def _run_end(self, text: str, at: int) -> int:
        """Where a run of one character ends, UNDECIDED when it may go on, or LONG."""
        end, limit = at + 1, min(len(text), at + RUN_LIMIT)
        while end < limit and text[end] == text[at]:
            end += 1
        if end - at == RUN_LIMIT:
            return LONG
        return end if end < len(text) or self._final else UNDECIDED

    def _no_end(self, end: int, text: str, at: int) -> int:
        """Handle a run that has no end: wait for it, or let it go when it is long."""
        if end == UNDECIDED:
            return UNDECIDED
        self._skipped = text[at]
        return self._drop(at + RUN_LIMIT)

    # One method a mark

    def _asterisks(self, text: str, at: int) -> int:
        end = self._run_end(text, at)
        if end < 0:
            return self._no_end(end, text, at)
        following = text[end : end + 1]
        if self._line_start and (after := self._line_mark(text, at, end)) != at:
            return after
        if following in _KEYCAP:
            return self._drop(end)
        if (following.isalnum() or following in _PART_OF_ADDRESS) and following and self._in_address():
            return self._emit(text[at:end], at)
        single = end - at == 1
        if single and not self._after_word() and (following.isalnum() or following in _STAGE_BEGINS):
            after = self._stage_direction(text, at)
            if after != at:
                return after
        if not self._after_word():
            self._starred = single and not following.isspace()
        elif single and not following.isalnum():
            # What was not opened closes nothing: a hotel has 5*.
            if self._last.isdigit() and not self._starred:
                return self._emit("*", at)
            self._starred = False
        sums = single or following.isdigit() or self._last.isdigit()
        if (
            not sums
            and end - at == 2
            and self._after_word()
            and following.isalnum()
            and not self._word()[-2:-1].isalnum()
        ):
            # `a**b` is a power, and `a**bold**` is none.
            beyond = text[end + 1 : end + 2]
            if not beyond and not self._final:
                return UNDECIDED
            sums = not beyond.isalnum()
        return self._mark(text, at, end, stays_in_words=sums)

    def _stage_direction(self, text: str, at: int) -> int:
        start, limit = at + 1, at + 1 + STAGE_LIMIT
        while edge := _STAGE_EDGE.search(text, start, limit + 1):
            if edge[0][0] != "*":
                return at
            if edge.end() == len(text) and not self._final:
                return UNDECIDED
            inside, outside = text[edge.start() - 1], text[edge.end() : edge.end() + 1]
            closes = not inside.isspace() and (not outside.isalnum() or is_unspaced(outside))
            if closes and len(edge[0]) != 2:
                return self._direction_or_emphasis(text, at, edge.start(), edge.end())
            start = edge.end()
        if len(text) > limit:
            return at
        if not self._final:
            return UNDECIDED
        # The reply ended inside: a stage direction where a sentence may begin, a stray mark elsewhere.
        return self._drop(len(text)) if self._sentence_may_begin() else at

    def _direction_or_emphasis(self, text: str, at: int, closed: int, end: int) -> int:
        first_words = text[at + 1 : closed].split()[:2]
        begins = self._sentence_may_begin()
        if any(reads_as_direction(word.strip(".,!?…"), sentence_begins=begins) for word in first_words):
            return self._drop(end)
        caseless = text[closed - 1].isalpha() and not text[closed - 1].isupper() and not text[closed - 1].islower()
        if self._open and not self._blank and caseless and text[end : end + 1] == BRACKETS[self._open[-1]]:
            return self._drop(end)  # it is all that stands in the brackets
        if not begins:
            return at
        following = end
        while following < len(text) and following - end < BLANK_LIMIT:
            if text[following] not in " \t" and text[following] not in DROPPED:
                break
            following += 1
        if following == len(text) and not self._final:
            return UNDECIDED
        next_char = text[following : following + 1]
        # Scripts without capitals do not tell where a sentence begins.
        capital = next_char.isupper() or (next_char.isalpha() and not next_char.islower() and following > end)
        on_its_own = (
            not next_char or capital or is_unspaced(next_char) or next_char in '"“«「¿¡*' or _NEWLINE.match(next_char)
        )
        return self._drop(end) if on_its_own else at

    def _sentence_may_begin(self) -> bool:
        return self._line_start or not self._last or self._last in _ENDS_SENTENCE

    def _underscores(self, text: str, at: int) -> int:
        end = self._run_end(text, at)
        if end < 0:
            return self._no_end(end, text, at)
        if self._line_start and end - at > 2 and (after := self._line_mark(text, at, end)) != at:
            return after
        if not self._after_word():
            chunk = self._chunk(text, at)
            if chunk is None:
                return UNDECIDED
            if name := underlined_name(chunk):
                self._begun = True
                return self._emit_run(name, at)
        following = text[end : end + 1]
        closes = self._underlined and not following.isalnum() and following not in _PART_OF_ADDRESS
        if not closes and not self._after_blank() and self._is_part_of_address(following):
            return self._emit(text[at:end], at)
        if not self._after_word():
            self._underlined = following.isalnum()
        elif closes:
            self._underlined = False
        return self._mark(text, at, end, stays_in_words=True)

    def _is_part_of_address(self, following: str) -> bool:
        touches = self._last in _PART_OF_ADDRESS or (following != "" and following in _PART_OF_ADDRESS)
        return touches or self._in_path()

    def _tildes(self, text: str, at: int) -> int:
        end = self._run_end(text, at)
        if end < 0:
            return self._no_end(end, text, at)
        if end - at != 2 or (text[end : end + 1].isalnum() and self._in_address()):
            return self._emit(text[at:end], at)
        return self._mark(text, at, end, stays_in_words=False)

    def _mark(self, text: str, at: int, end: int, *, stays_in_words: bool) -> int:
        """Emphasis: a mark between spaces is text, one in a word may be, any other goes."""
        following = text[end : end + 1]
        in_word = self._after_word() and following.isalnum()
        alone = self._after_blank() and following.isspace()
        if end - at == 1 and following and following in _BEHIND_LONE and (self._after_blank() or self._open):
            beyond = text[end + 1 : end + 2]
            if not beyond and not self._final:
                return UNDECIDED
            alone = not beyond or beyond.isspace() or (following in ")]" and beyond in _BEHIND_LONE)
            self._starred = self._starred and not alone
        if alone or (in_word and stays_in_words):
            return self._emit(text[at:end], at)
        if self._open and not self._blank and following == BRACKETS[self._open[-1]]:
            self._removed = True  # it was all that stood in the brackets
        self._line_start = False
        return end

    def _line_mark(self, text: str, at: int, end: int) -> int:
        """A bullet or a drawn line at the start of a line; `at` when it is neither."""
        following = text[end : end + 1]
        if end - at == 1 and text[at] != "=" and (not following or following.isspace()):
            self._removed = True
            return end
        if end - at < 3:
            return at
        rest = end
        while rest < len(text) and text[rest] in " \t" and rest - end < BLANK_LIMIT:
            rest += 1
        if rest == len(text):
            return self._drop(rest) if self._final else UNDECIDED
        return self._drop(rest) if _NEWLINE.match(text, rest) else at

    def _line_signs(self, text: str, at: int) -> int:
        """`-`, `+`, `•` and `=`: signs that are marks at the start of a line alone."""
        if self._row and text[at] == "-":
            return self._delimiter(text, at)
        if not self._line_start:
            return self._emit(text[at], at)
        end = self._run_end(text, at)
        if end < 0:
            return self._no_end(end, text, at)
        after = self._line_mark(text, at, end)
        return self._emit(text[at:end], at) if after == at else after

    def _delimiter(self, text: str, at: int) -> int:
        end = self._run_end(text, at)
        if end < 0:
            return self._no_end(end, text, at)
        if end - at < 3:
            return self._emit(text[at:end], at)
        return end + 1 if text[end : end + 1] == ":" else end

    def _hashes(self, text: str, at: int) -> int:
        end = self._run_end(text, at)
        if end < 0:
            return self._no_end(end, text, at)
        following = text[end : end + 1]
        heading = self._line_start and end - at <= 6 and (not following or following.isspace())
        return self._drop(end) if heading or following in _KEYCAP else self._emit(text[at:end], at)

    def _greater(self, text: str, at: int) -> int:
        if not self._line_start:
            return self._emit(">", at)
        following = text[at + 1 : at + 2]
        if not following and not self._final:
            return UNDECIDED
        return at + 1 if following in ("", ">") or following.isspace() else self._emit(">", at)

    def _bar(self, text: str, at: int) -> int:
        if not self._line_start and not self._row:
            return self._emit("|", at)
        self._row = True
        self._line_start = False
        self._blank = True
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        if self._row and self._after_blank():
            following = text[at + 1 : at + 2]
            if not following and not self._final:
                return UNDECIDED
            if following == "-":
                return at + 1
        return self._emit(":", at)

    def _backticks(self, text: str, at: int) -> int:
        end = self._run_end(text, at)
        if end == LONG and self._code == 3:
            self._code = 0
        if end < 0:
            return self._no_end(end, text, at)
        count = min(end - at, 3)
        if self._code:
            if count != self._code:
                return self._emit(text[at:end], at)
            self._code = 0
            return end
        if count == 3 and self._line_start:
            newline = _NEWLINE.search(text, end)
            if newline is None and len(text) - end <= FENCE_LIMIT and not self._final:
                return UNDECIDED
            line_end = newline.start() if newline else len(text)
            if line_end - end <= FENCE_LIMIT and "`" not in text[end:line_end]:
                end = line_end
        self._code = count
        self._line_start = False
        return end

    def _bracket(self, text: str, at: int) -> int:
        if self._line_start and not self._links and text[at] == "[":
            match = REFERENCE.match(text, at, at + LINK_LIMIT + 1, partial=True)
            if match is not None and match.end() - at <= LINK_LIMIT:
                if match.end() == len(text) and not self._final:
                    return UNDECIDED
                if not match.partial and reads_as_reference(match["address"]):
                    return self._drop(match.end())
        match = LINK.match(text, at, at + LINK_LIMIT + 1, partial=True)
        if match is None:
            return self._no_link(text, at)
        if match.partial:
            if match.end() - at <= LINK_LIMIT and not self._final:
                return UNDECIDED
            unended = UNENDED_LINK.match(text, at, at + LINK_LIMIT + 1)
            if unended is None or not reads_as_reference(unended["address"]):
                return self._no_link(text, at)
            self._links.append((unended.end("text"), unended.start("address"), True))
            return int(unended.start("text"))
        # `a[i][j]` is no link, nor is `[1][2]`.
        name, text_of = match["reference"], match["text"]
        pair = f"{text_of}{name}"
        indexed = self._after_word() or (len(pair) == 2 and pair.isalpha())
        if name is not None and (indexed or not any(char.isalpha() for char in text_of)):
            return self._no_link(text, at)
        address = text[match.end("text") + 2 : match.end() - 1].strip()
        if name is None and text[at] == "[" and self._after_word() and not reads_as_reference(address):
            return self._no_link(text, at)  # `i[0](x)`
        self._links.append((match.end("text"), match.end(), False))
        return int(match.start("text"))

    def _link_address(self, text: str, at: int) -> int:
        ended = _ADDRESS_END.search(text, at)
        if ended is None:
            return len(text)
        self._in_link_address = False
        return ended.end() if ended[0] == ")" else ended.start()

    def _no_link(self, text: str, at: int) -> int:
        return self._open_bracket("[", at) if text[at] == "[" else self._emit(text[at], at)

    def _opening(self, text: str, at: int) -> int:
        if text[at] == "“" and not self._blank and not self._removed and self._last and not self._open:
            return self._emit(text[at], at)  # „so“
        return self._open_bracket(text[at], at)

    def _closing_bracket(self, text: str, at: int) -> int:
        if self._links and at == self._links[-1][0]:
            _, end, self._in_link_address = self._links.pop()
            return end
        return self._emit("]", at)

    def _bang(self, text: str, at: int) -> int:
        if not self._after_blank():
            return self._emit("!", at)
        following = text[at + 1 : at + 2]
        if not following and not self._final:
            return UNDECIDED
        if following == "[":
            return self._bracket(text, at)
        # `a != b` and `!done` are no ends of sentences.
        return self._emit("!", at, keep_space=following == "=" or following.isalnum())

    def _less(self, text: str, at: int) -> int:
        match = TAG.match(text, at, at + TAG_LIMIT + 1, partial=True)
        if match is None or match.end() - at > TAG_LIMIT or (match.partial and self._final):
            return self._emit("<", at)
        if match.partial:
            return UNDECIDED
        if match["address"]:
            self._begun = True
            for char in match["address"]:
                self._emit_run(char, at)
            return int(match.end())
        if match["other"] and self._after_word() and text[at + 1] != "/":
            return self._emit("<", at)
        if match["known"] and match["known"].lower() in BLOCK_TAGS:
            self._blank = True
        return self._drop(match.end())

    def _ampersand(self, text: str, at: int) -> int:
        match = ENTITY.match(text, at, partial=True)
        if match is None or (match.partial and self._final):
            return self._emit("&", at)
        if match.partial:
            return UNDECIDED
        if match[0][1] != "#" and match[0][1:] not in html5:
            return self._emit("&", at)
        for char in html.unescape(match[0]):
            if char.isspace():
                self._blank = True
            else:
                self._emit_run(char, at)
        return int(match.end())

    def _backslash(self, text: str, at: int) -> int:
        following = text[at + 1 : at + 2]
        if not following and not self._final:
            return UNDECIDED
        if following in _ESCAPED:
            self._emit(following, at)
            return at + 2
        return self._emit("\\", at)

    def _may_open_emoticon(self, first: str) -> bool:
        if self._row:
            return False
        if first == "=" and self._last == "!" and not self._blank:
            return False  # `!=`
        begins = self._after_blank() or self._removed or self._open != ""
        return begins or (not first.isalpha() and self._last in ".!?,…")

    def _closes_bracket(self, closing: str) -> bool:
        """Whether a bracket was opened in the word that is being said, and not closed: `(?:)`."""
        if self._blank or self._removed:
            return False
        word = self._word()
        return word.count("(" if closing == ")" else "[") > word.count(closing)

    def _emoticon(self, text: str, at: int) -> int:
        """Where the emoticon at `at` ends, `at` when there is none."""
        for emoticon in EMOTICONS_BY_FIRST[text[at]]:
            end = at + len(emoticon)
            if not text.startswith(emoticon, at):
                if not self._final and end > len(text) and emoticon.startswith(text[at:]):
                    return UNDECIDED
                continue
            if len(text) < end + 2 and not self._final and text[end:] in ("", ".", ","):
                return UNDECIDED
            following, beyond = text[end : end + 1], text[end + 1 : end + 2]
            if emoticon[-1] in ")]" and following != emoticon[-1] and self._closes_bracket(emoticon[-1]):
                continue
            if emoticon == "(:" and beyond == ")":  # `(:*)` holds another one
                continue
            stands_alone = not following or following.isspace() or following in DROPPED or following in "!?…\"'*"
            if self._open and following == BRACKETS[self._open[-1]]:
                stands_alone = True
            if stands_alone or (following in ".," and not beyond.isalnum()):
                if not self._removed and reads_as_content(emoticon, self._said(), following):
                    return self._emit(emoticon, at)
                return self._drop(end)
        return at


_HANDLERS: dict[str, Callable[[Sanitizer, str, int], int]] = {
    **dict.fromkeys(BRACKETS, Sanitizer._opening),
    "*": Sanitizer._asterisks,
    "_": Sanitizer._underscores,
    "~": Sanitizer._tildes,
    "-": Sanitizer._line_signs,
    "+": Sanitizer._line_signs,
    "•": Sanitizer._line_signs,
    "=": Sanitizer._line_signs,
    "#": Sanitizer._hashes,
    ">": Sanitizer._greater,
    "|": Sanitizer._bar,
    ":": Sanitizer._colon,
    "[": Sanitizer._bracket,
    "]": Sanitizer._closing_bracket,
    "!": Sanitizer._bang,
    "<": Sanitizer._less,
    "&": Sanitizer._ampersand,
    "\\": Sanitizer._backslash,
}
