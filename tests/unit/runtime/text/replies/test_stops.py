"""A reply that ends where it says a stop text, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import Delta
from runtime.text.replies.speech import Speech
from runtime.text.replies.stops import StopFilter

LETTERS = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text up to the stop that is whole first, found letter by letter."""
    for end in range(1, len(text) + 1):
        whole = [stop for stop in stops if text[:end].endswith(stop)]
        if whole:
            return text[: end - max(map(len, whole))], True
    return text, False


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_the_reply_ends_before_the_first_stop_and_nothing_is_lost(pieces: list[str], stops: list[str]) -> None:
    cut = StopFilter(stops)
    said = ""
    for piece in pieces:
        said += cut.feed(piece)
    stopped = cut.stopped
    said += cut.finish()
    assert (said, stopped) == expected("".join(pieces), stops)


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_no_more_is_held_back_than_a_stop_could_need(pieces: list[str], stops: list[str]) -> None:
    cut = StopFilter(stops)
    given_out = taken = 0
    for piece in pieces:
        taken += len(piece)
        given_out += len(cut.feed(piece))
        if cut.stopped:
            return
        assert taken - given_out <= max((len(stop) - 1 for stop in stops), default=0)


def test_a_stop_text_in_thought_ends_nothing() -> None:
    said: list[str] = []
    speech = Speech(lambda delta, heard: None, said.append, sanitize=False, stops=("User:",))
    for piece in ("<think>", "User: says hi", "</think>", "Hello Us", "er: and more"):
        speech.feed(Delta(piece, 1))
        assert speech.stopped == ("more" in piece)
    speech.finish()
    assert "".join(said) == "Hello "
