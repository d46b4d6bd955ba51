"""The plan refuses the tokenizers and templates that the server would refuse, and says how a model thinks."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.config_reader import TEXT_SECTIONS, text_config
from pipeline.plan import BuildRequest
from pipeline.plan.prepare import Prepared, prepare
from pipeline.problem import WrongRequestError
from pipeline.source import read_facts, with_prompt_format
from runtime.host.machine import Gpu
from runtime.text.prompt import Budgets, PromptRenderer, vocabulary_size
from tests.harness.models import tiny
from tests.harness.templates import real
from tests.harness.trt import lane


def folder_with(template: str, folder: Path) -> Path:
    """A folder that is whole, with a template of a real model or one that is given."""
    lane.model(folder, max_position_embeddings=8192, vocab_size=512)
    (folder / "chat_template.jinja").unlink()
    source = real.source(template) if template.isidentifier() else template
    real.write_template(source, folder)
    return folder


def planned(folder: Path, **environment: str) -> Prepared:
    request = BuildRequest(chat=str(folder), method="none", lanes=("cpu",))
    return prepare(request, folder / "cache", environment)


def problems(folder: Path, **environment: str) -> list[str]:
    with pytest.raises(WrongRequestError) as caught:
        planned(folder, **environment)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_a_model_that_always_thinks_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    folder = folder_with(name, tmp_path)
    [line] = problems(folder)
    assert line.startswith("THINKING_MAX_TOKENS: expected a budget for thought")
    assert "set it to the tokens that thought may take" in line
    plan = planned(folder, THINKING_MAX_TOKENS="512").plan
    assert plan.chat is not None
    assert plan.chat.thinking == 512
    assert plan.chat.limits.max_output_len == 150 + 512
    assert plan.chat.limits.max_model_len >= 5525 + 150 + 512
    assert any(decision.name == "thought" and "512" in decision.value for decision in plan.decisions)


def test_a_budget_for_thought_that_leaves_no_room_for_a_reply_is_refused(tmp_path: Path) -> None:
    folder = folder_with("deepseekv3", tmp_path)
    environment = {"THINKING_MAX_TOKENS": "512", "TRT_MAX_OUTPUT_LEN": "512", "INFERENCE_ENGINE": "trt"}
    environment["TRT_MAX_BATCH_SIZE"] = "4"
    request = BuildRequest(chat=str(folder), method="none")
    with pytest.raises(WrongRequestError) as caught:
        prepare(request, folder / "cache", environment, gpu=Gpu("H100", 90, 80 << 30, 80 << 30))
    told = [str(problem) for problem in caught.value.problems]
    assert any(line.startswith("THINKING_MAX_TOKENS: expected less than 512") for line in told), told


@pytest.mark.parametrize("name", ["qwen3_5_think", "glm4moe", "gemma4"])
def test_the_switch_that_keeps_it_from_thinking_is_shown(tmp_path: Path, name: str) -> None:
    decisions = planned(folder_with(name, tmp_path)).plan.decisions
    assert [decision.value for decision in decisions if decision.name == "thought"] == ["off"]


@pytest.mark.parametrize("name", ["gptoss", "llama3_1", "idefics3", "gemma"])
def test_others_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    assert planned(folder_with(name, tmp_path)).plan.chat is not None


def broken(how: str, folder: Path) -> Path:
    folder_with("{{ messages[0]['content'] }}" if how == "template" else "qwen2_5", folder)
    if how == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    if how == "syntax":
        (folder / "chat_template.jinja").write_text("{% for %}")
    if how == "custom code":
        path = folder / "tokenizer_config.json"
        automatic = {"auto_map": {"AutoTokenizer": ["its.Own", None]}, "tokenizer_class": "Own"}
        path.write_text(json.dumps(json.loads(path.read_text()) | automatic))
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("a\nb\n")
    return folder


@pytest.mark.parametrize("how", ["template", "tokenizer", "syntax", "custom code"])
def test_what_the_server_refuses_the_plan_refuses_in_a_line(tmp_path: Path, how: str) -> None:
    folder = broken(how, tmp_path)
    with pytest.raises(ValueError, match="expected"):
        PromptRenderer(folder, Budgets())
    [line] = problems(folder)
    assert line.startswith("CHAT_MODEL: expected a")
    assert f", in {folder}, found " in line
    assert "\n" not in line


@pytest.mark.parametrize("nested", [False, True])
def test_a_token_without_an_embedding_is_refused_and_named(tmp_path: Path, nested: bool) -> None:
    """Words that a client may say, and marks of the template that a fine-tune added without resizing the embeddings."""
    folder = folder_with("qwen2_5", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    highest, text = PromptRenderer(folder, Budgets()).highest_token()
    for size in (2, 200, highest, highest + 1):
        sizes = {"vocab_size": size}
        whole = {name: value for name, value in config.items() if name != "vocab_size"}
        (folder / "config.json").write_text(json.dumps(whole | ({"text_config": sizes} if nested else sizes)))
        found = with_prompt_format(read_facts(str(folder), "CHAT_MODEL"), think=False).problems
        told = [str(problem) for problem in found]
        if size > highest:
            assert told == []
        else:
            assert len(told) == 1
            assert f"the {size} tokens that the model has, in {folder}, found token {highest}, {text!r};" in told[0]


NO_ENDS = ["2", "</s>", ["2"], [2, None], [[2]], 2.0, True, -1, 10**9, [2, 512], {"id": 2}]


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


@pytest.mark.parametrize("named", NO_ENDS)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_what_is_to_end_a_reply_is_a_token_of_the_model(tmp_path: Path, name: str, named: Any) -> None:
    folder = folder_with("qwen2_5", tmp_path)
    change(folder / name, eos_token_id=named)
    [line] = problems(folder)
    # What transformers' own class refuses is told in its words.
    assert "eos_token_id" in line
    assert line.startswith("CHAT_MODEL: expected ")


@pytest.mark.parametrize("key", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize(
    ("named", "right"), [("2", False), ([2], False), (1.5, False), (-2, False), (-1, True), (2, True)]
)
def test_what_begins_or_fills_up_a_text_is_a_token_or_none(tmp_path: Path, key: str, named: Any, right: bool) -> None:
    folder = folder_with("qwen2_5", tmp_path)
    change(folder / "generation_config.json", **{key: named})
    found = [
        str(problem) for problem in with_prompt_format(read_facts(str(folder), "CHAT_MODEL"), think=False).problems
    ]
    assert not found if right else len(found) == 1 and key in found[0]


@pytest.mark.parametrize("ends", [2, [2], [2, 3], [], None])
def test_ends_that_engines_understand_are_taken(tmp_path: Path, ends: Any) -> None:
    folder = folder_with("qwen2_5", tmp_path)
    change(folder / "generation_config.json", eos_token_id=ends)
    change(folder / "config.json", eos_token_id=ends)
    assert planned(folder).plan.chat is not None


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/chat.jinja"])
def test_a_template_with_a_byte_order_mark_is_refused(tmp_path: Path, name: str) -> None:
    folder = folder_with("qwen2_5", tmp_path)
    template = (folder / "chat_template.jinja").read_bytes()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(codecs.BOM_UTF8 + template)
    [line] = problems(folder)
    assert f"without a byte order mark in {name}" in line


@pytest.mark.parametrize("section", TEXT_SECTIONS)
@pytest.mark.parametrize("thinker", [False, True])
@pytest.mark.parametrize("beside", [None, 100, 10**6])
def test_a_model_with_several_senses_has_the_tokens_of_its_language_model(
    tmp_path: Path, section: str, thinker: bool, beside: int | None
) -> None:
    config: dict[str, Any] = {section: {"vocab_size": 256}}
    config = {"thinker_config": config} if thinker else config
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": beside, **config}))
    assert vocabulary_size(tmp_path) == 256
    assert text_config(json.loads((tmp_path / "config.json").read_bytes())).number("vocab_size") == 256


@pytest.mark.parametrize("where", ["chat_template.json", "additional_chat_templates"])
def test_templates_in_other_places_are_seen(tmp_path: Path, where: str) -> None:
    folder = folder_with("qwen3", tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    if where == "chat_template.json":
        (folder / where).write_text(json.dumps({"chat_template": template}))
    else:
        (folder / where).mkdir()
        (folder / where / "chat.jinja").write_text(template)
    facts = with_prompt_format(read_facts(str(folder), "CHAT_MODEL"), think=False)
    assert (facts.problems, facts.thought_off) == ((), ("enable_thinking",))


def test_the_tiny_models_of_other_tests_are_served(tmp_path: Path) -> None:
    assert PromptRenderer(tiny.tokenizer(tmp_path), Budgets()).format.stop_token_ids == ()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('A system message is required') }}", "line 1: A system message is required"),
        ("\n{% for m in messages %}{{ m.content", "line 2: unexpected end of template"),
        ("{{ 1 / 0 }}", "line 1: division by zero"),
    ],
)
def test_a_template_that_refuses_is_quoted_with_what_to_do(tmp_path: Path, template: str, reason: str) -> None:
    [line] = problems(folder_with(template, tmp_path))
    assert f"found one that refuses them: {reason}" in line
    assert line.endswith("; correct the chat template, or choose another instruct model")
