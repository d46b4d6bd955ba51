"""Asterisks, underscores and tildes: emphasis that goes, stage directions that go with what they say, and sums."""

from __future__ import annotations

import re

from runtime.text.sanitizer.lines import line_mark
from runtime.text.sanitizer.markup import BRACKETS, DROPPED, reads_as_direction
from runtime.text.sanitizer.names import is_unspaced, underlined_name
from runtime.text.sanitizer.reading import BLANK_LIMIT, KEYCAP, NEWLINE, UNDECIDED, Reading

# Longest stage direction that is waited for, in characters.
STAGE_LIMIT = 200

_STAGE_EDGE = re.compile(r"\*+|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_STAGE_BEGINS = DROPPED | set("\"'“‘(…¿¡«「（")
_PART_OF_ADDRESS = frozenset("/=&?#%@")
# Behind a mark that stands alone, and is meant: `press *, then #`.
_BEHIND_LONE = frozenset(".,;:?!)]")


def asterisks(reading: Reading, text: str, at: int) -> int:
    """A bullet, a drawn line, a stage direction, emphasis, a power or a product."""
    end = reading.run_end(text, at)
    if end < 0:
        return reading.no_end(end, text, at)
    following = text[end : end + 1]
    if reading.line_start and (after := line_mark(reading, text, at, end)) != at:
        return after
    if following in KEYCAP:
        return reading.drop(end)
    if (following.isalnum() or following in _PART_OF_ADDRESS) and following and reading.in_address():
        return reading.emit(text[at:end], at)
    single = end - at == 1
    if single and not reading.after_word() and (following.isalnum() or following in _STAGE_BEGINS):
        after = _stage_direction(reading, text, at)
        if after != at:
            return after
    if not reading.after_word():
        reading.starred = single and not following.isspace()
    elif single and not following.isalnum():
        # What was not opened closes nothing: a hotel has 5*.
        if reading.last.isdigit() and not reading.starred:
            return reading.emit("*", at)
        reading.starred = False
    sums = single or following.isdigit() or reading.last.isdigit()
    if (
        not sums
        and end - at == 2
        and reading.after_word()
        and following.isalnum()
        and not reading.word()[-2:-1].isalnum()
    ):
        # `a**b` is a power, and `a**bold**` is none.
        beyond = text[end + 1 : end + 2]
        if not beyond and not reading.final:
            return UNDECIDED
        sums = not beyond.isalnum()
    return _mark(reading, text, at, end, stays_in_words=sums)


def _stage_direction(reading: Reading, text: str, at: int) -> int:
    start, limit = at + 1, at + 1 + STAGE_LIMIT
    while edge := _STAGE_EDGE.search(text, start, limit + 1):
        if edge[0][0] != "*":
            return at
        if edge.end() == len(text) and not reading.final:
            return UNDECIDED
        inside, outside = text[edge.start() - 1], text[edge.end() : edge.end() + 1]
        closes = not inside.isspace() and (not outside.isalnum() or is_unspaced(outside))
        if closes and len(edge[0]) != 2:
            return _direction_or_emphasis(reading, text, at, edge.start(), edge.end())
        start = edge.end()
    if len(text) > limit:
        return at
    if not reading.final:
        return UNDECIDED
    # The reply ended inside: a stage direction where a sentence may begin, a stray mark elsewhere.
    return reading.drop(len(text)) if reading.sentence_may_begin() else at


def _direction_or_emphasis(reading: Reading, text: str, at: int, closed: int, end: int) -> int:
    first_words = text[at + 1 : closed].split()[:2]
    begins = reading.sentence_may_begin()
    if any(reads_as_direction(word.strip(".,!?…"), sentence_begins=begins) for word in first_words):
        return reading.drop(end)
    caseless = text[closed - 1].isalpha() and not text[closed - 1].isupper() and not text[closed - 1].islower()
    if reading.open and not reading.blank and caseless and text[end : end + 1] == BRACKETS[reading.open[-1]]:
        return reading.drop(end)  # it is all that stands in the brackets
    if not begins:
        return at
    following = end
    while following < len(text) and following - end < BLANK_LIMIT:
        if text[following] not in " \t" and text[following] not in DROPPED:
            break
        following += 1
    if following == len(text) and not reading.final:
        return UNDECIDED
    next_char = text[following : following + 1]
    # Scripts without capitals do not tell where a sentence begins.
    capital = next_char.isupper() or (next_char.isalpha() and not next_char.islower() and following > end)
    on_its_own = (
        not next_char or capital or is_unspaced(next_char) or next_char in '"“«「¿¡*' or NEWLINE.match(next_char)
    )
    return reading.drop(end) if on_its_own else at


def underscores(reading: Reading, text: str, at: int) -> int:
    """Emphasis, a drawn line, or part of a name or of an address."""
    end = reading.run_end(text, at)
    if end < 0:
        return reading.no_end(end, text, at)
    if reading.line_start and end - at > 2 and (after := line_mark(reading, text, at, end)) != at:
        return after
    if not reading.after_word():
        chunk = reading.chunk(text, at)
        if chunk is None:
            return UNDECIDED
        if name := underlined_name(chunk):
            reading.begun = True
            return reading.emit_run(name, at)
    following = text[end : end + 1]
    closes = reading.underlined and not following.isalnum() and following not in _PART_OF_ADDRESS
    if not closes and not reading.after_blank() and _is_part_of_address(reading, following):
        return reading.emit(text[at:end], at)
    if not reading.after_word():
        reading.underlined = following.isalnum()
    elif closes:
        reading.underlined = False
    return _mark(reading, text, at, end, stays_in_words=True)


def _is_part_of_address(reading: Reading, following: str) -> bool:
    touches = reading.last in _PART_OF_ADDRESS or (following != "" and following in _PART_OF_ADDRESS)
    return touches or reading.in_path()


def tildes(reading: Reading, text: str, at: int) -> int:
    """Two of them strike out; any other number is content."""
    end = reading.run_end(text, at)
    if end < 0:
        return reading.no_end(end, text, at)
    if end - at != 2 or (text[end : end + 1].isalnum() and reading.in_address()):
        return reading.emit(text[at:end], at)
    return _mark(reading, text, at, end, stays_in_words=False)


def _mark(reading: Reading, text: str, at: int, end: int, *, stays_in_words: bool) -> int:
    """Emphasis: a mark between spaces is text, one in a word may be, any other goes."""
    following = text[end : end + 1]
    in_word = reading.after_word() and following.isalnum()
    alone = reading.after_blank() and following.isspace()
    if end - at == 1 and following and following in _BEHIND_LONE and (reading.after_blank() or reading.open):
        beyond = text[end + 1 : end + 2]
        if not beyond and not reading.final:
            return UNDECIDED
        alone = not beyond or beyond.isspace() or (following in ")]" and beyond in _BEHIND_LONE)
        reading.starred = reading.starred and not alone
    if alone or (in_word and stays_in_words):
        return reading.emit(text[at:end], at)
    if reading.open and not reading.blank and following == BRACKETS[reading.open[-1]]:
        reading.removed = True  # it was all that stood in the brackets
    reading.line_start = False
    return end
