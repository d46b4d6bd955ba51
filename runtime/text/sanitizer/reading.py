"""A reply as it is read: what has arrived and is not decided, and what the marks before it have opened.

What a mark means is decided by a function of this room, one a mark: `mark(reading, text, at)` looks at `text[at]` and
returns where to go on, or UNDECIDED when more must arrive.
"""

from __future__ import annotations

import re

from runtime.text.sanitizer.output import Output

# Longest blank that is looked over, for what stands behind it.
BLANK_LIMIT = 40
# As many of one mark in a row draw something; which of its meanings they have is not waited for.
RUN_LIMIT = 80
# Longest piece without a space that is waited for, to see whether it is a word or a name.
CHUNK_LIMIT = 64

UNDECIDED = -1
LONG = -2

SPACE = re.compile(r"\s+")
NEWLINE = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# What follows a digit on a keycap.
KEYCAP = frozenset("\ufe0f\u20e3")
_ENDS_SENTENCE = frozenset(".!?…:\"'”’)。！？｡：؟۔।॥።᙮»」』）】")


class Reading(Output):
    """One reply, from left to right.

    Attributes:
        held: arrived, not decided.
        final: nothing more will arrive.
        row: in a table's row.
        code: how many backticks opened the code we are in; 0 outside of code.
        links: where the texts of the links we are in end, where they do, and whether their address goes on there.
        in_link_address: in an address that is too long to wait for its end.
        skipped: the mark of a long run that may go on.
        underlined: underscores were opened.
        starred: an asterisk was opened.
    """

    __slots__ = ("code", "final", "held", "in_link_address", "links", "row", "skipped", "starred", "underlined")

    def __init__(self) -> None:
        super().__init__()
        self.held = ""
        self.final = False
        self.row = False
        self.code = 0
        self.links: list[tuple[int, int, bool]] = []
        self.in_link_address = False
        self.skipped = ""
        self.underlined = False
        self.starred = False

    def chunk(self, text: str, at: int) -> str | None:
        """What stands at `at` up to the next space, or the beginning of it; None when it may go on."""
        space = SPACE.search(text, at, at + CHUNK_LIMIT)
        if space is None and len(text) - at < CHUNK_LIMIT and not self.final:
            return None
        return text[at : space.start() if space else at + CHUNK_LIMIT]

    def run_end(self, text: str, at: int) -> int:
        """Where a run of one character ends, UNDECIDED when it may go on, or LONG."""
        end, limit = at + 1, min(len(text), at + RUN_LIMIT)
        while end < limit and text[end] == text[at]:
            end += 1
        if end - at == RUN_LIMIT:
            return LONG
        return end if end < len(text) or self.final else UNDECIDED

    def no_end(self, end: int, text: str, at: int) -> int:
        """Handle a run that has no end: wait for it, or let it go when it is long."""
        if end == UNDECIDED:
            return UNDECIDED
        self.skipped = text[at]
        return self.drop(at + RUN_LIMIT)

    def sentence_may_begin(self) -> bool:
        """Whether what comes next may be the first word of a sentence."""
        return self.line_start or not self.last or self.last in _ENDS_SENTENCE
