"""The templates of real models: what each of them does is found out, and nothing that was said is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.text.prompt import Budgets, Message, PromptRenderer
from runtime.text.template import EMPTY
from tests.harness.templates import real

# Those whose models always think.
ALWAYS_THINK = frozenset({"deepseek_r1_distill", "deepseekv3"})
# Those that begin a thought unless they are told not to.
SWITCHED = frozenset(
    {
        *("glm4moe", "nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
        *("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"),
        *("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "diffusion_gemma"),
    }
)
TURN_ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "gemma3": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "muse_glimmer": "<|eot|>",
    "nemotron_3_nano": "<|im_end|>",
    "phi3": "<|end|>",
    "qwen3_8": "<|im_end|>",
}


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PromptRenderer]:
    if not real.names():
        pytest.skip(real.MISSING)
    folder = tmp_path_factory.mktemp("real")
    return {name: PromptRenderer(real.write(name, folder / name), Budgets()) for name in real.names()}


@pytest.fixture(params=real.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def decoded(renderer: PromptRenderer, tokens: list[int]) -> str:
    return str(renderer._tokens._tokenizer.decode(tokens, skip_special_tokens=False))


def rendered(renderer: PromptRenderer, persona=None, runtime_text=None, history=(), utterance="Zhello") -> str:
    prompt = renderer.render(persona=persona, runtime_text=runtime_text, history=history, utterance=utterance)
    return decoded(renderer, prompt.token_ids)


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places) and all(text.count(part) == 1 for part in parts)


@pytest.mark.skipif(not real.HERE, reason=real.MISSING)
def test_there_are_as_many_as_are_known() -> None:
    assert len(real.names()) == 41


def test_persona_runtime_text_history_and_utterance_come_in_order(renderers, name: str) -> None:
    history = [Message("user", "Zone"), Message("assistant", "Ztwo")]
    text = rendered(renderers[name], "Zpersona.", "Znoon.", history, "Zthree")
    assert in_order(text, "Zpersona.", "Znoon.", "Zone", "Ztwo", "Zthree"), text


@pytest.mark.parametrize("persona", [None, "Zpersona."])
def test_a_greeting_that_came_before_the_users_first_words_is_kept(renderers, name: str, persona: str | None) -> None:
    history = [Message("assistant", "Zgreeting"), Message("user", "Zone"), Message("assistant", "Ztwo")]
    text = rendered(renderers[name], persona, None, history, "Zthree")
    assert in_order(text, *([persona] if persona else []), "Zgreeting", "Zone", "Ztwo", "Zthree"), text


def test_a_prompt_begins_no_thought_unless_the_model_always_thinks(renderers, name: str) -> None:
    renderer = renderers[name]
    assert renderer.format.thinks == (name in ALWAYS_THINK)
    assert bool(renderer.off) == (name in SWITCHED)
    assert renderer.format.filter().hidden == renderer.format.thinks
    prompts = [renderer.render(persona=None, runtime_text=None, history=(), utterance=said) for said in ("a", "b c")]
    for prompt in prompts:
        assert decoded(renderer, prompt.token_ids).endswith(renderer.format.begun)


def test_a_reply_ends_where_the_template_ends_a_turn(renderers, name: str) -> None:
    [end] = renderers[name].format.stop_token_ids
    token = decoded(renderers[name], [end])
    assert token == TURN_ENDS.get(name, token)
    assert token not in renderers[name].format.thought_ends


@pytest.mark.parametrize("name", ["gptoss", "muse_glimmer", "deepseekv3"])
def test_with_a_budget_a_model_that_always_thinks_is_let(tmp_path: Path, name: str) -> None:
    renderer = PromptRenderer(real.write(name, tmp_path), Budgets(), think=True)
    assert renderer.format.thinks
    assert renderer.format.filter().hidden
    # And what ends its thought lets it speak.
    channel = renderer.format.filter()
    channel.feed("<|channel|>analysis<|message|>hm" if name == "gptoss" else "to=self<|message|>hm")
    assert channel.feed(renderer.format.thought_ends + "Hi") == "Hi"
    assert renderer.format.encode(renderer.format.thought_ends)


CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THINKS = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if CONDITION %}<think>\n{% else %}CLOSED{% endif %}{% endif %}"
)


@pytest.mark.parametrize("closed", ["<think>\n\n</think>\n\n", "<think></think>", "</think>", ""])
@pytest.mark.parametrize(
    ("condition", "off"),
    [
        ("enable_thinking is not defined or enable_thinking", {"enable_thinking": False}),
        ("thinking | default(true)", {"thinking": False}),
        ("think is not defined or think", {"think": False}),
        ("not disable_thinking", {"disable_thinking": True}),
        ("not no_think", {"no_think": True}),
        ("reasoning_effort | default('high') != 'none'", {"reasoning_effort": "none"}),
        ("mode is not defined or mode != 'chat'", {"mode": "chat"}),
        ("thinking_budget is not defined or thinking_budget != 0", {"thinking_budget": False}),
    ],
)
def test_a_switch_is_found_whatever_its_name_and_values(
    tmp_path: Path, condition: str, off: dict[str, object], closed: str
) -> None:
    template = CHAT + THINKS.replace("CONDITION", condition).replace("CLOSED", closed)
    renderer = PromptRenderer(real.write_template(template, tmp_path), Budgets())
    assert renderer.off == off
    assert not renderer.format.thinks
    assert rendered(renderer).endswith(f"assistant\n{closed}")
    prefix = renderer.render_prefix(persona=None, runtime_text=None, history=[])
    assert decoded(renderer, prefix).startswith("<|im_start|>user\n")


@pytest.mark.parametrize("words", ["/no_think", "/nothink", "detailed thinking off"])
def test_a_switch_in_the_system_message_is_used(tmp_path: Path, words: str) -> None:
    condition = f"'{words}' not in messages[0]['content']"
    template = CHAT + THINKS.replace("CONDITION", condition).replace("CLOSED", "<think></think>")
    renderer = PromptRenderer(real.write_template(template, tmp_path), Budgets())
    assert not renderer.format.thinks
    for persona in (None, "Zpersona"):
        assert rendered(renderer, persona).endswith("<think></think>")


def test_marks_that_only_the_template_knows_are_learnt(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m.reasoning_content %}<ponder>{{ m.reasoning_content }}</ponder>\n{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}" + BEGIN
    )
    form = PromptRenderer(real.write_template(template, tmp_path), Budgets()).format
    channel = form.filter()
    assert channel.feed("<ponder>hm</ponder>\nHi") == "Hi"
    assert form.thought_ends == "</ponder>\n"


@pytest.mark.parametrize(
    "opening", ["<cot>\n", "Here are my reasoning steps:\n", "Let me think.\n", "[STEPS]", "◁ponder▷", "<hm><answer>"]
)
def test_a_prompt_that_opens_a_thought_whose_end_nobody_knows_is_refused(tmp_path: Path, opening: str) -> None:
    template = CHAT + BEGIN.replace("assistant\n", f"assistant\n{opening}")
    for think in (False, True):
        with pytest.raises(ValueError, match="expected a chat template that opens no thought") as caught:
            PromptRenderer(real.write_template(template, tmp_path), Budgets(), think=think)
        assert repr(opening.strip()) in str(caught.value)


@pytest.mark.parametrize(
    "opening", ["", "Sure, ", "<answer>", "<|response|>", "<hm></hm>\n", "<think>\n</think>", "(", "* "]
)
def test_a_prompt_that_opens_a_reply_in_another_way_is_taken(tmp_path: Path, opening: str) -> None:
    template = CHAT + BEGIN.replace("assistant\n", f"assistant\n{opening}")
    form = PromptRenderer(real.write_template(template, tmp_path), Budgets()).format
    assert not form.thinks
    assert form.filter().feed("Hi") == "Hi"


def test_a_thought_that_is_a_message_of_its_own_makes_a_roles_mark_none_of_thoughts(tmp_path: Path) -> None:
    thought = (
        "{% for m in messages %}{% if m.reasoning_content %}<|im_start|>think\n{{ m.reasoning_content }}<|im_end|>\n"
        "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    form = PromptRenderer(real.write_template(thought + BEGIN, tmp_path), Budgets()).format
    assert not form.thinks
    assert form.filter().feed("Hi") == "Hi"
    assert form.stop_token_ids


def test_marks_that_are_special_tokens_are_asked_for(tmp_path: Path) -> None:
    hidden = PromptRenderer(real.write_template(CHAT + BEGIN, tmp_path / "a", "[THINK]", "[/THINK]"), Budgets())
    assert hidden.format.shows_special_tokens
    assert hidden.format.filter().feed("[THINK]hm[/THINK]Hi<|im_start|>") == "Hi"
    plain = PromptRenderer(real.write_template(CHAT + BEGIN, tmp_path / "b", "<think>", "</think>"), Budgets())
    assert not plain.format.shows_special_tokens


REFUSES_EMPTY = "{% for m in messages %}{% if not m['content'] %}{{ raise_exception('empty') }}{% endif %}{% endfor %}"


def test_a_template_that_refuses_empty_content_is_given_a_sign(tmp_path: Path) -> None:
    renderer = PromptRenderer(real.write_template(REFUSES_EMPTY + CHAT + BEGIN, tmp_path), Budgets())
    history = [Message("user", ""), Message("assistant", "Zhi")]
    text = rendered(renderer, history=history, utterance="")
    assert text.count(EMPTY) == 2
    assert "Zhi" in text


def write_where(form: str, template: str, folder: Path) -> None:
    """Put a template where some repositories have it."""
    (folder / "chat_template.jinja").unlink()
    config = folder / "tokenizer_config.json"
    document = json.loads(config.read_text())
    named = {"name": "tool_use", "template": "{{ raise_exception('not me') }}"}
    if form == "tokenizer_config":
        document["chat_template"] = template
    elif form == "list with default":
        document["chat_template"] = [named, {"name": "default", "template": template}]
    elif form == "list without default":
        document["chat_template"] = [named, {"name": "chat", "template": template}]
    elif form == "chat_template.json":
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        several = folder / "additional_chat_templates"
        several.mkdir()
        (several / "tool_use.jinja").write_text(named["template"])
        (several / "chat.jinja").write_text(template)
    config.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "form",
    [
        "tokenizer_config",
        "list with default",
        "list without default",
        "chat_template.json",
        "additional_chat_templates",
    ],
)
def test_a_template_is_found_wherever_it_lies(tmp_path: Path, form: str) -> None:
    folder = real.write_template(CHAT + BEGIN, tmp_path)
    write_where(form, CHAT + BEGIN, folder)
    assert "Zhello" in rendered(PromptRenderer(folder, Budgets()))


@pytest.mark.parametrize("content", ["{}", "[]", "not json", ""])
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, content: str) -> None:
    folder = real.write_template(CHAT + BEGIN, tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="expected a") as caught:
        PromptRenderer(folder, Budgets())
    assert "\n" not in str(caught.value)


TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), st.sampled_from(["Zx", "Zy", ""])), max_size=6
)


@given(st.sampled_from(real.names() or ("",)), TURNS)
@settings(max_examples=80, deadline=None)
def test_whole_conversations_are_mended_as_prompts_are(renderers, name: str, turns: list[tuple[str, str]]) -> None:
    template = renderers[name]._template
    if not [role for role, _ in turns if role != "system"]:
        with pytest.raises(ValueError, match="expected turns"):
            template.render_whole(turns)
    numbered = [(role, f"{content}{number}" if content else "") for number, (role, content) in enumerate(turns)]
    text = template.render_whole([*numbered, ("user", "Zlast"), ("assistant", "Zend")])
    assert all(content in text for _, content in numbered), text


HISTORY = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant"]), st.sampled_from(["Za", "Zb\n", "é", "x y"])), max_size=6
)


@given(
    st.sampled_from(real.names() or ("",)),
    st.sampled_from(["", "Zpersona"]),
    HISTORY,
    st.sampled_from(["", "hi", "/think", "</think>"]),
)
@settings(max_examples=80, deadline=None)
def test_warmed_prefixes_begin_every_prompt_and_replies_begin_alike(
    renderers, name, persona, history, utterance
) -> None:
    renderer = renderers[name]
    prefix = renderer.render_prefix(persona=persona, runtime_text=None, history=history)
    tokens = renderer.render(persona=persona, runtime_text=None, history=history, utterance=utterance).token_ids
    assert tokens[: len(prefix)] == prefix
    assert decoded(renderer, tokens).endswith(renderer.format.begun)
    for message in history:
        assert message.content.strip() in decoded(renderer, tokens)
