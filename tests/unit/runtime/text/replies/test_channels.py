"""What a reply says beside speech is not said, wherever the text was cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines import Delta
from runtime.text.replies.channels import ChannelFilter
from runtime.text.replies.marks import DEFAULT_MARKS, PAIRS, Marks
from runtime.text.replies.reply_format import ReplyFormat
from runtime.text.replies.speech import Heard, Speech

PIECES = [*PAIRS, *(end for end in PAIRS.values() if end), "<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
PIECES += ["<|return|>", "<|eom|>", "assistant", "final", "analysis", " to=user", " to=self", "user", "\n\n", " ", "<"]
PIECES += ["Hi", "there.", "[", "a < b", "<b>", "<|", "thin", "k>", "</", "[THIN", "é🙂", "<THINK>"]
REPLIES = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=14).map("".join)


def filtered(text: str, cuts: tuple[int, ...] = (), begun: str = "", marks: Marks = DEFAULT_MARKS) -> str:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    channel = ChannelFilter(marks, begun)
    spoken = [channel.feed(text[start:end]) for start, end in pairwise(edges)]
    return "".join(spoken) + channel.finish()


@given(REPLIES, st.lists(st.integers(0, 120), max_size=12).map(tuple), st.sampled_from(["", "<think>\n", "<|start|>a"]))
@settings(max_examples=500, deadline=None)
def test_any_chunking_gives_the_same_speech(text: str, cuts: tuple[int, ...], begun: str) -> None:
    whole = filtered(text, begun=begun)
    assert filtered(text, cuts, begun) == whole
    assert filtered(text, tuple(range(len(text))), begun) == whole


# Letters that some ways to compare without regard to case take for others.
ALIKE = {"s": "\u017f", "k": "\u212a", "K": "\u212a", "i": "\u0131", "I": "\u0130", "S": "\u017f"}


@given(st.sampled_from([*PAIRS, *PAIRS.values(), "<|message|>"]), st.data())
def test_letters_that_only_resemble_a_marks_make_none_however_the_text_is_cut(mark: str, data: st.DataObject) -> None:
    alike = [letter if not data.draw(st.booleans()) else ALIKE.get(letter, letter) for letter in mark]
    text = f"Hi {''.join(alike)} there"
    cut = filtered(text, tuple(range(len(text))))
    assert filtered(text) == cut
    if "".join(alike) != mark:
        assert cut == text


@given(st.text(alphabet=st.characters(exclude_characters="<[◁")))
def test_text_without_marks_comes_out_as_it_is_and_at_once(text: str) -> None:
    channel = ChannelFilter()
    assert channel.feed(text) == text
    assert channel.finish() == ""


@pytest.mark.parametrize(
    "text", ["a < b", "[1] and [2]", "<b>bold</b>", "<", "3 <", "<thinker>", "[THINKING]", "<|x|>"]
)
def test_what_only_looks_like_a_mark_is_speech(text: str) -> None:
    assert filtered(text) == text
    assert filtered(text, tuple(range(len(text)))) == text


@pytest.mark.parametrize(("opens", "ends"), sorted(PAIRS.items()))
def test_every_pair_hides_what_is_between(opens: str, ends: str) -> None:
    assert filtered(f"Hi {opens}secret{ends} there") == ("Hi  there" if ends else "Hi ")
    assert filtered(f"{opens}secret{ends}\n\nHi") == ("Hi" if ends else "")
    if ends:
        assert filtered(f"secret{ends}\n\nHi", begun=f"assistant\n{opens}\n") == "Hi"


@pytest.mark.parametrize(
    ("text", "begun", "spoken"),
    [
        ("Okay.\n</think>\n\nHi", "<｜Assistant｜><think>\n", "Hi"),
        ("Hi", "<think>\n\n</think>\n\n", "Hi"),
        ("</think>Hi", "", "Hi"),
        ("<think>never ends", "", ""),
        ("<Think>x</THINK>Hi", "", "Hi"),
        ("<think>a <tool_call> b</think>Hi", "", "Hi"),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>", "", "Hi"),
        ("<|channel|>analysis<|message|>x<|end|>", "<|start|>assistant", ""),
        ("<|channel|>final<|message|>Hi", "<|start|>assistant", "Hi"),
        ("<|channel|>commentary to=functions.look <|constrain|>json<|message|>{}<|call|>", "<|start|>assistant", ""),
        ("Hi<|end|><|start|>assistant<|channel|>analysis<|message|>x", "<|channel|>final<|message|>", "Hi"),
        (" to=self<|message|>x<|eom|><|start|>assistant to=user<|message|>Hi<|eot|>", "<|start|>assistant", "Hi"),
        ("Hi<|start|>user<|message|>me too", "", "Hi"),
        ("<|channel>thought\nx\n<channel|>Hi<turn|>", "", "Hi<turn|>"),
        ("Hi [TOOL_CALLS] [{}]", "", "Hi "),
    ],
)
def test_only_what_is_addressed_to_the_user_is_speech(text: str, begun: str, spoken: str) -> None:
    assert filtered(text, begun=begun) == spoken
    assert filtered(text, tuple(range(len(text))), begun) == spoken


def test_marks_of_a_model_are_used_and_its_control_tokens_dropped() -> None:
    marks = Marks({"<ponder>": "</ponder>"}, dropped=["<|im_start|>"])
    assert filtered("<ponder>x</ponder>Hi<|im_start|> you", marks=marks) == "Hi you"


@given(REPLIES, st.lists(st.integers(0, 120), max_size=12).map(tuple), st.booleans())
@settings(max_examples=200, deadline=None)
def test_held_back_or_not_a_reply_is_the_same_speech_with_the_same_count(
    text: str, cuts: tuple[int, ...], held: bool
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:end] for start, end in pairwise(edges)]
    taken: list[tuple[Delta, Heard]] = []
    said: list[str] = []
    speech = Speech(lambda delta, heard: taken.append((delta, heard)), said.append, sanitize=False, held=held)
    for number, chunk in enumerate(chunks):
        if number == len(chunks) // 2:
            speech.release()
        speech.feed(Delta(chunk, 1))
    speech.release()
    speech.finish()
    assert "".join(said) == filtered(text)
    assert sum(delta.tokens for delta, _ in taken) == len(chunks) == speech.hidden_tokens + speech.spoken_tokens
    assert sum(heard.hidden for _, heard in taken) == speech.hidden_tokens


def test_thought_is_counted_up_to_its_end() -> None:
    speech = Speech(lambda delta, heard: None, lambda text: None, sanitize=True, form=ReplyFormat(begun="<think>\n"))
    for text in ("Okay", ",", "</think>", "\n\n", "Hi", " you"):
        speech.feed(Delta(text, 1))
    assert (speech.hidden_tokens, speech.spoken_tokens) == (3, 3)
