"""A system message that a template has of its own is left out, wherever it puts it, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.text.prompt import Budgets, Message, PromptRenderer
from tests.harness.templates import plain_marks, real
from tests.harness.templates.thought import BEGINS, CHAT, PLAIN

TITLED = (
    "{% if messages[0].role != 'system' %}### System:\nYou are Bob.\n\n{% endif %}"
    "{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
LOUD = (
    "{% if messages[0].role != 'system' %}<|SYSTEM_TOKEN|>You are Bob.<|END|>{% endif %}"
    "{% for m in messages %}<|{{ m.role | upper }}_TOKEN|>{{ m.content }}<|END|>{% endfor %}"
    "{% if add_generation_prompt %}<|ASSISTANT_TOKEN|>{% endif %}"
)
SPLIT = (
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set said = 'You are Bob.' %}{% endif %}"
)


def in_a_message(where: str) -> str:
    """A template that puts the system message before the words of one."""
    content = f"{{{{ said + '\n\n' if {where} and said else '' }}}}{{{{ m['content'] }}}}"
    return (
        SPLIT
        + CHAT.replace(
            "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
            (f"<|im_start|>{{{{ m['role'] }}}}\n{content}<|im_end|>\n"),
        )
        + BEGINS
        + "{% endif %}"
    )


TEMPLATES = {
    "titled": TITLED,
    "loud": LOUD,
    "the same": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Bob.<|im_end|>\n{% endif %}" + PLAIN,
    "in the first": in_a_message("loop.first"),
    "in the first user's": in_a_message("loop.first and m.role == 'user'"),
    "in the last": in_a_message("loop.last"),
}
# The same without a default.
BARE = {
    "titled": TITLED.replace("### System:\nYou are Bob.\n\n", ""),
    "loud": LOUD.replace("<|SYSTEM_TOKEN|>You are Bob.<|END|>", ""),
    **dict.fromkeys(("the same", "in the first", "in the first user's", "in the last"), PLAIN),
}
LOUD_TOKENS = ("<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|ASSISTANT_TOKEN|>")


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PromptRenderer, PromptRenderer]]:
    folder = tmp_path_factory.mktemp("defaults")

    def renderer(template: str, name: str) -> PromptRenderer:
        if name == "titled":
            return PromptRenderer(plain_marks.write(template, folder / f"{len(template)}{name}"), Budgets())
        more = LOUD_TOKENS if name == "loud" else ()
        return PromptRenderer(real.write_template(template, folder / f"{len(template)}{name}", *more), Budgets())

    return {name: (renderer(TEMPLATES[name], name), renderer(BARE[name], f"{name}")) for name in TEMPLATES}


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    roles=st.lists(st.sampled_from(["user", "assistant"]), max_size=4),
    persona=st.sampled_from(["", "Zp"]),
    said=st.sampled_from(["Zu", "You are Bob."]),
)
@settings(max_examples=30, deadline=None)
def test_a_default_is_left_out_and_nothing_else(
    renderers: dict[str, tuple[PromptRenderer, PromptRenderer]],
    name: str,
    roles: list[str],
    persona: str,
    said: str,
) -> None:
    def told(renderer: PromptRenderer) -> str:
        history = [Message(role, f"Z{number}z") for number, role in enumerate(roles)]
        prompt = renderer.render(persona=persona, runtime_text=None, history=history, utterance=said)
        return str(renderer._tokens._tokenizer.decode(prompt.token_ids, skip_special_tokens=False))

    with_default, without = (told(renderer) for renderer in renderers[name])
    assert with_default.count("Bob") == (said != "Zu")
    if not persona:
        # Where only a user's message can hold the persona, one comes before a reply that opens.
        assert with_default.removeprefix("<|im_start|>user\n…<|im_end|>\n") == without
