"""The rules of the sanitizer, with an example each: the table of the protocol's page."""

from __future__ import annotations

from dataclasses import dataclass


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
