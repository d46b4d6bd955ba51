"""Emoticons, and what looks like one: a comparison, the second half of a name."""

from __future__ import annotations

import re

from runtime.text.sanitizer.markup import BRACKETS, DROPPED
from runtime.text.sanitizer.names import ABBREVIATION, words
from runtime.text.sanitizer.reading import UNDECIDED, Reading

_FACES = [f"{eye}{nose}{mouth}" for eye in ":;" for nose in ("", "-", "'") for mouth in ")(DPp/|]["]
EMOTICONS = frozenset(_FACES).union(
    *[(":O", ":o", ":3", ":*", ":-*", ":S", ":$", ">:(", ">:)", "=)", "=(", "=D", "(:", "<3", "</3", "XD", "xD")],
    *[("^^", "^_^", "(^_^)", "-_-", ">_<", ">.<", "T_T", "o_O", "O_o", "O_O", "o_o", "¯\\_(ツ)_/¯")],
)
EMOTICONS_BY_FIRST = {
    first: sorted((e for e in EMOTICONS if e[0] == first), key=len, reverse=True) for first in {e[0] for e in EMOTICONS}
}

# What an emoticon may be instead: the second half of a name, or a comparison.
_NUMBER = re.compile(r"[^\w\s]*\d[\d.,:/]*[^\w\s]?|\w*\d\w*[)\]%°]?")
_VARIABLE = re.compile(r"[^\w\s]?[A-HJ-TV-Za-tv-z][)\]'′]?|\w+[)\]]|\w*_\w*")
_CONDITION = re.compile(r"\b(?:if|while|when|where|unless|until|whenever|whether|assert)\b", re.IGNORECASE)
_COMPARES = words("is are was were be been being isn't aren't not than value count size length only if when while that")
_LAUGHS = words(
    """
    ah awesome aw bruh cool damn fair fine funny god good great ha haha hahaha hehe hello hey hi him i it lmao lol man
    me mood my nice no nope oh ok okay omg oof ooh oops right rofl same so sorry sure that thanks this true u ugh uh
    well what wow wtf x yay yeah yep yes you yup
    """
)
_BEFORE_NAMES = words(
    """
    a about all an and any as at before both by called either every for from has in into is learn like new of on open
    or our own than the to try use used uses using via vs was with without your
    """
)


def reads_as_content(emoticon: str, before: str, following: str) -> bool:
    """Whether what looks like an emoticon is a name or a comparison: `Adobe XD`, `if x <3 then`.

    Args:
        emoticon: what was found.
        before: what was said before, on the line and earlier.
        following: the character that follows; empty at the end.
    """
    word = before.rpartition(" ")[2]
    if emoticon == "<3" and ABBREVIATION.fullmatch(word):
        return True
    if not word or word[-1] in ".!?…,;":
        return False
    if emoticon in ("XD", "xD"):
        plain = word.strip("\"'“”‘’()").lower()
        named = word[0].isupper() and plain not in _LAUGHS and emoticon == "XD"
        return named or plain in _BEFORE_NAMES or _NUMBER.fullmatch(word) is not None
    if emoticon in ("<3", ":3", "^^", "=3") and _NUMBER.fullmatch(word):
        return True
    if emoticon != "<3":
        return False
    if following == "?" or word.lower() in _COMPARES or _VARIABLE.fullmatch(word):
        return True
    sentence = re.split(r"[.!?…] ", before)[-1]
    return following not in ("", "!", "\n", "\r") and _CONDITION.search(sentence) is not None


def may_open_emoticon(reading: Reading, first: str) -> bool:
    """Whether an emoticon may stand here: behind a blank, an end of a sentence, or what went."""
    if reading.row:
        return False
    if first == "=" and reading.last == "!" and not reading.blank:
        return False  # `!=`
    begins = reading.after_blank() or reading.removed or reading.open != ""
    return begins or (not first.isalpha() and reading.last in ".!?,…")


def _closes_bracket(reading: Reading, closing: str) -> bool:
    """Whether a bracket was opened in the word that is being said, and not closed: `(?:)`."""
    if reading.blank or reading.removed:
        return False
    word = reading.word()
    return word.count("(" if closing == ")" else "[") > word.count(closing)


def emoticon_end(reading: Reading, text: str, at: int) -> int:
    """Where the emoticon at `at` ends, `at` when there is none."""
    for emoticon in EMOTICONS_BY_FIRST[text[at]]:
        end = at + len(emoticon)
        if not text.startswith(emoticon, at):
            if not reading.final and end > len(text) and emoticon.startswith(text[at:]):
                return UNDECIDED
            continue
        if len(text) < end + 2 and not reading.final and text[end:] in ("", ".", ","):
            return UNDECIDED
        following, beyond = text[end : end + 1], text[end + 1 : end + 2]
        if emoticon[-1] in ")]" and following != emoticon[-1] and _closes_bracket(reading, emoticon[-1]):
            continue
        if emoticon == "(:" and following and not following.isspace():  # `(:*)` holds another one
            if not beyond and not reading.final:
                return UNDECIDED
            if beyond == ")":
                continue
        stands_alone = not following or following.isspace() or following in DROPPED or following in "!?…\"'*"
        if reading.open and following == BRACKETS[reading.open[-1]]:
            stands_alone = True
        if stands_alone or (following in ".," and not beyond.isalnum()):
            if not reading.removed and reads_as_content(emoticon, reading.said(), following):
                return reading.emit(emoticon, at)
            return reading.drop(end)
    return at
