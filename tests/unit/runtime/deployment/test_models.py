"""A chat model's renderer as turns use it: what a system prompt was found to be is not found out again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.deployment.models import Chat
from runtime.text.prompt import Budgets, Message, PersonaTooLongError, Prompt
from tests.harness.scripted import ScriptedEngine, ScriptedRenderer

# In letters, which are the tokens here.
BUDGETS = Budgets(persona=10, history=10, utterance=6, input=40)


class Lettered(ScriptedRenderer):
    """A token a letter, and the budgets kept; it counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def render_inline(
        self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str
    ) -> Prompt | None:
        self.asked += 1
        if len(persona) > BUDGETS.persona:
            raise PersonaTooLongError(len(persona), BUDGETS.persona)
        return Prompt(list(map(ord, persona + runtime_text + utterance)), len(history))


def chat() -> tuple[Chat, Lettered]:
    renderer = Lettered()
    return Chat(ScriptedEngine(), renderer, ThreadPoolExecutor(1), BUDGETS), renderer


TEXTS = st.text("ab 7", max_size=45)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from([None, "s", "t"])), max_size=8))
@settings(deadline=None)
async def test_a_system_prompt_is_too_long_by_itself_alone(asked: list[tuple[str, str, str | None]]) -> None:
    experienced, _ = chat()
    for persona, runtime_text, salt in (*asked, *asked):
        found = await experienced.persona_excess(persona, runtime_text, salt)
        anew = await chat()[0].persona_excess(persona, runtime_text, salt)
        assert repr(found) == repr(anew)


async def test_what_fits_is_found_out_once_for_each_salt() -> None:
    fits, renderer = chat()
    for times, salt in ((1, None), (1, None), (2, "s"), (2, "s"), (2, None)):
        assert await fits.persona_excess("abcdefghij", "0123456789", salt) is None
        assert renderer.asked == times
    # The same letters, parted elsewhere.
    assert await fits.persona_excess("abcdefghij0", "123456789") is not None


@pytest.mark.parametrize(("persona", "runtime_text"), [("a" * 11, ""), ("a", "b" * 40)])
async def test_what_does_not_fit_is_refused_every_time(persona: str, runtime_text: str) -> None:
    refuses, _ = chat()
    for _ in range(3):
        assert isinstance(await refuses.persona_excess(persona, runtime_text), PersonaTooLongError)
