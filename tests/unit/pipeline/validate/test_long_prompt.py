"""A fault that shows at the end of a long prompt alone is found there, whatever the float model does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lanes.gate_specs import LEAST_LONG_PROMPT
from pipeline.stages.stage import StageError
from pipeline.validate import long_prompt
from pipeline.validate.long_prompt import LongPrompt, long_prompt_of, long_prompt_ratio
from runtime.artifact import Limits
from runtime.engines import Delta, Sampling


class Words:
    """A tokenizer of words."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [hash(word) % 1000 for word in text.split()]}


class Reader:
    """An engine that knows the text, as far as a rule lets it."""

    def __init__(self, prompt: LongPrompt, knows: Callable[[int, int], bool]) -> None:
        self.prompt, self.knows = prompt, knows
        self.lengths: list[int] = []

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, each: Callable[[Delta], None], salt: str | None = None
    ) -> None:
        assert (sampling.max_tokens, sampling.temperature) == (1, 0.0)
        self.lengths.append(len(prompt))
        ends = [end for end in self.prompt.ends if self.prompt.tokens[end - len(prompt) : end] == prompt]
        end = next(end for end in ends if end - len(prompt) in (0, self.prompt.short_start))
        right = self.prompt.tokens[end]
        each(Delta("x", 1, "length", token_ids=[right if self.knows(len(prompt), end) else right + 1]))


def limits(input_len: int, model_len: int = 0) -> Limits:
    return Limits(max_batch_size=1, max_input_len=input_len, max_output_len=8, max_model_len=model_len or input_len + 8)


def prompt_of(input_len: int, model_len: int = 0) -> LongPrompt:
    made = long_prompt_of(Words(), ["one two three four five", "six seven"], limits(input_len, model_len))  # type: ignore[arg-type]
    assert made is not None
    return made


@settings(max_examples=30, deadline=None)
@given(st.integers(1025, 9000), st.integers(0, 20))
def test_the_text_fills_the_longest_prompt_and_no_more(input_len: int, room: int) -> None:
    made = prompt_of(input_len, input_len + room)
    longest = min(input_len, input_len + room - 1)
    assert made.ends[-1] == longest == len(made.tokens) - 1
    assert len(made.ends) == long_prompt.PROBES
    assert 0 < made.short_start < made.ends[0] < made.ends[-1]
    assert longest - made.short_start < 512, "a short prompt is one that the other texts are as long as"


@pytest.mark.parametrize("input_len", [16, 512, 1024])
def test_where_prompts_are_short_the_held_out_texts_are_enough(input_len: int) -> None:
    assert long_prompt_of(Words(), ["a b"], limits(input_len)) is None  # type: ignore[arg-type]


def test_no_text_is_told() -> None:
    with pytest.raises(StageError, match="expected held-out text"):
        long_prompt_of(Words(), ["", " "], limits(2000))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("knows", "passes"),
    [
        (lambda length, end: True, True),
        (lambda length, end: False, True),  # it knows nothing anywhere: the other gates are for that
        (lambda length, end: end % 2 == 0, True),
        (lambda length, end: length > 600 or end % 3 == 0, True),  # more text helps
        (lambda length, end: length < 600, False),  # positions are broken far out
        (lambda length, end: length < 600 or end % 3 == 0, False),
    ],
)
async def test_what_is_right_with_a_short_prompt_must_be_with_a_long_one(
    knows: Callable[[int, int], bool], passes: bool
) -> None:
    made = prompt_of(3000)
    engine = Reader(made, knows)
    ratio = await long_prompt_ratio(engine, made)  # type: ignore[arg-type]
    assert math.isfinite(ratio)
    assert (ratio >= LEAST_LONG_PROMPT) == passes
    # The first comes alone, so that the others find it in the prefix cache.
    assert engine.lengths[0] == made.ends[0]
    assert max(engine.lengths) == 3000


async def test_an_engine_that_tells_no_tokens_is_told() -> None:
    class Mute(Reader):
        async def generate(self, prompt, sampling, each, salt=None) -> None:
            each(Delta("x", 1, "length"))

    made = prompt_of(2000)
    with pytest.raises(StageError, match="tell its tokens"):
        await long_prompt_ratio(Mute(made, lambda *_: True), made)  # type: ignore[arg-type]
