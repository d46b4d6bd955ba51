"""Emoticons, and what looks like one: a comparison, the second half of a name."""

from __future__ import annotations

import re

from runtime.text.sanitizer.names import ABBREVIATION, words

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
