"""Expressions of a workflow, `${{ … }}`: literals, contexts, operators and functions, as far as ours use them.

What is not known raises, so that a test says that it does not understand instead of passing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(\d+(?:\.\d+)?)|(==|!=|&&|\|\||[!().,\[\]])|([A-Za-z_][\w-]*))")
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
WORDS = {"true": True, "false": False, "null": None}


def expand(text: str, contexts: Mapping[str, Any]) -> Any:
    """A text with its expressions replaced; one expression alone keeps its type."""
    alone = EXPRESSION.fullmatch(text.strip())
    if alone and text.strip().count("${{") == 1:
        return evaluate(alone[1], contexts)
    return EXPRESSION.sub(lambda found: shown(evaluate(found[1], contexts)), text)


def shown(value: Any) -> str:
    """A value within a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


def evaluate(text: str, contexts: Mapping[str, Any]) -> Any:
    """The value of an expression."""
    tokens, at = [], 0
    while text[at:].strip():
        found = TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"expected an expression, found {text[at:]!r}")
        tokens.append(found[0].strip())
        at = found.end()
    parser = _Parser(tokens, contexts)
    value = parser.either()
    if parser.tokens:
        raise ValueError(f"expected the end of {text!r}, found {parser.tokens}")
    return value


class _Parser:
    def __init__(self, tokens: list[str], contexts: Mapping[str, Any]) -> None:
        self.tokens, self.contexts = tokens, contexts

    def take(self, *wanted: str) -> str | None:
        if self.tokens and (not wanted or self.tokens[0] in wanted):
            return self.tokens.pop(0)
        return None

    def either(self) -> Any:
        value = self.both()
        while self.take("||"):
            other = self.both()
            value = value or other
        return value

    def both(self) -> Any:
        value = self.equal()
        while self.take("&&"):
            other = self.equal()
            value = value and other
        return value

    def equal(self) -> Any:
        value = self.inverted()
        while operator := self.take("==", "!="):
            other = self.inverted()
            value = (_plain(value) == _plain(other)) == (operator == "==")
        return value

    def inverted(self) -> Any:
        return not self.inverted() if self.take("!") else self.single()

    def single(self) -> Any:
        token = self.take()
        if token is None:
            raise ValueError("expected a value, found the end")
        if token == "(":
            value = self.either()
            self.expect(")")
            return value
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if token[0].isdigit():
            return float(token)
        if token in WORDS:
            return WORDS[token]
        if self.take("("):
            return self.call(token)
        if token not in self.contexts:
            raise ValueError(f"expected one of {sorted(self.contexts)}, found {token}")
        value = self.contexts[token]
        while self.take("."):
            name = self.take()
            # What is not set is empty, as on GitHub.
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def call(self, name: str) -> Any:
        given = []
        while not self.take(")"):
            given.append(self.either())
            self.take(",")
        if name == "fromJSON":
            return json.loads(given[0])
        if name == "format":
            return re.sub(r"\{(\d+)\}", lambda found: shown(given[1 + int(found[1])]), given[0])
        if name == "startsWith":
            return str(given[0]).lower().startswith(str(given[1]).lower())
        if name in {"always", "success"}:
            return True
        raise ValueError(f"expected a function that is known, found {name}")

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise ValueError(f"expected {token}, found {self.tokens}")


def _plain(value: Any) -> Any:
    """GitHub compares texts without regard to case, and what is not set like the empty text."""
    return value.lower() if isinstance(value, str) else value or ""
