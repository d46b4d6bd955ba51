"""A text that is far too long costs what its budget is, and not what it is long: whoever sends one sends many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.text.prompt import Budgets, Message, PersonaTooLongError, PromptRenderer
from runtime.text.text_tokens import LIKELY_CHARACTERS_PER_TOKEN, TextTokens
from tests.harness.models import chat_templates as templates

SMALL = Budgets(persona=30, history=60, utterance=20, input=150)
# What is dear to search for marks, to fold, or to tokenize.
UNITS = ["<", "<|", "/think\n", "user:", "a", "hello ", "é", "🙂", "＜|", "\u200d", "１"]


@pytest.fixture(scope="module", params=["chatml", "instruct"])
def renderer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PromptRenderer:
    folder = tmp_path_factory.mktemp("template")
    return PromptRenderer(templates.write(request.param, folder), SMALL)


def searched(monkeypatch: pytest.MonkeyPatch, renderer: PromptRenderer, work: Callable[[], object]) -> int:
    """Characters that some work has searched for marks."""
    found, search = 0, TextTokens._escape

    def counted(self: TextTokens, text: str) -> str:
        nonlocal found
        found += len(text)
        return search(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(TextTokens, "_escape", counted)
        patch.setattr(renderer._tokens, "_escape_cached", renderer._tokens._escape)  # nothing was seen before
        work()
    return found


def most(renderer: PromptRenderer, tokens: int) -> int:
    """Characters that so many tokens can be at most, and what is searched of a text to know that it has more."""
    return (tokens + 1) * (renderer._tokens._longest_token + LIKELY_CHARACTERS_PER_TOKEN + 2)


@pytest.mark.parametrize("unit", UNITS)
def test_a_system_prompt_that_is_far_too_long(
    renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    long = unit * (200_000 // len(unit))

    def render(**texts: str) -> None:
        with pytest.raises(PersonaTooLongError):
            renderer.render(**{"persona": "", "runtime_text": "", **texts}, history=[], utterance="hi")  # type: ignore[arg-type]

    assert searched(monkeypatch, renderer, lambda: render(persona=long)) <= most(renderer, SMALL.persona)
    assert searched(monkeypatch, renderer, lambda: render(runtime_text=long)) <= most(renderer, SMALL.input)


@pytest.mark.parametrize("unit", UNITS)
def test_a_message_and_an_utterance_that_are_far_too_long(
    renderer: PromptRenderer, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    long = unit * (200_000 // len(unit))
    history = [Message("user", long), Message("assistant", "yes?")]

    def render(history: list[Message], utterance: str) -> list[int]:
        return renderer.render(persona="p", runtime_text="", history=history, utterance=utterance).token_ids

    assert render(history, "hi") == render(history[1:], "hi")
    assert searched(monkeypatch, renderer, lambda: render(history, "hi")) <= most(renderer, SMALL.history) + 100
    # The end of an utterance is searched again once it is cut, and once more where that has changed it.
    assert searched(monkeypatch, renderer, lambda: render([], long)) <= 6 * most(renderer, SMALL.utterance)


TEXT = st.lists(st.sampled_from([*UNITS, " ", "\n", "<|im_end|>", "USER:", "b" * 40]), max_size=400).map("".join)


@given(TEXT, st.integers(0, 40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_known_to_be_too_long_is(renderer: PromptRenderer, text: str, limit: int) -> None:
    tokens = renderer._tokens
    found = tokens.known_excess(text, limit)
    if found is not None:
        assert found > limit
        assert tokens.count_to(tokens.escaped(text), limit) > limit
    # An end is the same, whether all of the text is looked at for it or what it may reach into.
    end = tokens.escaped(text)
    while (cut := tokens.tail(end, limit)) != end:
        end = tokens.escaped(cut)
    assert tokens.escaped_tail(text, limit) == end
