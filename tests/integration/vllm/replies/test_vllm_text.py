"""A reply's text does not depend on how much of the prompt vLLM's own detokenizer has read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from runtime.engines import Sampling
from runtime.engines.vllm.arguments import parameters
from runtime.engines.vllm.text import CONTEXT_TOKENS, forget_prompt
from tests.benchmarks.front import engine_request
from tests.harness.models.chat_templates import CONTROL, detokenizing

pytestmark = pytest.mark.engine

TOKENIZERS = detokenizing()


def state(tokenizer: PreTrainedTokenizerFast, prompt: list[int]) -> Any:
    """As much of a request as has to do with its text."""
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    request = engine_request("1", prompt, parameters(Sampling(max_tokens=500)))
    return SimpleNamespace(detokenizer=FastIncrementalDetokenizer(tokenizer, request))


def said(request: Any, reply: list[int]) -> list[str]:
    """What each token adds to the text."""
    texts = []
    for number, token in enumerate(reply, 1):
        request.detokenizer.update([token], False)
        texts.append(request.detokenizer.get_next_output_text(number == len(reply), True))
    return texts


SPOKEN = st.lists(
    st.sampled_from(["the cat", " so", "é", "🙂", "🙂🙂🙂🙂🙂🙂🙂🙂🙂", "你好", "\n", " ", "'s", "3.5", "", *CONTROL]),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@given(
    before=SPOKEN,
    end=st.sampled_from(["", "[/INST]", "<|im_start|>assistant\n", " ", "\n\n"]),
    after=SPOKEN,
    skipped=st.integers(0, 3),
)
@example(before="🙂" * 9, end="[/INST]", after="so", skipped=0)
@example(before="🙂" * 9, end="[/INST]", after="🙂 so", skipped=1)
@example(before="so [/INST]", end="[/INST]" * CONTEXT_TOKENS, after="so", skipped=0)
@settings(max_examples=300, deadline=None)
def test_the_text_is_the_same(name: str, before: str, end: str, after: str, skipped: int) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = tokenizer.encode(before + end, add_special_tokens=False)
    reply = tokenizer.encode(after, add_special_tokens=False)[skipped:]
    whole, short = state(tokenizer, prompt), state(tokenizer, prompt)
    forget_prompt(short, prompt)
    assert said(short, reply) == said(whole, reply)


def test_a_long_prompt_is_not_read() -> None:
    tokenizer = TOKENIZERS["bytes"]
    prompt = tokenizer.encode("the cat said so " * 200)
    request = state(tokenizer, prompt)
    stream = request.detokenizer.stream
    forget_prompt(request, prompt)
    assert request.detokenizer.stream is not stream
    assert said(request, tokenizer.encode(" cat")) == [" cat"]


def test_what_has_ended_or_is_short_is_left_alone() -> None:
    tokenizer = TOKENIZERS["bytes"]
    forget_prompt(None, [1] * 100)
    short = state(tokenizer, [1] * CONTEXT_TOKENS)
    stream = short.detokenizer.stream
    forget_prompt(short, [1] * CONTEXT_TOKENS)
    assert short.detokenizer.stream is stream
    silent = tokenizer.encode("[/INST]" * 100)
    muted = state(tokenizer, silent)
    stream = muted.detokenizer.stream
    forget_prompt(muted, silent)
    assert muted.detokenizer.stream is stream
