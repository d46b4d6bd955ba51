"""Conversations of every shape that a server meets, in marker words, and what a template makes of each.

A template may take the exchange of user and assistant that everybody tries, and refuse another, or leave a part of it
out: where the assistant spoke first, where somebody spoke twice, at the first turn, or of a long history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from runtime.text.template_call import TemplateMessage, in_order, reason_of

ROLES = {"u": "user", "a": "assistant"}
# Who speaks, in order; the last is the user. Longer than what a template with a window of its own would keep.
PATTERNS = ("uau", "u", "au", "uu", "auau", "aau", "uuau", "uaau", "uauauuaau", "ua" * 32 + "u")
SYSTEM = "Qsystemq"

# Renders a system message, perhaps empty, and turns.
Render = Callable[[str, Sequence[TemplateMessage]], str]


class Shape(NamedTuple):
    """One conversation."""

    system: str
    turns: Sequence[TemplateMessage]

    @property
    def name(self) -> str:
        """How it is told."""
        said = [*(["system"] if self.system else []), *(role for role, _ in self.turns)]
        return f"a conversation of {', '.join(said) if len(said) < 8 else f'{len(said)} messages'}"


def shapes() -> Iterator[Shape]:
    """Each pattern, without a system message and with one."""
    for pattern in PATTERNS:
        turns = [(ROLES[letter], f"Qturn{number}q") for number, letter in enumerate(pattern)]
        yield from (Shape(system, turns) for system in ("", SYSTEM))


def fault_of(render: Render) -> str | None:
    """What is wrong with the first conversation that is not rendered whole and in order; none where all are."""
    for shape in shapes():
        try:
            text = render(*shape)
        except Exception as error:  # noqa: BLE001 - a template raises whatever it stumbles over
            return f"one that refuses {shape.name}: {reason_of(error)}"
        said = [*([shape.system] if shape.system else []), *(content for _, content in shape.turns)]
        missing = [content for content in said if content not in text]
        if missing:
            what = "the system message" if shape.system in missing else f"{len(missing)} messages"
            return f"one that leaves out {what} of {shape.name}"
        if not in_order(text, *said):
            return f"one that puts {shape.name} in another order"
    return None


def endings_of(render: Render) -> tuple[str, ...]:
    """What prompts end with after the user's words, in all shapes; the longest first."""
    found = set()
    for system, turns in shapes():
        text, (_, last) = render(system, turns), turns[-1]
        found.add(text[text.rindex(last) + len(last) :])
    return tuple(sorted(found, key=lambda ending: (-len(ending), ending)))
