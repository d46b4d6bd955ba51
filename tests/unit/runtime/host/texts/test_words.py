"""Many words as one pattern: the longest at each place, whatever they are, and at no cost for their number."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.host.texts.words import DEEPEST, any_of, cases, folded

WORDS = st.lists(st.text("abA<[]().*|\\\n ßİ", min_size=1, max_size=6), max_size=8)
TEXTS = st.text("abAB<[].*\\\n ßİ", max_size=30)


def spans(pattern: str, text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(pattern, text)]


def one_by_one(words: list[str]) -> str:
    return "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)"


@given(WORDS, TEXTS)
def test_one_pattern_finds_the_longest_of_many_words(words: list[str], text: str) -> None:
    assert spans(any_of(words), text) == spans(one_by_one(words), text)


@given(WORDS, TEXTS)
def test_in_any_case_each_letter_is_found_in_both(words: list[str], text: str) -> None:
    """Letters whose other case is none, or two letters, are found as they are."""
    assert spans(any_of(words, any_case=True), text) == spans(one_by_one([*map(folded, words)]), folded(text))
    assert all(len(folded(text)) == len(text) and folded(one) == folded(text) for one in (text, folded(text)))
    assert all(len(one) == 1 for char in text for one in cases(char))


@pytest.mark.parametrize("words", [["a" * 5_000], ["a" * 5_000, "a" * 4_999 + "b"]])
def test_a_word_may_be_long(words: list[str]) -> None:
    pattern = re.compile(any_of(words))
    assert all(pattern.fullmatch(word) for word in words)
    assert not pattern.search("a" * 4_999)


@pytest.mark.parametrize("number", [DEEPEST - 1, DEEPEST, DEEPEST + 1, 1_000])
def test_words_may_hold_one_another_however_many(number: int) -> None:
    """As reserved runs of spaces do: each could be a group within the group of the one before."""
    pattern = re.compile(any_of("a" * length for length in range(1, number + 1)))
    for length in (1, 2, number - 1, number):
        assert pattern.match("a" * length + "b").span() == (0, length)  # type: ignore[union-attr]
    assert pattern.match("a" * (number + 5)).span() == (0, number)  # type: ignore[union-attr]


def test_a_place_costs_no_more_for_more_words() -> None:
    """Counted by what the pattern can try at one place: the branches of each group on the way to a word."""

    def tried(number: int) -> int:
        pattern = any_of(f"sk-{n:04x}-{n * 7919 % 65536:04x}" for n in range(number))
        widest = most = 0
        depth: list[int] = []
        for char in pattern:
            if char == "(":
                depth.append(1)
            elif char == "|":
                depth[-1] += 1
                widest = max(widest, depth[-1])
            elif char == ")":
                depth.pop()
            most = max(most, len(depth))
        return widest * most

    assert tried(8_000) <= 16 * 5
    assert tried(8_000) <= 2 * tried(500)


def test_what_is_empty_is_no_word() -> None:
    assert any_of([""]) == any_of([])
    assert any_of(["", "a"]) == any_of(["a"])
