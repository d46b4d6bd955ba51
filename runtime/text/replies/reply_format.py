"""How a model's replies begin, go on and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from runtime.text.replies.channels import ChannelFilter
from runtime.text.replies.marks import DEFAULT_MARKS, Marks


def _no_tokens(text: str) -> list[int]:
    return []


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How a model's replies begin, go on and end; found out by rendering (`template`).

    Attributes:
        marks: of everything that is not speech.
        begun: what a prompt ends with, after the user's words; a prompt that ends otherwise says so (`behind`).
        thinks: replies begin with thought, in some conversations at least, and nothing in the template turns that off.
        thought_ends: what ends thought, up to the first spoken word.
        stop_token_ids: the control tokens that end a turn.
        shows_special_tokens: marks are among the special tokens, which the engine must then leave in the text.
        encode: text to token ids, control tokens among them.
    """

    marks: Marks = DEFAULT_MARKS
    begun: str = ""
    thinks: bool = False
    thought_ends: str = "\n</think>\n\n"
    stop_token_ids: tuple[int, ...] = ()
    shows_special_tokens: bool = False
    encode: Callable[[str], list[int]] = field(default=_no_tokens, repr=False)

    def filter(self) -> ChannelFilter:
        """Make the filter of one reply."""
        return ChannelFilter(self.marks, self.begun)

    def behind(self, begun: str | None) -> ReplyFormat:
        """The format of a reply to a prompt that ends so; none where it ends as all do."""
        return self if begun is None or begun == self.begun else replace(self, begun=begun)


PLAIN = ReplyFormat()
