"""Arguments: what a caller may say, and that it is refused by name where it is something else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, TypedDict

from yap_client.transcript import Message

# Hints are read at runtime too, where `typing` has it from 3.11 on.
if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack
elif sys.version_info >= (3, 11):
    from typing import Unpack
else:
    try:
        from typing_extensions import Unpack
    except ModuleNotFoundError:

        class Unpack:
            """Stands for the arguments of a `TypedDict`, by which it is shown then."""

            def __class_getitem__(cls, options: type) -> type:
                return options


# The names on the wire.
WIRE = {"persona": "persona_text", "style": "persona_style"}
# So much a name is like the one that was meant.
LIKE = 0.7

HistoryItem = Message | Mapping[str, str]


class Sampling(TypedDict, total=False):
    """How replies are drawn; what is left out is as the session has it, and at first as the server has it.

    Attributes:
        temperature, top_p, top_k, min_p: which tokens are drawn, and how boldly.
        repetition_penalty, presence_penalty, frequency_penalty: against saying things twice.
        max_tokens: bounds the reply.
        stop: texts that end the reply.
        seed: makes it repeatable.
        sanitize_output: whether it is made fit to be spoken.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int
    stop: list[str]
    seed: int
    sanitize_output: bool


class Facts(TypedDict, total=False):
    """What a session keeps beside its history; what is left out, or none, stays as it is.

    Attributes:
        persona: the system prompt.
        gender: `woman`, `man`, `female` or `male`.
        style: the persona's style: letters, at most 20.
        user_identity: `woman`, `man` or `non-binary`.
        check_screen_prefix: precedes the utterance after a decision for a screenshot.
        screen_checked_prefix: precedes the analysis of a followup; to be said where the server's operator has set
            another than `SCREEN_CHECKED_PREFIX`, so that a history that is sent again has it too.
    """

    persona: str | None
    gender: Literal["woman", "man", "female", "male"] | str | None
    style: str | None
    user_identity: Literal["woman", "man", "non-binary"] | str | None
    check_screen_prefix: str | None
    screen_checked_prefix: str | None


def check_text(name: str, value: object) -> None:
    """Refuse what is no text before anything is changed by it."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, found {type(value).__name__}")


def check_facts(call: str, facts: Mapping[str, object], others: Iterable[str] | None = None) -> None:
    """Refuse facts that no session keeps: on the wire their names would be fields of a message.

    >>> check_facts("say", {"personna": "You are Mia."})
    Traceback (most recent call last):
    TypeError: say() got an unexpected keyword argument 'personna'; did you mean 'persona'?

    Args:
        call: what was called.
        facts: what it was given.
        others: its other arguments, one of which may be meant.
    """
    for name, value in facts.items():
        if name not in Facts.__annotations__:
            taken = sorted({*Facts.__annotations__, *(others or ())})
            near = [fact for fact in WIRE if WIRE[fact] == name] or get_close_matches(name, taken, 1, LIKE)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(taken)}"
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}; {hint}")
        if value is not None:
            check_text(name, value)
