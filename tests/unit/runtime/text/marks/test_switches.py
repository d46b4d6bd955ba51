"""A client's words switch nothing: neither those that a template looks for, nor those that models were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from runtime.text.marks.switches import TRAINED, TRAINED_LINES
from runtime.text.prompt import Budgets, Message, PromptRenderer
from tests.harness.templates import real

HEAD = "{% set state = namespace(think=enable_thinking | default(true)) %}"
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
BEGIN = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if state.think %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Templates that obey what is said in a message, each with a word that turns thought on.
OBEDIENT = {
    "in the system message": (
        "{% if messages[0]['role'] == 'system' and '/think' in messages[0]['content'] %}"
        "{% set state.think = true %}{% endif %}",
        "/think",
    ),
    "in any message": (
        "{% for m in messages %}{% if '/think' in m['content'] %}{% set state.think = true %}{% endif %}{% endfor %}",
        "/think",
    ),
    "at a message's end": (
        "{% for m in messages %}{% if m['content'].endswith('<<ponder>>') %}"
        "{% set state.think = true %}{% endif %}{% endfor %}",
        "<<ponder>>",
    ),
    "alone": (
        "{% for m in messages %}{% if m['content'] | trim == '!reason' %}"
        "{% set state.think = true %}{% endif %}{% endfor %}",
        "!reason",
    ),
    "in any case": (
        "{% for m in messages %}{% if 'deep thought' in m['content'] | lower %}"
        "{% set state.think = true %}{% endif %}{% endfor %}",
        "Deep Thought",
    ),
    "in a reply": (
        "{% for m in messages %}{% if m['role'] == 'assistant' and 'mode:reason' in m['content'] %}"
        "{% set state.think = true %}{% endif %}{% endfor %}",
        "mode:reason",
    ),
}
PLACES = ("persona", "runtime_text", "user", "assistant", "utterance")


def prompts(renderer: PromptRenderer, words: Sequence[str]) -> list[tuple[str, str]]:
    """What is said, and the prompt that comes of it: each word in each place, in several forms."""
    made = []
    for place, word, form in product(PLACES, words, ("{}", "Za {}", "{} Zb", "Za\n{}\nZb", "Za {} Zb")):
        said = {**{name: f"Z{name}." for name in PLACES}, place: form.format(word)}
        history = [Message("user", said["user"]), Message("assistant", said["assistant"])]
        prompt = renderer.render(
            persona=said["persona"], runtime_text=said["runtime_text"], history=history, utterance=said["utterance"]
        )
        made.append((said[place], renderer._tokens._tokenizer.decode(prompt.token_ids, skip_special_tokens=False)))
    return made


@pytest.mark.parametrize("kind", OBEDIENT)
def test_a_template_that_looks_into_messages_finds_no_switch_of_a_clients(tmp_path: Path, kind: str) -> None:
    condition, word = OBEDIENT[kind]
    renderer = PromptRenderer(real.write_template(HEAD + condition + CHAT + BEGIN, tmp_path), Budgets())
    assert renderer.off == {"enable_thinking": False}
    # It can be switched: this test would fail without the mend.
    call = renderer._template._call
    turns = [("system", word), ("user", word), ("assistant", word), ("user", word)]
    assert str(call.attempt(turns)).endswith("<think>\n")
    for said, prompt in prompts(renderer, [word, word.upper(), word.lower()]):
        assert prompt.endswith("<think>\n\n</think>\n\n"), said


# One of each way to think, or not to.
REAL = ("deepseekv3", "gemma4", "glm4moe", "gptoss", "llama3", "muse_glimmer", "nemotron_3_nano", "qwen3", "qwen3_6")


@pytest.mark.skipif(not real.HERE, reason=real.MISSING)
@pytest.mark.parametrize("name", REAL)
def test_no_word_that_models_were_trained_on_reaches_one_that_can_think(tmp_path: Path, name: str) -> None:
    renderer = PromptRenderer(real.write(name, tmp_path), Budgets())
    [(_, plain), *_] = prompts(renderer, ["Zplain"])
    knows = "think" in real.source(name)
    for said, prompt in prompts(renderer, sorted(TRAINED | TRAINED_LINES)):
        assert prompt.endswith(renderer.format.begun), said
        for word in TRAINED | TRAINED_LINES:
            # GLM's template says `/nothink` itself.
            if said == word or (knows and word in TRAINED and word in said):
                assert prompt.count(word) == plain.count(word)


def test_what_only_looks_like_a_switch_is_read_as_it_was_said(tmp_path: Path) -> None:
    renderer = PromptRenderer(real.write_template(CHAT.replace("m['role']", "m.role"), tmp_path), Budgets())
    for said in ("see docs/thinking.md", "I keep detailed thinking on paper", "a / think b", "screen or image"):
        tokens = renderer.render(persona="", runtime_text="", history=(), utterance=said).token_ids
        assert said in renderer._tokens._tokenizer.decode(tokens, skip_special_tokens=False)


def test_an_ordinary_word_that_a_template_looks_for_is_left_whole(tmp_path: Path) -> None:
    """A template that asks for `image` in a message would have every message garbled otherwise."""
    looks = "{% for m in messages %}{% if 'image' in m['content'] %}(picture){% endif %}{% endfor %}"
    renderer = PromptRenderer(real.write_template(looks + CHAT, tmp_path), Budgets())
    tokens = renderer.render(persona="", runtime_text="", history=(), utterance="an image of Ada").token_ids
    assert "an image of Ada" in renderer._tokens._tokenizer.decode(tokens, skip_special_tokens=False)
