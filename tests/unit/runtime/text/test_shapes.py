"""Conversations of every shape: each is rendered whole, or the template is refused for it, in its own words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.text.prompt import Budgets, Message, PromptRenderer
from runtime.text.template import CORRECT
from tests.harness.templates import real
from tests.harness.templates.thought import BEGINS, CHAT, PLAIN

SYSTEM_IN_FIRST_USER = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}<|user|>{% if loop.first and said %}{{ said }}\n\n{% endif %}"
    "{{ m.content }}{% else %}<|bot|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)
# What each does not take, found out by none but one shape of conversation.
MENDED = {
    "the system message in the first user's alone": SYSTEM_IN_FIRST_USER,
    "no system message at the first turn": (
        "{% if messages[0].role == 'system' and messages | length == 2 %}{% set messages = messages[1:] %}{% endif %}"
    )
    + PLAIN,
    "no reply behind the system message": (
        "{% if messages[0].role == 'system' and messages[1].role != 'user' %}{{ raise_exception('user') }}{% endif %}"
    )
    + PLAIN,
    "neighbours, but late ones": (
        "{% for m in messages %}{% if loop.index0 > 3 and m.role == messages[loop.index0 - 1].role %}"
        "{{ raise_exception('alternate') }}{% endif %}{% endfor %}"
    )
    + PLAIN,
    "neighbours beside a system message": (
        "{% if messages[0].role == 'system' %}{% for m in messages %}"
        "{% if not loop.first and m.role == messages[loop.index0 - 1].role %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}{% endif %}"
    )
    + PLAIN,
}
REFUSED = {
    "{% if messages[1]['role'] == 'zz' %}{% endif %}": "refuses a conversation of user: line 1: .*has no element 1",
    "\n{% if messages | length < 2 %}{{ raise_exception('need; two') }}{% endif %}": (
        "refuses a conversation of user: line 2: need, two"
    ),
    "{% set messages = messages[-5:] %}": "leaves out 4 messages of a conversation of 9 messages",
    "{% set messages = messages[-40:] %}": "leaves out 25 messages of a conversation of 65 messages",
    "{% if messages[0].role != 'system' %}{{ raise_exception('A system message\n is required') }}{% endif %}": (
        "refuses them: line 1: A system message is required$"
    ),
    "{{ raise_exception('so ' * 500) }}": "refuses them: line 1: .{0,160}…$",
    "\n\n{% for m in": "refuses them: line 3: ",
    "{{ 1 / 0 }}": "refuses them: line 1: division by zero",
}
HISTORIES = st.lists(st.sampled_from(["user", "assistant"]), max_size=9)


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PromptRenderer]:
    folder = tmp_path_factory.mktemp("shapes")
    return {
        name: PromptRenderer(real.write_template(template, folder / str(number), "<|im_end|>"), Budgets())
        for number, (name, template) in enumerate(MENDED.items())
    }


@pytest.mark.parametrize("name", MENDED)
@given(persona=st.sampled_from(["", "Zpersona."]), roles=HISTORIES)
@settings(max_examples=40, deadline=None)
def test_a_conversation_of_any_shape_is_rendered_whole_and_in_order(
    renderers: dict[str, PromptRenderer], name: str, persona: str, roles: list[str]
) -> None:
    renderer = renderers[name]
    history = [Message(role, f"Z{number}z") for number, role in enumerate(roles)]
    tokens = renderer.render(persona=persona, runtime_text=None, history=history, utterance="Zlast.").token_ids
    text = renderer._tokens._tokenizer.decode(tokens, skip_special_tokens=False)
    said = [*([persona] if persona else []), *(message.content for message in history), "Zlast."]
    assert re.findall(r"Z\w+\.?z?", text) == said


def test_a_system_message_stays_in_its_place_where_the_template_has_one(renderers: dict[str, PromptRenderer]) -> None:
    renderer = renderers["no reply behind the system message"]
    text = renderer._template.render("Zpersona.", [("assistant", "Za"), ("user", "Zb")])
    assert text.startswith("<|im_start|>system\nZpersona.<|im_end|>\n<|im_start|>user\n…<|im_end|>\n")


@pytest.mark.parametrize("condition", REFUSED)
def test_a_template_that_no_mend_helps_is_refused_in_its_own_words(tmp_path: Path, condition: str) -> None:
    folder = real.write_template(condition + PLAIN, tmp_path)
    with pytest.raises(ValueError, match="expected a chat template that renders") as caught:
        PromptRenderer(folder, Budgets())
    told = str(caught.value)
    told, _, advice = told.partition(";")  # in what the template says there is none
    assert advice == f" {CORRECT}"
    assert re.search(f"found one that {REFUSED[condition]}", told), told
    assert "\n" not in told


# Thought is opened in some conversations alone.
SOMETIMES = {
    "beside a system message": "messages[0].role == 'system'",
    "without one": "messages[0].role != 'system'",
    "at the first turn": "messages | length < 3",
    "later": "messages | length > 2",
    "where a reply came first": "messages[0].role == 'assistant'",
}


@pytest.mark.parametrize("condition", SOMETIMES.values(), ids=SOMETIMES)
@given(persona=st.sampled_from(["", "Be kind."]), roles=HISTORIES)
@settings(max_examples=30, deadline=None)
def test_thought_is_hidden_in_the_conversations_whose_prompt_opens_it_and_speech_in_none(
    tmp_path_factory: pytest.TempPathFactory, condition: str, persona: str, roles: list[str]
) -> None:
    renderer = _sometimes(tmp_path_factory, condition)
    assert renderer.format.thinks
    history = [Message(role, "hi") for role in roles]
    prompt = renderer.render(persona=persona, runtime_text=None, history=history, utterance="so?")
    text = renderer._tokens._tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
    channel = renderer.format.behind(prompt.begun).filter()
    thinks = text.endswith("<think>\n")
    assert channel.feed("They ask.\n</think>\nHi") == ("Hi" if thinks else "They ask.\n\nHi")


_known: dict[str, PromptRenderer] = {}


def _sometimes(tmp_path_factory: pytest.TempPathFactory, condition: str) -> PromptRenderer:
    if condition not in _known:
        template = CHAT + BEGINS + f"{{% if {condition} %}}{{{{ '<think>\n' }}}}{{% endif %}}{{% endif %}}"
        folder = real.write_template(template, tmp_path_factory.mktemp("sometimes"))
        _known[condition] = PromptRenderer(folder, Budgets())
    return _known[condition]


@pytest.mark.parametrize("condition", SOMETIMES.values(), ids=SOMETIMES)
def test_a_switch_for_thought_that_only_some_conversations_open_is_found(tmp_path: Path, condition: str) -> None:
    opens = (
        f"{{% if ({condition}) and enable_thinking | default(true) %}}{{{{ '<think>\n' }}}}{{% endif %}}{{% endif %}}"
    )
    renderer = PromptRenderer(real.write_template(CHAT + BEGINS + opens, tmp_path), Budgets())
    assert renderer.off == {"enable_thinking": False}
    assert not renderer.format.thinks
