"""Fields that are private by their name, and their values in texts: headers, JSON, Python's repr, calls."""

from __future__ import annotations

import re
from itertools import pairwise

HIDDEN = "[hidden]"
# A name with one of these words in it carries a secret, unless its value is a number.
SECRET_WORDS = frozenset(
    {
        "authorization", "password", "passwords", "secret", "secrets", "credential", "credentials", "cookie", "cookies",
        "cookie2", "apikey", "apikeys", "token", "bearer", "passwd", "passphrase", "signature",
    }
)  # fmt: skip
# And with one of these what users said.
PRIVATE_WORDS = SECRET_WORDS | {
    "prompt", "prompts", "persona", "personas", "history", "histories", "utterance", "utterances", "transcript",
    "transcripts", "transcription", "text", "texts", "said", "heard", "spoken", "speech", "reply", "replies",
    "answer", "answers", "content", "contents", "messages", "conversation", "conversations", "dialog", "dialogue",
    "analysis", "analyses", "query", "queries", "question", "questions", "completion", "completions", "delta",
    "deltas",
}  # fmt: skip
# A key of these kinds is a secret, one of a dictionary is none.
KEY_KINDS = frozenset(
    {
        "api", "access", "secret", "private", "signing", "auth", "session", "encryption", "subscription", "functions",
        "account", "master",
    }
)  # fmt: skip
# These are private whatever their value.
PRIVATE_FIELDS = frozenset(
    {
        "api_key", "api_keys", "x-api-key", "authorization", "text_api_key", "text_api_keys", "persona", "persona_text",
        "chat_prompt", "prompt", "history", "history_text", "utterance", "user_utterance", "analysis_text",
        "runtime_text", "text", "said", "content", "messages", "query", "completion",
    }
)  # fmt: skip
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

# What may be a header, as it stands on the wire, in JSON, in Python, in a pair or in a command.
_HEADER = re.compile(r"(?<![\w-])([\w-]{1,80})(?:(\\*[\"'])\s{0,8}[:=,]|\s{0,8}([:=]))\s{0,8}(?=[^\s])")
_HEADER_ENDS = ("authorization", "cookie", "cookie2", "api-key")
_SECRET_ENDS = (*_HEADER_ENDS, "api_key", "apikey", "password", "passphrase")
_QUOTED = re.compile(r"[\w.]{0,64}(?=\\*[\"']|[\[({])")
# A header goes on where the next line begins with a space.
_LINES_END = re.compile(r"[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*")
# Behind a quoted value: what shows that it was the first part of a header.
_GOES_ON = re.compile(r"\s{0,8};|[^\s,)\]}\"'\\]")
# A name and the beginning of a value that is quoted or bracketed, as JSON, Python and calls write it.
_FIELD = re.compile(r"(?<![\w-])([\w-]+)\\*[\"']?\s{0,8}[:=]\s{0,8}[\w.]{0,64}(?=\\*[\"']|[\[({])")
_STRUCTURE = re.compile(r"(\\*)([\"'])|[\[({]|[\])}]")


def is_private(name: str) -> bool:
    """Whether a field's name says that it carries what users said, or a secret.

    >>> [is_private(name) for name in ("userPrompt", "x-persona", "prompt_tokens", "monkey", "context")]
    [True, True, True, False, False]
    """
    return _has_word(name, PRIVATE_WORDS)


def _has_word(name: str, words: frozenset[str]) -> bool:
    found = [word.lower() for word in _WORD.findall(name)]
    keys = (kind in KEY_KINDS and word in ("key", "keys") for kind, word in pairwise(found))
    return not words.isdisjoint(found) or any(keys)


def hide_headers(text: str) -> str:
    """A text without the values of the headers in it that carry secrets, however many parts these have.

    >>> hide_headers('Cookie: "a=b"; c=d\\nHost: h')
    'Cookie: [hidden]\\nHost: h'
    """
    kept, at = [], 0
    while found := _HEADER.search(text, at):
        kept.append(text[at : found.end()])
        at = found.end()
        if end := _header_end(text, at, found[1], found[3] or ""):
            kept.append(HIDDEN)
            at = end
    return "".join(kept) + text[at:]


def _header_end(text: str, at: int, name: str, bare: str) -> int:
    """Where the value of a header ends that begins here; 0 when it is none that is hidden.

    Args:
        bare: what stands behind the name, where this is not quoted.
    """
    quoted = _QUOTED.match(text, at)
    parameter = bare == "=" and quoted is None
    ends = name.lower().endswith(_HEADER_ENDS if parameter else _SECRET_ENDS)
    # One word alone may be any text's: `unexpected token: <`.
    several = not parameter and ("-" in name or "_" in name)
    if not ends and not (several and _has_word(name, SECRET_WORDS)):
        return 0
    value_end = _value_end(text, quoted.end()) if quoted else at
    if quoted and bare != ":" and not _GOES_ON.match(text, value_end):
        return value_end
    found = _LINES_END.match(text, value_end)
    return found.end() if found else len(text)


def hide_private_fields(text: str) -> str:
    """A text without the values of private fields in it that are quoted or bracketed: JSON, Python's repr, calls.

    >>> hide_private_fields("refused: {'persona_text': 'You are Mia.', 'chars': 12}")
    "refused: {'persona_text': [hidden], 'chars': 12}"
    """
    kept, at = [], 0
    while found := _FIELD.search(text, at):
        kept.append(text[at : found.end()])
        at = found.end()
        if is_private(found[1]):
            kept.append(HIDDEN)
            at = _value_end(text, at)
    return "".join(kept) + text[at:]


def _value_end(text: str, at: int) -> int:
    """Where the quoted or bracketed value ends that begins here; at the text's end where nothing ends it."""
    depth = 0
    quoted: tuple[int, str] | None = None  # with so many backslashes before it
    for found in _STRUCTURE.finditer(text, at):
        backslashes, mark = len(found[1] or ""), found[2]
        if quoted is not None:
            # Quotes inside have more backslashes. One that may end a string with backslashes at its end, or be inside,
            # is taken as inside; among brackets nothing is certain after it. More is hidden then, never less.
            if mark == quoted[1] and backslashes == quoted[0]:
                quoted = None
            elif depth and mark == quoted[1] and (quoted[0], backslashes % 4) not in ((0, 1), (0, 3), (1, 3)):
                return len(text)
        elif mark:
            quoted = (backslashes, mark)
        else:
            depth += 1 if found[0] in "[({" else -1
        if quoted is None and depth <= 0:
            return found.end()
    return len(text)
