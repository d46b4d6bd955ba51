"""The model's own chat template, with its quirks found out once.

Templates differ in what they do with a system message, and cannot be asked. So a few conversations of marker words are
rendered when the model is loaded, and the places where the markers come out tell:

- it refuses or drops the system role (Gemma), or moves it to the last user message (some Mistral): the system text is
  folded into the first user message instead, where it stays in place as the conversation grows (replies before that
  message are dropped);
- it puts in a default system message when there is none (SmolLM2, Qwen, Llama 3.1): that message is cut out again. It
  is known by the header of a user message with the word `system` in place of `user`; a template whose headers are
  not made that way keeps its default;
- it refuses roles that do not alternate (Gemma, Llama 2): neighbours of one role are joined, leading replies dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TemplateMessage = tuple[str, str]
"""Role (`user` or `assistant`) and content."""

SYSTEM, FIRST, REPLY, SECOND = "Qsystemq", "Qfirstq", "Qreplyq", "Qsecondq"


class ChatTemplate:
    """Renders conversations to text.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        ValueError: the template cannot render a plain exchange of user and assistant.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers is untyped to us
        self._tokenizer = tokenizer
        exchange = [("user", FIRST), ("assistant", REPLY)]
        plain = self._try([*exchange, ("user", SECOND)])
        if plain is None or not _in_order(plain, FIRST, REPLY, SECOND):
            raise ValueError("expected a chat template that renders user and assistant turns, found one that does not")
        with_system = self._try([("system", SYSTEM), *exchange, ("user", SECOND)])
        self._folds_system = with_system is None or not _in_order(with_system, SYSTEM, FIRST, REPLY, SECOND)
        self._must_alternate = (
            self._try([("user", FIRST), ("user", SECOND)]) is None
            or self._try([("assistant", REPLY), ("user", SECOND)]) is None
        )
        self._user_header = self._header(exchange, plain)

    def render(self, system: str, turns: Sequence[TemplateMessage]) -> str:
        """The conversation as text that ends where the reply begins. An empty `system` renders no system message."""
        if self._must_alternate:
            turns = _alternating(turns)
        if system and self._folds_system:
            turns = _folded(system, turns)
        elif system:
            return self._apply([("system", system), *turns])
        return self._without_default(self._apply(turns))

    def _header(self, exchange: list[TemplateMessage], plain: str) -> str:
        """What stands before a user's words: between a reply and the next utterance, less what ends the reply."""
        between = plain[plain.index(REPLY) + len(REPLY) : plain.index(SECOND)]
        closed = self._try(exchange, reply_begins=False)
        ending = closed[closed.index(REPLY) + len(REPLY) :] if closed and REPLY in closed else ""
        return between.removeprefix(ending)

    def _without_default(self, text: str) -> str:
        first_user = text.find(self._user_header)
        default = text.find(self._user_header.replace("user", "system"), 0, max(first_user, 0))
        return text if default < 0 else text[:default] + text[first_user:]

    def _try(self, turns: Sequence[TemplateMessage], *, reply_begins: bool = True) -> str | None:
        from jinja2 import TemplateError

        try:
            return self._apply(turns, reply_begins=reply_begins)
        except TemplateError:
            return None  # the template's own `raise_exception`

    def _apply(self, turns: Sequence[TemplateMessage], *, reply_begins: bool = True) -> str:
        conversation = [{"role": role, "content": content} for role, content in turns]
        return str(
            self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=reply_begins)
        )


def _in_order(text: str, *markers: str) -> bool:
    places = [text.find(marker) for marker in markers]
    return -1 not in places and places == sorted(places)


def _alternating(turns: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    joined: list[TemplateMessage] = []
    for role, content in turns:
        if joined and joined[-1][0] == role:
            joined[-1] = (role, f"{joined[-1][1]}\n\n{content}")
        elif joined or role == "user":
            joined.append((role, content))
    return joined


def _folded(system: str, turns: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """The system text before the first user's words, which then open the conversation."""
    first = next(index for index, (role, _) in enumerate(turns) if role == "user")
    return [("user", f"{system}\n\n{turns[first][1]}"), *turns[first + 1 :]]
