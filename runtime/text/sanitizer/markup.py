"""What the sanitizer knows about written markup: the rules with an example each, and the tables behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import emoji
import regex


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table in docs/protocol.md: what goes, and an example before and after."""

    name: str
    description: str
    before: str
    after: str


RULES = (
    Rule("space", "newlines, tabs and runs of spaces become one space; none at either end", " One\n\n two ", "One two"),
    Rule(
        "capital",
        "the first letter is a capital where it begins a word: not in code, paths, addresses, names like `iPhone`, nor "
        "behind a digit",
        '"hello there"',
        '"Hello there"',
    ),
    Rule("punctuation", "no space before `, ? !`; `!=` and `!x` keep theirs", "Well , is a != b ?", "Well, is a != b?"),
    Rule("bold", "runs of asterisks, underscores or `~~` that touch a word on one side", "**Yes**, ~~no~~", "Yes, no"),
    Rule(
        "italic", "a single underscore at a word's edge; one inside a word stays", "_Try_ my_file.py", "Try my_file.py"
    ),
    Rule(
        "stage direction",
        "words between single asterisks on one line, at most 200 characters, that stand between sentences or begin "
        "with an English verb in -s (where a sentence begins also in -ing); also one that the reply's end cuts off",
        "Hi *smirks* you! *a long look* Well?",
        "Hi you! Well?",
    ),
    Rule("emphasis", "other words between single asterisks stay", "I *don't* know, *really*", "I don't know, really"),
    Rule(
        "arithmetic",
        "asterisks between words or between spaces stay, and one alone before punctuation or behind a number",
        "It is 2*3 or 2 * 3; press *, get 5*",
        "It is 2*3 or 2 * 3; press *, get 5*",
    ),
    Rule("heading", "one to six `#` at the start of a line", "# Plan\nGo", "Plan Go"),
    Rule("list", "`-`, `*`, `+` or `•` and a space at the start of a line", "Buy:\n- tea\n- milk", "Buy: tea milk"),
    Rule("quote", "`>` and a space at the start of a line", "> So be it", "So be it"),
    Rule("line", "a line of three or more `-`, `*`, `_` or `=`", "One\n---\nTwo", "One Two"),
    Rule("table", "bars and delimiter rows of a line that starts with a bar", "|A|B|\n|---|---|\n|1|2|", "A B 1 2"),
    Rule(
        "code", "backticks and a fence's language; what stands between them stays as written", "Use `a_*b`", "Use a_*b"
    ),
    Rule(
        "link",
        "the address of a link or image, with its title, or the name of its reference; its text stays",
        """See [the docs](https://e.com/a 'Docs') and [more][1]""",
        "See the docs and more",
    ),
    Rule(
        "reference",
        "a line that gives the address of a reference",
        "Read it.\n[1]: https://e.com/a\nBye.",
        "Read it. Bye.",
    ),
    Rule("escape", "the backslash before a mark; the mark stays", r"A \*b\*", "A *b*"),
    Rule("tag", "HTML tags and comments; a tag that breaks the line becomes a space", "<p>One<br>two</p>", "One two"),
    Rule("entity", "HTML entities become the characters they stand for", "Tea &amp; milk", "Tea & milk"),
    Rule("comparison", "`<` and `>` that make no tag stay", "If a < b and c > d", "If a < b and c > d"),
    Rule("emoji", "emoji with their modifiers; digits of keycaps stay, and © ® ™", "Fine 👍🏽!", "Fine!"),
    Rule(
        "emoticon",
        "emoticons that stand alone, unless what precedes them makes them words or sums",
        "Good :-) you <3 If x <3, use Adobe XD",
        "Good you If x <3, use Adobe XD",
    ),
    Rule("hollow", "brackets and quotes that nothing is left in", "Well (😀) then, f() [*smiles*]", "Well then, f()"),
    Rule(
        "invisible",
        "control characters, zero-width spaces, soft hyphens and marks of direction",
        "in\u200bvis\u00adible",
        "Invisible",
    ),
    Rule("long run", "eighty or more of one mark where it could mean something", "a " + "*" * 90 + " b", "A b"),
    Rule(
        "content",
        "numbers, addresses, abbreviations and paths come out as they went in",
        "Is 3.5 at example.com, U.S., a/name, -5, 50% or it's 10:30?",
        "Is 3.5 at example.com, U.S., a/name, -5, 50% or it's 10:30?",
    ),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


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
_ABBREVIATION = re.compile(r"\W*(?:[^\W\d_]\.){2,}(?!\w)")
_CONDITION = re.compile(r"\b(?:if|while|when|where|unless|until|whenever|whether|assert)\b", re.IGNORECASE)
_COMPARES = _words(
    "is are was were be been being isn't aren't not than value count size length only if when while that"
)
_LAUGHS = _words(
    """
    ah awesome aw bruh cool damn fair fine funny god good great ha haha hahaha hehe hello hey hi him i it lmao lol man
    me mood my nice no nope oh ok okay omg oof ooh oops right rofl same so sorry sure that thanks this true u ugh uh
    well what wow wtf x yay yeah yep yes you yup
    """
)
_BEFORE_NAMES = _words(
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
    if emoticon == "<3" and _ABBREVIATION.fullmatch(word):
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


_DOMAIN = re.compile(r"\w\.\w{2,}[/:]")


def is_address(word: str) -> bool:
    """Whether a word, as far as it has come, is an address on the web or of mail: its marks belong to it."""
    return "://" in word or "@" in word or word.lower().startswith("www.") or _DOMAIN.search(word) is not None


# Behind these no word begins: `~/x`, `$x`, `--flag`, `@name`.
NO_WORD_FOLLOWS = frozenset("/\\~$@#-_.=&+%|^")
# Letters that stand for a quantity, where they stand alone; Greek has words of one letter too.
_QUANTITIES = frozenset("αβγδεζθικλμνξπρστυφχψ")
# Behind one letter and a space these make a sum or a comparison of it.
_OPERATOR = re.compile(r"[<>=+*/%^|&≤≥≠×÷·](?:[\s=\d]|\Z)")
# Letters, then what shows that they are no word: an address, a path, a call, an index, a power, a name of code.
_CODE = re.compile(
    r"µ|μ[a-zA-Z]|[^\W\d_]*(?:[²³¹⁰-₎]|:\d|[\w.+-]*@|[A-Z\\@=]|_+[^\W_]|:[:\\]|://|\.[a-z\d]|\[[^\s\]]|\((?!e?s\)|\s)|/(?![^\W\d_]+[.,;:!?…)]*\Z))|\w+:\w+@"
)


def begins_as_word(before: str, chunk: str, following: str = "") -> bool:
    """Whether what stands between spaces is a word, whose first letter a sentence writes large.

    Args:
        before: what was said of it.
        chunk: the rest, from its first letter on.
        following: the first two characters of what stands behind the space.

    >>> [begins_as_word("", chunk) for chunk in ("and/or", "e.g.", "well-known,", "example.com", "i[0](x)", "iPhone")]
    [True, True, True, False, False, False]
    """
    if not NO_WORD_FOLLOWS.isdisjoint(before):
        return False
    if len(chunk) == 1 and (chunk in _QUANTITIES or _OPERATOR.match(following)):
        return False
    return _ABBREVIATION.match(chunk) is not None or _CODE.match(chunk) is None


_FILES = "c|cc|cpp|css|go|h|hpp|html?|java|js|json|jsx|md|pyi?|rb|rs|scss|sh|toml|tsx?|txt|vue|ya?ml"
_DUNDERS = (
    "all|annotations|bool|builtins|call|class|contains|debug|del|delitem|dict|doc|enter|eq|exit|file|future|getattr"
    "|getitem|hash|init|iter|len|main|name|new|next|path|post_init|pycache|qualname|repr|setattr|setitem|slots|str"
    "|version"
)
_UNDERLINED_NAME = re.compile(
    rf"_+(?:(?<=__)(?:{_DUNDERS})__(?![\w])|\w+\.(?:{_FILES})(?!\w)|__\w+__\.\w+|[\w.+-]*@\w[\w.-]*(?<!_)(?![\w.-]))"
)


def underlined_name(chunk: str) -> str:
    """The file or address that begins a chunk with underscores of its own: `__init__.py`, `_me@example.com`."""
    found = _UNDERLINED_NAME.match(chunk)
    return found[0] if found else ""


_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def is_unspaced(char: str) -> bool:
    """Whether a letter is of a script that sets no spaces between words."""
    return _UNSPACED.match(char) is not None


_ADDRESS_BEGINS = re.compile(r"<|[a-z][a-z0-9+.-]*:|#[a-z]|\.{0,2}/|(?:[\w-]+\.)+[a-z]{2,}(?:[/:?#]|\Z)", re.IGNORECASE)


def reads_as_reference(address: str) -> bool:
    """Whether what follows `[name]:` on its line is the address of a reference, and not a word: `[Bob]: yes`."""
    return _ADDRESS_BEGINS.match(address) is not None


# Common words in -s and -ing that are emphasized more often than played.
_NO_VERBS = _words(
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


BLOCK_TAGS = _words(
    """
    address article aside blockquote br dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6
    header hr li main nav ol option p pre section select table tbody td tfoot th thead tr ul
    """
)
INLINE_TAGS = _words(
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
