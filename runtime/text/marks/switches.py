"""Words in a message that switch something: thought, in models that were trained on them, or a branch of the template.

Some templates look into what is said: SmolLM3 thinks when the system message holds `/think`, Nemotron when any message
does. Qwen 3 was trained on `/think` and `/no_think`, which its template knows nothing of. A client's words are for the
model to read, not for the template to obey: what switches is broken up in them, as marks are.

Which words the template looks for is found by rendering: each literal of its source is put into each kind of message,
and it is a switch when anything but that message changes, as with no other word.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence

from runtime.host.texts.words import any_of
from runtime.text.marks.learned import CHANNEL_MARKS, TemplateMarks
from runtime.text.shapes import SYSTEM
from runtime.text.template import SECOND
from runtime.text.template_call import TemplateMessage
from runtime.text.thought import FIRST, REPLY, SWITCH

# Words that models were trained on, whatever their template says.
TRAINED = frozenset({"/think", "/no_think", "/nothink"})
# Those that are a plain sentence too: they switch where they fill a line of the system message.
TRAINED_LINES = frozenset({"detailed thinking on", "detailed thinking off"})
# What is broken up in every message anyway.
_BROKEN_UP = re.compile(any_of(CHANNEL_MARKS))
# A longer literal is no word that somebody would look for.
LONGEST_SWITCH = 64

# A word that nobody looks for.
OTHER = "Qotherq"

# Renders a conversation; none where the template refuses it.
Attempt = Callable[[Sequence[TemplateMessage]], "str | None"]


def switches_of(attempt: Attempt, source: str) -> TemplateMarks:
    """Return the switches of a template, with those that models are trained on.

    A word of `TRAINED` is broken up wherever it stands where the template knows of thought; in another model, whose
    users may well write a path that begins so, only where it fills a line.

    Args:
        attempt: renders a conversation as the server's prompts are.
        source: the template.
    """
    words = {word for word in _literals(source) if _is_special(word) and not _BROKEN_UP.search(word)}
    found = {word for word in words if _acts(attempt, word)}
    if SWITCH.search(source):
        return TemplateMarks(frozenset(found | TRAINED), TRAINED_LINES)
    return TemplateMarks(frozenset(found), TRAINED | TRAINED_LINES)


def _acts(attempt: Attempt, word: str) -> bool:
    """Whether the word in a message changes anything but that message."""
    conversation: list[TemplateMessage] = [("system", SYSTEM), ("user", FIRST), ("assistant", REPLY), ("user", SECOND)]
    for turns in (conversation, conversation[1:]):
        plain = attempt(turns)
        if plain is None:
            continue
        for place, (role, marker) in enumerate(turns):
            for form in (f"{marker} {{}}", f"{{}} {marker}", f"{marker}\n{{}}\n{marker}", "{}"):
                content = form.format(word)
                said = attempt([*turns[:place], (role, content), *turns[place + 1 :]])
                if said == plain.replace(marker, content):
                    continue
                # Some templates alter all that is said: then another word in its place tells.
                other = attempt([*turns[:place], (role, form.format(OTHER)), *turns[place + 1 :]])
                if said is None or other is None or said != other.replace(OTHER, word):
                    return True
    return False


def _is_special(word: str) -> bool:
    """Whether a word is about thought, or none of ordinary language: breaking up others would garble what is said.

    >>> [_is_special(word) for word in ("/verbose", "Reasoning effort", "image", "I")]
    [True, True, False, False]
    """
    return bool(SWITCH.search(word)) or re.search(r"[^\w\s.,'-]", word) is not None


def _literals(source: str) -> Iterable[str]:
    """The texts in a template's expressions."""
    from jinja2 import Environment, TemplateSyntaxError

    try:
        for _, kind, text in Environment(autoescape=False).lex(source):  # noqa: S701 - nothing is rendered
            if kind == "string" and 1 < len(word := _unquoted(text).strip()) <= LONGEST_SWITCH:
                yield word
    except TemplateSyntaxError:
        return


def _unquoted(literal: str) -> str:
    try:
        value = ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return literal[1:-1]
    return value if isinstance(value, str) else ""
