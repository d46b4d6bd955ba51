"""Histories of many short messages: what a template adds to each is accounted for, however it is shared out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.text.prompt import Budgets, Message, PromptRenderer
from tests.harness.templates import real
from tests.harness.templates.thought import PLAIN

BUDGETS = Budgets(persona=100, history=2000, utterance=100, input=1200)
ADDED = "(please answer in a short and friendly way)\n"
ALTERNATE = (
    "{% for m in messages %}{% if not loop.first and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('alternate') }}{% endif %}{% endfor %}"
)


def heavy(role: str) -> str:
    """A template that adds much to what one side says."""
    return PLAIN.replace("m['content']", f"('{ADDED}' if m['role'] == '{role}' else '') + m['content']")


TEMPLATES = {
    "plain": PLAIN,
    "heavy user": heavy("user"),
    "heavy assistant": heavy("assistant"),
    "heavy user, alternating": ALTERNATE + heavy("user"),
    "heavy assistant, alternating": ALTERNATE + heavy("assistant"),
}


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PromptRenderer]:
    folder = tmp_path_factory.mktemp("overhead")
    return {
        name: PromptRenderer(real.write_template(template.replace("\n", "\\n"), folder / str(number)), BUDGETS)
        for number, (name, template) in enumerate(TEMPLATES.items())
    }


@given(
    pattern=st.text("ua", min_size=1, max_size=6),
    count=st.integers(1, 120),
    size=st.integers(0, 60),
    utterance=st.sampled_from(["", "y", "y" * 300]),
)
@settings(max_examples=80, deadline=None)
def test_a_history_is_trimmed_and_no_turn_refused(
    renderers: dict[str, PromptRenderer], pattern: str, count: int, size: int, utterance: str
) -> None:
    roles = {"u": "user", "a": "assistant"}
    history = [Message(roles[pattern[number % len(pattern)]], "x" * size) for number in range(count)]
    for renderer in renderers.values():
        prompt = renderer.render(persona="p", runtime_text=None, history=history, utterance=utterance)
        assert len(prompt.token_ids) <= BUDGETS.input
        assert prompt.history_kept > 0
