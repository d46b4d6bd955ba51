"""What is written as markup: stage directions, characters that never come out, brackets, tags, links."""

from __future__ import annotations

import emoji
import regex

from runtime.text.sanitizer.names import words

# Common words in -s and -ing that are emphasized more often than played.
_NO_VERBS = words(
    """
    across always amazing anything as besides boring bus darling does during evening everything exciting has
    he's hers his interesting is it's its king less let's loads lots missing morning nothing nowadays ours
    perhaps plus she's something sometimes stunning that's theirs thing this thus towards unless us was wedding
    what's who's yes yours
    """
)


def reads_as_direction(word: str, *, sentence_begins: bool) -> bool:
    """Whether a lower-case word looks like what an actor does: `smirks`, or `smiling` where a sentence begins."""
    if word in _NO_VERBS or not word.isalpha() or len(word) < 4 or word != word.lower():
        return False
    return (word.endswith("s") and not word.endswith("ss")) or (sentence_begins and word.endswith("ing"))


# Letters and signs that Unicode counts among the emoji but that are ordinary text: © ® ‼ ⁉ ™ ℹ.
_TEXT = frozenset("©®‼⁉™ℹ")
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_INVISIBLE = (
    "\u00ad\u200b\u2060\ufeff"
    + _DIRECTIONS
    + "".join(chr(code) for code in range(32) if not chr(code).isspace())
    + "\x7f"
)
DROPPED = (
    frozenset(
        {char for sequence in emoji.EMOJI_DATA for char in sequence if char > "\u007f"}
        | {chr(code) for code in range(0x1F1E6, 0x1F200)}  # regional indicators: flags
        | {chr(code) for code in range(0xE0020, 0xE0080)}  # tags: flags of regions
        | {"\ufe0e", "\ufe0f", "\u20e3", *_INVISIBLE}
    )
    - _TEXT
    - {"\u200d"}
)
"""Characters that never come out. The zero-width joiner is not among them: scripts need it, emoji sequences too."""

BRACKETS = {"(": ")", "[": "]", "“": "”", "«": "»", "（": "）", "「": "」", "『": "』", "【": "】"}
"""Opening ones with their closing ones; they go when nothing is left inside. ASCII quotes tell neither."""


def class_of(chars: frozenset[str]) -> str:
    """Characters for a class of a pattern, as ranges: a class of a thousand single ones is slow to match."""
    codes = sorted(map(ord, chars))
    starts = [code for code in codes if code - 1 not in codes]
    ends = [code for code in codes if code + 1 not in codes]
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))


BLOCK_TAGS = words(
    """
    address article aside blockquote br dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6
    header hr li main nav ol option p pre section select table tbody td tfoot th thead tr ul
    """
)
INLINE_TAGS = words(
    """
    a abbr audio b bdi bdo big body button canvas center cite code del details dfn em embed font head html i
    iframe img input ins kbd label link mark meta object output q s samp script small source span strike strong
    style sub summary sup svg textarea time title tt u var video wbr
    """
)
# A tag of HTML may carry attributes with values; any other bare name in brackets counts too (`<think>`), if no word
# touches it on the left (`List<Item>`). So `x<y and y>z` is no tag. A partial match says that more text could decide.
_KNOWN = "|".join(sorted(BLOCK_TAGS | INLINE_TAGS, key=len, reverse=True))
_VALUE = r"""(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=`]+)"""
_ATTRIBUTE = rf"\s+[\w:.-]+\s*=\s*{_VALUE}|\s+(?:checked|controls|disabled|hidden|required)"
TAG = regex.compile(
    rf"<(?:!--.*?-->|!doctype\b[^<>]*>|/?(?P<known>{_KNOWN})(?:{_ATTRIBUTE})*\s*/?>"
    r"|/?(?P<other>[a-z][a-z_-]+)\s*/?>|(?P<address>https?://[^\s<>]+)>)",
    regex.IGNORECASE | regex.DOTALL,
)
ENTITY = regex.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,31}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
# A cell of the row under a table's head, with the edge before it.
DELIMITER = regex.compile(r"\|[ \t]*:?-+:?[ \t]*(?=[|\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|\Z)")
_TITLE = r"""(?:"[^"\n]*"|'[^'\n]*'|\([^()\n]*\))"""
_ADDRESS = r"(?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)"
_LINK_TEXT = r"!?\[(?P<text>(?:[^\[\]\n]|\[[^\[\]\n]*\])*+)\]"
# A link whose address has not ended where the text does so far.
UNENDED_LINK = regex.compile(rf"{_LINK_TEXT}\((?P<address>[^\s)]+)\Z")
LINK = regex.compile(
    rf"{_LINK_TEXT}"
    rf"(?:\(\s*{_ADDRESS}(?:\s+{_TITLE})?\s*\)|\[(?P<reference>[^\[\]\n]*)\])"
)
# A line that gives an address to a reference. It ends where the line does, or where the text ends so far.
REFERENCE = regex.compile(
    rf"\[[^\[\]\n]+\]:[ \t]*(?P<address><[^<>\n]*>|[^\s<]\S*)(?:[ \t]+{_TITLE})?[ \t]*(?=[\n\r]|\Z)"
)
