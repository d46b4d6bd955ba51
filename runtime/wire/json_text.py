"""JSON as clients write it."""

from __future__ import annotations

import re

import msgspec

# An escape of JSON, a pair of surrogates as one. Alone, half of a pair is no character.
_ESCAPE = re.compile(
    r"\\(?:u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|([dD][89a-fA-F]))[0-9a-fA-F]{2}|.)", re.DOTALL
)
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
        whole = _ESCAPE.sub(lambda found: r"\ufffd" if found[1] else found[0], text)
        if whole == text:
            raise
        return _decode(whole)
