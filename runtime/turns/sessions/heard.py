"""What was heard of a reply: a listener who interrupts has not got all that was sent."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.wire.frames import RequestId
from runtime.wire.messages import Heard, Rejected


@dataclass(frozen=True, slots=True)
class LastReply:
    """The reply of a session's last turn, until the next one begins.

    Attributes:
        request_id: the turn's.
        said: what was sent of it.
        kept: whether the history has the turn.
    """

    request_id: RequestId | None
    said: str
    kept: bool


def heard_chars(message: Heard, said: str) -> int:
    """How many characters of a reply were heard.

    Spaces at the ends of `text` do not matter: who speaks a reply word by word may have lost or added them.

    Raises:
        Rejected: the reply does not begin with that, or is not as long.
    """
    text, chars = message.text, message.chars
    if text is not None:
        spoken = text.strip()
        skipped = len(said) - len(said.lstrip())
        if not spoken:
            return 0
        if said.startswith(text):
            return len(text)
        if said.startswith(spoken, skipped):
            return skipped + len(spoken)
        raise _refused(message, "invalid_text", "text", "the beginning of what was sent of the reply", "another text")
    if chars is None:
        return len(said)
    if chars > len(said):
        expected = f"a whole number from 0 to {len(said)} (what was sent of the reply)"
        raise _refused(message, "chars_out_of_range", "chars", expected, str(chars))
    return chars


def _refused(message: Heard, code: str, field: str, expected: str, found: str) -> Rejected:
    text = f"{field}: expected {expected}, found {found}"
    rejected = Rejected(code, text, field=field, expected=expected, found=found)
    rejected.request_id = message.request_id
    return rejected
