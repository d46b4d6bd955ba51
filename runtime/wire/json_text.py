"""JSON as clients write it."""

from __future__ import annotations

import re

import msgspec

# Half of a pair of surrogates, as an escape: a first half that no second one follows, or a second one without a first.
_HALF = re.compile(
    r"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
# An escaped backslash, and what stands for it meanwhile: no JSON holds that as it is.
_BACKSLASH, _HIDDEN = r"\\", "\0\0"
_decode = msgspec.json.Decoder().decode


def read_json(text: str) -> object:
    """What a text says. Half of a pair of surrogates is read as U+FFFD.

    Raises:
        msgspec.DecodeError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return _decode(text)
    except msgspec.DecodeError:
        # A client that cuts its text between the halves of an emoji sends half of one. One character is lost then,
        # and not the message.
        whole = _repaired(text)
        if whole is None:
            raise
        return _decode(whole)


def _repaired(text: str) -> str | None:
    r"""A text with U+FFFD for each half of a pair; none where there is none.

    Nothing here runs Python for each escape: a text may be nothing else, and this is done in the loop that serves all.

    >>> _repaired(r'"\\ud83d \ud83d\ude00 \ude00"')
    '"\\\\ud83d \\ud83d\\ude00 �"'
    """
    if (r"\ud" not in text and r"\uD" not in text) or "\0" in text:
        return None
    # Without these every backslash that is left begins an escape.
    whole, halves = _HALF.subn("\ufffd", text.replace(_BACKSLASH, _HIDDEN))
    return whole.replace(_HIDDEN, _BACKSLASH) if halves else None
