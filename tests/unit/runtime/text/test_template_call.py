"""Calling the template itself says the same as calling it through transformers, whatever the template does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from runtime.text import template_call
from runtime.text.template import ChatTemplate
from runtime.text.template_call import TemplateCall
from tests.harness.templates import real

CONTROL = re.compile(r"<\|\w+\|>")
CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# What templates do beside: each of these goes before a plain one.
DOINGS = (
    "{{ bos_token }}{{ eos_token }}{{ nobody_knows }}",
    "{% if tools %}T{% elif tools is none and documents is none %}N{% endif %}",
    "{% if tools is defined and documents is not defined %}D{% endif %}",
    "{% set messages = messages[1:] if messages[0]['role'] == 'system' else messages %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ range(2) }}",
    "{{ strftime_now('%Y') }}{{ messages | tojson(indent=1) }}",
    "{% macro say(m) %}[{{ m.role }}:{{ m.content | trim }}]{% endmacro %}{{ say(messages[-1]) }}",
    "{% if messages[-1]['content'] == 'refuse' %}{{ raise_exception('no ' ~ messages | length) }}{% endif %}",
    "{% if messages[-1]['content'] == 'stumble' %}{{ messages[0].nothing.more }}{% endif %}",
    "{% if messages[-1]['content'] == 'change' %}{{ messages.append(1) }}{% endif %}",
    "{% set add_generation_prompt = true %}{% if custom is not defined %}C{% endif %}{{ dict(a=1) }}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}",
    "{% block head %}{{ messages[0]['role'] }}{% endblock %}{% filter upper %}x{{ bos_token }}{% endfilter %}",
    "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}",
)
TURNS = st.lists(
    st.tuples(
        st.sampled_from(["user", "assistant", "system"]),
        st.sampled_from(["", "Hi", "refuse", "stumble", "change", " {{ bos_token }} \n", "<|im_end|>é"]) | st.text(),
    ),
    min_size=1,
    max_size=5,
)


def outcome(render: Any) -> tuple[str, str]:
    try:
        return "text", str(render())
    except Exception as error:  # whatever a template raises
        return type(error).__name__, str(error)


def both_ways(call: TemplateCall, turns: list[tuple[str, str]], begins: bool) -> list[tuple[str, str]]:
    assert call._short is not None
    messages = call.conversation(turns)
    return [
        outcome(lambda: call.apply(turns, reply_begins=begins)),
        outcome(
            lambda: call._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=begins, **call.told
            )
        ),
    ]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TemplateCall]:
    folder = tmp_path_factory.mktemp("calls")
    found = {
        name: ChatTemplate(PreTrainedTokenizerFast.from_pretrained(real.write(name, folder / name)), CONTROL)._call
        for name in real.names()
    }
    for number, doing in enumerate(DOINGS):
        place = real.write_template(doing + CHAT + BEGIN, folder / f"own{number}")
        found[f"own{number}"] = call = TemplateCall(PreTrainedTokenizerFast.from_pretrained(place))
        call.shorten([[("user", "Hi")]])
    return found


@given(st.sampled_from([*(f"own{number}" for number in range(len(DOINGS))), *real.names()]), TURNS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_both_ways_say_the_same(
    calls: dict[str, TemplateCall], name: str, turns: list[tuple[str, str]], begins: bool
) -> None:
    short, long = both_ways(calls[name], turns, begins)
    assert short == long


def test_a_conversation_leaves_nothing_to_the_next(calls: dict[str, TemplateCall]) -> None:
    for call in calls.values():
        first = outcome(lambda call=call: call.apply([("user", "Hi")]))
        outcome(lambda call=call: call.apply([("system", "Other"), ("user", "change")], reply_begins=False))
        assert outcome(lambda call=call: call.apply([("user", "Hi")])) == first


def test_a_template_that_says_something_else_then_is_called_through_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(real.write_template(CHAT + BEGIN, tmp_path))
    call = TemplateCall(tokenizer)
    samples = [[("user", "Hi")]]
    other = template_call._compiled(CHAT)
    with monkeypatch.context() as patched:
        patched.setattr(template_call, "_compiled", lambda source: other)
        call.shorten(samples)
    assert call._short is None
    assert call.apply(samples[0]).endswith("assistant\n")
    with monkeypatch.context() as patched:
        patched.setattr(template_call, "_compiled", lambda source: object())
        call.shorten(samples)
    assert call._short is None
    call.shorten(samples)
    assert call._short is not None


def test_what_a_probe_is_told_reaches_the_template(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(real.write_template("{{ mood }}" + CHAT, tmp_path))
    call = TemplateCall(tokenizer)
    call.told = {"mood": "calm"}
    call.shorten([[("user", "Hi")]])
    assert str(call.attempt([("user", "Hi")])).startswith("calm<")
    assert str(call.attempt([("user", "Hi")], mood="glad")).startswith("glad<")
