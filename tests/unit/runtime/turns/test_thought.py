"""Thought is heard by nobody: no token, no final, no history, no first token; and it has a budget of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import Delta, Sampling
from runtime.text.prompt import Message, Prompt
from runtime.text.replies.marks import Marks, TurnMarks
from runtime.text.replies.reply_format import ReplyFormat
from tests.harness.scripted import ScriptedClassifier, ScriptedEngine, ScriptedRenderer, Words, serving

THINKING = ("<think>", "\n", "Okay,", " they", " say", " hi.", "</think>", "\n\n", "Hi", " there!")
HARMONY = ("<|channel|>", "analysis", "<|message|>", "Hm.", "<|end|>", "<|start|>", "assistant", "<|channel|>")
HARMONY += ("final", "<|message|>", "Hi", " there!")
OPENED = ReplyFormat(begun="<think>\n", thinks=True, encode=Words.ids_of)


def spoken(frames: list[dict[str, Any]]) -> str:
    text = "".join(frame["text"] for frame in frames if frame["type"] == "token")
    assert text == next(frame["normalized_text"] for frame in frames if frame["type"] == "final")
    return text


@pytest.mark.parametrize("sanitize", [True, False])
@pytest.mark.parametrize(
    ("reply", "form", "hidden"),
    [
        (THINKING, ReplyFormat(), 7),
        (THINKING[1:], OPENED, 6),
        (("".join(THINKING),), ReplyFormat(), 0),
        (("[THINK]", "Hm", "[/THINK]", "Hi", " there!"), ReplyFormat(), 3),
        (("<|channel>thought\n", "Hm", "<channel|>", "Hi", " there!"), ReplyFormat(), 3),
        (HARMONY, ReplyFormat(begun="<|start|>assistant"), 10),
        (("Hi", " there!", "<tool_call>", "{}", "</tool_call>"), ReplyFormat(), 3),
    ],
)
async def test_only_speech_is_said_and_remembered(
    reply: Sequence[str], form: ReplyFormat, hidden: int, sanitize: bool
) -> None:
    engine = ScriptedEngine(reply=reply)
    async with serving(engine, form=form) as running, running.client() as client:
        frames = await client.turn(user_utterance="Hi!", sampling={"sanitize_output": sanitize})
        assert spoken(frames) == "Hi there!"
        usage = frames[-1]["usage"]
        assert usage["completion_tokens"] == len(reply)
        assert usage.get("thinking_tokens", 0) == hidden
        await client.turn(user_utterance="And you?")
        assert engine.prompts[1] == ["[user]", "Hi!", "[assistant]", "Hi", "there!", "[user]", "And", "you?"]


async def test_the_first_token_is_the_first_spoken_one() -> None:
    engine = ScriptedEngine(reply=THINKING[:7])
    async with serving(engine) as running, running.client() as client:
        usage = (await client.turn(user_utterance="Hi!"))[-1]["usage"]
        # Nothing was spoken, so nothing was first.
        assert usage["ttft_ms"] is None
        assert usage["thinking_tokens"] == usage["completion_tokens"] == 7
        engine.reply = THINKING
        assert (await client.turn(user_utterance="Hi!"))[-1]["usage"]["ttft_ms"] is not None


async def test_thought_that_was_held_back_for_the_decision_stays_unsaid() -> None:
    async with (
        serving(ScriptedEngine(reply=THINKING), ScriptedClassifier(pause=0.05)) as running,
        running.client() as client,
    ):
        frames = await client.turn(user_utterance="Hi!")
        assert spoken(frames) == "Hi there!"
        assert frames[-1]["usage"]["thinking_tokens"] == 7


@given(
    st.lists(st.integers(0, 60), max_size=8),
    st.sampled_from(["<think>a</think>Hi", "Hi <b>you</b>", "<think>x", "<|channel>thought y<channel|>\nHi, you"]),
)
@settings(max_examples=30, deadline=None)
def test_any_chunking_is_the_same_speech_over_the_wire(cuts: list[int], text: str) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:end] for start, end in pairwise(edges)]

    async def said(reply: Sequence[str]) -> str:
        async with serving(ScriptedEngine(reply=reply)) as running, running.client() as client:
            return spoken(await client.turn(user_utterance="Hi!"))

    assert asyncio.run(said(chunks)) == asyncio.run(said([text]))


# The template closed the thought, and the model opens one all the same.
CLOSED = ReplyFormat(begun="<think>\n\n</think>\n\n", encode=Words.ids_of)


@pytest.mark.parametrize("thinking", [0, 3, 1000])
@pytest.mark.parametrize(
    ("reply", "heard"),
    [
        (THINKING, "Hi there!"),
        (("\n", *THINKING), "Hi there!"),
        (("Hi", " there!", *THINKING[:7]), "Hi there!"),
        (("Hi", *THINKING[:7], " there!"), "Hi there!"),
        ((*THINKING[:7], *THINKING[:7], "\n\n", "Hi", " there!"), "Hi there!"),
        (("<th", "ink", ">so</", "think>Hi there!"), "Hi there!"),
        (("<|channel>thought\nhm<channel|>", "Hi", " there!"), "Hi there!"),
        (("<think>",) + ("so",) * 500, ""),
    ],
)
async def test_thought_that_comes_though_the_template_closed_it_is_heard_by_nobody(
    reply: Sequence[str], heard: str, thinking: int
) -> None:
    engine = ScriptedEngine(script=lambda words: ("Bye",) if "</think>" in words and thinking else reply)
    async with serving(engine, form=CLOSED, thinking=thinking, max_out=40) as running, running.client() as client:
        frames = await client.turn(user_utterance="Hi!")
        text = spoken(frames)
        assert "so" not in text.split()
        assert "Okay" not in text
        if thinking in (0, 1000):  # where it is not cut off
            assert text == (heard or ("Bye" if thinking and len(reply) > 40 else ""))
        requests = len(engine.prompts)
        await client.turn(user_utterance="And you?")
        assert not {"so", "Okay,", "<think>"} & set(engine.prompts[requests])


@dataclass
class Behind(ScriptedEngine):
    """An engine whose steps wait, so that several deltas come as one, where nobody says that they must not."""

    together: int = 1

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        waiting: list[Delta] = []

        def wait(delta: Delta) -> None:
            waiting.append(delta)
            if delta.finish_reason is None and len(waiting) < self.together:
                return
            text, ids = "".join(one.text for one in waiting), [token for one in waiting for token in one.token_ids]
            tokens = sum(one.tokens for one in waiting)
            waiting.clear()
            on_delta(replace(delta, text=text, tokens=tokens, token_ids=ids))

        await super().generate(prompt, sampling, on_delta if sampling.each_token else wait, cache_salt)


def thinker(words: list[str]) -> Sequence[str]:
    """Thinks on and on until its thought is ended for it."""
    return ("Hi", " there!") if "</think>" in words else ("so",) * 500


@pytest.mark.parametrize("together", [1, 3])
async def test_thought_over_its_budget_is_cut_off_and_the_reply_goes_on(together: int) -> None:
    engine = Behind(script=thinker, together=together)
    async with serving(engine, form=OPENED, thinking=20, max_out=5) as running, running.client() as client:
        frames = await client.turn(user_utterance="Hi!")
        assert spoken(frames) == "Hi there!"
        usage = frames[-1]["usage"]
        assert (usage["thinking_tokens"], usage["completion_tokens"], usage["finish_reason"]) == (20, 22, "stop")
        # What was thought so far is in the second prompt, ended as the template ends it.
        assert engine.prompts[1] == [*["[user]", "Hi!"], *["so"] * 20, "</think>"]
        assert [sampling.max_tokens for sampling in engine.samplings] == [25, 5]
        assert (engine.held, engine.aborts) == (set(), 1)
        # And what it finds in the cache is its own key's.
        assert len(engine.salts) == 2
        assert len(set(engine.salts)) == 1


@pytest.mark.parametrize("together", [1, 3])
async def test_what_is_left_of_the_thoughts_budget_is_not_spoken(together: int) -> None:
    engine = Behind(together=together, reply=("Hm.", "</think>", *(f" word{n}" for n in range(50))))
    async with serving(engine, form=OPENED, thinking=20, max_out=5) as running, running.client() as client:
        frames = await client.turn(user_utterance="Hi!")
        assert spoken(frames) == "Word0 word1 word2 word3 word4"
        usage = frames[-1]["usage"]
        assert (usage["thinking_tokens"], usage["completion_tokens"], usage["finish_reason"]) == (2, 7, "length")


async def test_a_turn_that_ended_within_thought_goes_on() -> None:
    engine = ScriptedEngine(script=lambda words: ("Hi",) if "</think>" in words else ("Hm.", "<|im_end|>"))
    async with serving(engine, form=OPENED, thinking=20) as running, running.client() as client:
        assert spoken(await client.turn(user_utterance="Hi!")) == "Hi"
        assert engine.prompts[1] == ["[user]", "Hi!", "Hm.", "</think>"]


@pytest.mark.parametrize("reply", [("[TOOL_CALLS]", "{}"), ("<tool_call>",) * 30])
async def test_a_call_of_a_tool_that_never_ends_ends_the_turn_once(reply: Sequence[str]) -> None:
    engine = ScriptedEngine(reply=reply)
    async with serving(engine, thinking=5) as running, running.client() as client:
        frames = await client.turn(user_utterance="Hi!")
        assert spoken(frames) == ""
        assert len(engine.prompts) <= 2


async def test_stop_tokens_and_special_tokens_are_the_formats() -> None:
    engine = ScriptedEngine()
    form = ReplyFormat(stop_token_ids=(7,), shows_special_tokens=True)
    async with serving(engine, form=form) as running, running.client() as client:
        await client.turn(user_utterance="Hi!")
    assert engine.samplings[0].stop_token_ids == (7,)
    assert engine.samplings[0].show_special_tokens


class SometimesOpened(ScriptedRenderer):
    """Opens a thought beside a persona alone, and says so of those prompts."""

    def render(self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str) -> Prompt:
        """Render, with what the prompt ends with."""
        prompt = super().render(persona=persona, runtime_text=runtime_text, history=history, utterance=utterance)
        return replace(prompt, begun="<think>\n" if persona else None)


@pytest.mark.parametrize(("persona", "heard"), [("Be kind.", "Hi"), ("", "Hm. Hi")])
async def test_a_thought_that_only_this_prompt_has_opened_is_not_said(persona: str, heard: str) -> None:
    engine = ScriptedEngine(reply=("Hm.", "</think>", " Hi"))
    async with serving(engine, renderer=SometimesOpened()) as running, running.client() as client:
        assert spoken(await client.turn(user_utterance="Hi!", persona_text=persona)) == heard


async def test_a_reply_that_goes_on_for_the_user_ends_and_is_remembered_so() -> None:
    engine = ScriptedEngine(reply=("Hi", " there!", "<|im_", "end|>", "<|im_start|>user", "\nAnd", " you?"))
    form = ReplyFormat(Marks(turns=TurnMarks(frozenset({"<|im_start|>", "<|im_end|>"}))))
    async with serving(engine, form=form) as running, running.client() as client:
        frames = await client.turn(user_utterance="Hi!")
        assert spoken(frames) == "Hi there!"
        assert frames[-1]["usage"]["finish_reason"] == "stop"
        await client.turn(user_utterance="Bye!")
        assert engine.prompts[1] == ["[user]", "Hi!", "[assistant]", "Hi", "there!", "[user]", "Bye!"]
