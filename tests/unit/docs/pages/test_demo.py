"""What the demo holds its replies to."""

from __future__ import annotations

import pytest

from tests.demos.chain import stutters


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("", False),
        ("Monsieur, monsieur, monsieur, monsieur, monsieur, monsieur!", True),
        ("no no no no no", False),
        ("NO no. No! no? no, no", True),
        ("a b a b a b a b a b a b a b", False),
        ("非常 非常 非常 非常 非常 非常", True),
    ],
)
def test_a_word_over_and_over_is_noticed(text: str, does: bool) -> None:
    assert stutters(text) is does
