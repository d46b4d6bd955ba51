"""What is no ordinary word: addresses, paths, abbreviations, names of code."""

from __future__ import annotations

import re


def words(text: str) -> frozenset[str]:
    """Words that stand in a text."""
    return frozenset(text.split())


ABBREVIATION = re.compile(r"\W*(?:[^\W\d_]\.){2,}(?!\w)")
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
    return ABBREVIATION.match(chunk) is not None or _CODE.match(chunk) is None


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
