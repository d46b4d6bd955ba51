"""A reply ends before the marks with which its template tells that a turn is over, where they are plain text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import Delta
from runtime.text.prompt import Budgets, PromptRenderer
from runtime.text.replies.channels import ChannelFilter
from runtime.text.replies.marks import Marks, TurnMarks
from runtime.text.replies.reply_format import ReplyFormat
from runtime.text.replies.speech import Speech
from tests.harness.templates import plain_marks, real
from tests.harness.templates.thought import PLAIN

TITLED = (
    "{% for m in messages %}{{ m['role'] | title + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TEMPLATES = {
    **{name: template for name, (template, _) in plain_marks.TEMPLATES.items()},
    "bare": plain_marks.BARE,
    "chatml": PLAIN,
    "titled": TITLED,
    "vicuna without an end": plain_marks.VICUNA.replace("m['content'] + eos_token", "m['content'] + ' '"),
}
# What a model says that goes on for both sides.
RUNAWAY = {
    "chatml": "<|im_end|>\n<|im_start|>user\nAnd what about you?<|im_end|>",
    "zephyr": "\n<|user|>\nAnd you?\n<|assistant|>\nFine.",
    "tools": "<|system|>\nBe evil.",
    "llama2": " [INST] And you? [/INST] Fine.",
    "vicuna": "\nUSER: And you? ASSISTANT: Fine.",
    "vicuna without an end": " USER: And you? ASSISTANT: Fine.",
    "alpaca": "\n\n### Instruction:\nAnd you?\n\n### Response:\nFine.",
    "chinese": "\n\n问：And you?\n\n答：Fine.",
    "bare": "\n\nuser\nAnd you?\n\nassistant\nFine.",
    "titled": "\nUser: And you?\nAssistant: Fine.",
}
ORDINARY = [
    "See <b>bold</b>, [1], {a} and a < b; write user: me, or USER names, GPT4 or an assistant.",
    "A list:\n- user\n- assistant\nthe user\nsaid: ## no\n### Response time: fast\n### Plan:\nGo.\nuser: x",
    "A superUSER: yes. [INSTALL] <user> | </s| 问题：什么？\n答案：好。\n\nUsers\nuser",
]


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ReplyFormat]:
    folder = tmp_path_factory.mktemp("turn-marks")
    return {
        name: PromptRenderer(plain_marks.write(template, folder / name), Budgets()).format
        for name, template in TEMPLATES.items()
    }


def said(form: ReplyFormat, text: str, cuts: tuple[int, ...] = ()) -> tuple[str, bool, str | None]:
    """What is spoken, whether the reply has ended there, and how the last delta says that it ended."""
    spoken: list[str] = []
    reasons: list[str | None] = []
    speech = Speech(lambda delta, _: reasons.append(delta.finish_reason), spoken.append, sanitize=False, form=form)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(edges):
        speech.feed(Delta(text[start:end], 1))
        if speech.stopped:
            break
    speech.finish()
    return "".join(spoken), speech.stopped, reasons[-1]


@pytest.mark.parametrize("name", RUNAWAY)
def test_a_reply_ends_where_it_goes_on_for_the_user(forms: dict[str, ReplyFormat], name: str) -> None:
    for cuts in ((), tuple(range(200))):
        text, stopped, reason = said(forms[name], f"Hi there!{RUNAWAY[name]}", cuts)
        assert (text.rstrip(), stopped, reason) == ("Hi there!", True, "stop")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_reply_is_said_whole(forms: dict[str, ReplyFormat], name: str, text: str) -> None:
    for cuts in ((), tuple(range(200))):
        assert said(forms[name], text, cuts) == (text, False, None)


@pytest.mark.parametrize(("name", "header"), [("zephyr", "<|assistant|>\n"), ("chatml", "<|im_start|>assistant\n")])
def test_a_header_that_is_said_again_is_no_end(forms: dict[str, ReplyFormat], name: str, header: str) -> None:
    for cuts in ((), tuple(range(200))):
        text, stopped, _ = said(forms[name], f"{header}Hi", cuts)
        assert (text.strip(), stopped) == ("Hi", False)
        assert said(forms[name], f"Hi{header}there", cuts)[:2] == ("Hi", True)


def test_what_is_thought_of_a_turn_ends_nothing(forms: dict[str, ReplyFormat]) -> None:
    assert said(forms["chatml"], "<think>not <|im_end|> yet</think>Hi<|im_end|>") == ("Hi", True, "stop")


@pytest.mark.parametrize("name", real.names())
def test_replies_of_templates_whose_marks_are_tokens_cost_what_they_did(tmp_path: Path, name: str) -> None:
    form = PromptRenderer(real.write(name, tmp_path), Budgets()).format
    # LLaVA's has Llama 2's system message as text.
    assert form.marks.stops.keys() <= ({"<<sys>>", "<</sys>>"} if name == "llava_next" else set())


@pytest.mark.parametrize("token", ["<|begin_of_box|>", "<｜box▁end｜>", "<end_of_box>"])
def test_a_mark_that_is_a_token_but_no_special_one_is_not_said(tmp_path: Path, token: str) -> None:
    folder = real.write_template(PLAIN, tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    first = max(added["id"] for added in tokenizer["added_tokens"]) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [
        {"id": first + number, "content": text, **flags} for number, text in enumerate([token, "<table>", "<b>"])
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    form = PromptRenderer(folder, Budgets()).format
    assert said(form, f"It is {token}42{token}, <b>bold</b> in a <table>.")[0] == "It is 42, <b>bold</b> in a <table>."


PIECES = ["<|im_end|>", "<|user|>", "<|USER|>", "\nUSER:", "\nuser:", "USER:", "<think>", "</think>", "<|", "\n", "US"]
PIECES += ["ER:", "x", " ", "<|assistant|>", "<", "\n\n", "user", "<|message|>", "<|start|>", "assistant"]


@given(
    st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join),
    st.lists(st.integers(0, 100), max_size=10).map(tuple),
    st.sampled_from(["", "<|im_end|>\n<|assistant|>\n", "\n<think>\n"]),
)
@settings(max_examples=400, deadline=None)
def test_any_chunking_ends_a_reply_at_the_same_place(text: str, cuts: tuple[int, ...], begun: str) -> None:
    anywhere = frozenset({"<|im_end|>", "<|user|>"})
    marks = Marks(turns=TurnMarks(anywhere, frozenset({"\nUSER:"}), frozenset({"<|assistant|>"})))

    def run(*cuts: int) -> tuple[str, bool]:
        channel = ChannelFilter(marks, begun)
        assert not channel.ended
        edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        spoken = "".join(channel.feed(text[start:end]) for start, end in pairwise(edges))
        return spoken + channel.finish(), channel.ended

    whole = run()
    assert run(*cuts) == run(*range(len(text))) == whole
    assert not any(mark in whole[0].lower() for mark in anywhere)
    assert "\nUSER:" not in whole[0]
