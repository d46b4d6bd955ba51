"""Keys as an operator writes them."""

from __future__ import annotations

from string import ascii_letters, digits, punctuation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.deployment.keys import KeysError, from_file, from_variable

BOM = b"\xef\xbb\xbf"
NAMES = st.text(ascii_letters + digits + "_.@-", min_size=1, max_size=64).filter(lambda name: name[0].isalnum())
# Keys as they are made: base64, hexadecimal, or with a prefix; the separators only at the end.
KEYS = st.builds(
    lambda body, padding: body + padding,
    st.text(ascii_letters + digits + "+/-_.!$%", min_size=1, max_size=40),
    st.sampled_from(["", "=", "=="]),
)


def pairs(text: str) -> list[tuple[str | None, str]]:
    return [(key.name, key.secret.get_secret_value()) for key in from_file(text.encode())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo", [(None, "one"), (None, "two")]),
        ("one, two", [(None, "one"), (None, "two")]),
        ("# a comment\n  # another, with a comma\none", [(None, "one")]),
        ("#\n\n \t\none # who has it, and where\n", [(None, "one")]),
        ("acme: k1\nacme=k2\n beta :k3 ", [("acme", "k1"), ("acme", "k2"), ("beta", "k3")]),
        ("a:1,b:2", [("a", "1"), ("b", "2")]),
        ("bG9uZw==\nacme: bG9uZw=", [(None, "bG9uZw=="), ("acme", "bG9uZw=")]),
        ("one\r\ntwo\rthree", [(None, "one"), (None, "two"), (None, "three")]),
        ("no#comment", [(None, "no#comment")]),
        ("same\nsame", [(None, "same")]),
        ("", []),
        ("# only\n", []),
    ],
)
def test_a_key_file(text: str, expected: list[tuple[str | None, str]]) -> None:
    assert pairs(text) == expected
    assert pairs("\ufeff" + text) == expected


@given(
    st.lists(st.tuples(st.none() | NAMES.filter(lambda name: not name.startswith("unnamed-")), KEYS), max_size=8),
    st.sampled_from([": ", ":", "=", " = "]),
    st.sampled_from(["\n", "\r\n", "\n\n# a comment, = : \n", ",", " , "]),
    st.booleans(),
)
def test_what_is_written_is_read(
    entries: list[tuple[str | None, str]], separator: str, end: str, with_bom: bool
) -> None:
    unique = list({key: (name, key) for name, key in entries}.values())
    text = end.join(key if name is None else f"{name}{separator}{key}" for name, key in unique)
    data = (BOM if with_bom else b"") + text.encode()
    assert [(key.name, key.secret.get_secret_value()) for key in from_file(data)] == unique


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ok\na b: hunter2", "line 2: expected a name"),
        (f"{'n' * 65}: hunter2", "line 1: expected a name"),
        (": hunter2", "line 1: expected a name"),
        ("unnamed-1: hunter2", "line 1: expected a name that does not begin"),
        ("a: hunter2\nb: hunter2", "line 2: expected a key of one holder"),
        ("hunter2\nb: hunter2", "line 2: expected a key of one holder"),
    ],
)
def test_what_is_no_name_or_has_two_holders_is_told_without_the_key(text: str, problem: str) -> None:
    with pytest.raises(KeysError) as caught:
        pairs(text)
    assert caught.value.problems[0].startswith(problem)
    assert "hunter2" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(KeysError) as caught:
        pairs(": a\n: b")
    assert len(caught.value.problems) == 2


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_give_keys_or_say_what_is_wrong(data: bytes) -> None:
    try:
        found = from_file(data)
    except KeysError as error:
        assert error.problems  # noqa: PT017 - either outcome is right
        return
    assert all(key.secret.get_secret_value().strip() for key in found)
    assert not any(key.secret.get_secret_value().startswith("\ufeff") for key in found)


@given(st.lists(st.text(ascii_letters + digits + punctuation.replace(",", ""), min_size=1, max_size=20), max_size=6))
def test_in_the_variable_nothing_but_commas_means_anything(keys: list[str]) -> None:
    found = from_variable(" ,".join(keys))
    assert [key.secret.get_secret_value() for key in found] == list(dict.fromkeys(keys))
    assert all(key.name is None for key in found)
