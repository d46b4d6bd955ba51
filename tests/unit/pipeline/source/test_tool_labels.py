"""The label that means yes: unmistakable, or refused; whatever negates it, wherever it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.source.tool_labels import (
    DOUBTS,
    NEGATIONS,
    LabelsError,
    Meaning,
    labels_of,
    meaning_of,
    named_label,
    positive_label,
)

AFFIRMED = ["screen", "screenshot", "take_screenshot", "TakeScreenshot", "SCREEN", "screen related", "yes", "True"]
NEGATED = [
    *("no_screenshot", "no-screen", "NoScreenshot", "noscreenshot", "NO_SCREENSHOT", "non-screen", "nonscreen"),
    *("not_screen_related", "not on screen", "unscreened", "unrelated_to_screen", "screen_unrelated", "without screen"),
    *(
        "isn't on screen",
        "isn\u2019t_screen",
        "doesnt_need_screen",
        "don't take a screenshot",
        "does_not_need_screenshot",
    ),
    *("cannot_see_screen", "screenless", "screen-free", "!screenshot", "¬screen", "screenshot_false", "screen_none"),
    *("untrue", "nonpositive", "No", "none", "false", "NEGATIVE", "n", "skip_screenshot", "off_screen", "offscreen"),
    *(
        "kein_screenshot",
        "pas de screenshot",
        "disable screen",
        "irrelevant_screen",
        "other_than_screen",
        "anti-screen",
    ),
]
OTHERS = ["chat", "understood", "unit_test", "LABEL_0", "label 1", "none of a kind? no", "vision", "0", "1"]


@pytest.mark.parametrize(
    "labels",
    [
        ["screenshot_already_taken", "request_image"],
        ["text_instead_of_screenshot", "grab"],
        ["yes_text_only", "image"],
        ["screenshotAttached", "look"],
        ["previous screenshot", "capture"],
    ],
)
def test_one_that_is_there_already_or_something_else_is_no_plain_yes(labels: list[str]) -> None:
    assert positive_label(labels) is None
    assert meaning_of(labels[0]) is Meaning.UNCLEAR


@pytest.mark.parametrize("label", AFFIRMED)
def test_a_yes_is_a_yes(label: str) -> None:
    assert meaning_of(label) is Meaning.YES


@pytest.mark.parametrize("label", NEGATED)
def test_a_negation_is_a_no(label: str) -> None:
    assert meaning_of(label) is Meaning.NO


@pytest.mark.parametrize("label", OTHERS)
def test_what_says_neither_is_not_a_yes(label: str) -> None:
    assert meaning_of(label) in (Meaning.OTHER, Meaning.NO)


@given(
    yes=st.sampled_from(AFFIRMED),
    negation=st.sampled_from(sorted(NEGATIONS)),
    gap=st.sampled_from(["_", "-", " ", ".", "/"]),
    before=st.booleans(),
    change=st.sampled_from([str, str.upper, str.lower, str.title]),
)
def test_any_negation_turns_any_yes(yes, negation, gap, before, change) -> None:
    label = change(negation + gap + yes if before else yes + gap + negation)
    assert meaning_of(label) is Meaning.NO
    assert positive_label([label, yes]) == 1
    assert positive_label([yes, label]) == 0
    assert positive_label([label, label]) is None


@given(
    doubt=st.sampled_from(sorted(DOUBTS)),
    yes=st.sampled_from(AFFIRMED),
    gap=st.sampled_from(["_", "-", " ", ".", "/"]),
    before=st.booleans(),
)
def test_a_yes_that_is_in_doubt_is_left_to_the_user(doubt: str, yes: str, gap: str, before: bool) -> None:
    label = doubt + gap + yes if before else yes + gap + doubt
    assert meaning_of(label) is Meaning.UNCLEAR
    assert positive_label([label, "chat"]) is positive_label([label, yes]) is None


@pytest.mark.parametrize(
    "labels",
    [
        *(("sunscreen", "chat"), ("touchscreen", "screenshot"), ("screenplay", "chat"), ("screensaver", "no")),
        *(("LABEL_0", "LABEL_1"), ("0", "1"), ("a", "b"), ("no_screenshot", "not_screen"), ("no", "none"), ("only",)),
        *(("screenshot", "screen"), ("yes", "screen"), ("screen_0", "screen_1"), ("not_unscreened", "screen")),
        *(("no nothing on screen", "screenshot"), ("no_screenshot",), ("chat", "vision")),
    ],
)
def test_what_could_be_read_in_two_ways_or_none_is_refused(labels: tuple[str, ...]) -> None:
    assert positive_label(labels) is None


@pytest.mark.parametrize(
    ("labels", "index"),
    [
        *((("no", "take_screenshot"), 1), (("no_screenshot", "take_screenshot"), 1), (("screen", "no_screen"), 0)),
        *((("not_screen_related", "screen_related"), 1), (("screenshot", "other"), 0), (("chat", "look at screen"), 1)),
        *((("negative", "positive"), 1), (("YES", "NO"), 0), (("false", "true"), 1), (("screenshot",), 0)),
    ],
)
def test_what_is_plain_is_taken(labels: tuple[str, ...], index: int) -> None:
    assert positive_label(labels) == index


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": "many"}, ("LABEL_0", "LABEL_1")),
        ({"id2label": None}, ("LABEL_0", "LABEL_1")),
        ({"id2label": {"1": "yes", "0": "no"}}, ("no", "yes")),
        ({"id2label": {0: "no", 1: "yes"}}, ("no", "yes")),
        ({"id2label": ["no", "yes"]}, ("no", "yes")),
        ({"label2id": {"yes": 1, "no": 0}}, ("no", "yes")),
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"yes": "1", "no": "0"}}, ("no", "yes")),
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}, ("no", "yes")),
    ],
)
def test_the_labels_of_a_config(config: dict[str, object], labels: tuple[str, ...]) -> None:
    assert labels_of(config) == labels


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": {"1": "no", "2": "yes"}},
        {"id2label": {"no": 0, "yes": 1}},
        {"id2label": {"0": None, "1": "yes"}},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 1, "yes": 0}},
        {"label2id": {"no": 1, "yes": 1}},
    ],
)
def test_labels_that_contradict_themselves_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(LabelsError):
        labels_of(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"id2label": JSON, "label2id": JSON, "num_labels": JSON}))
def test_a_config_of_any_kind_has_labels_or_is_refused(config: dict[str, object]) -> None:
    try:
        labels = labels_of(config)
    except LabelsError:
        return
    assert labels
    positive = positive_label(labels)
    assert positive is None or meaning_of(labels[positive]) is Meaning.YES


@pytest.mark.parametrize(
    ("name", "index"), [("b", 1), ("B", 1), (" a ", 0), ("0", 0), ("1", 1), ("2", 2), ("Word", 2), ("word", 3)]
)
def test_a_label_is_named_by_its_name_or_its_index(name: str, index: int) -> None:
    assert named_label(["a", "b", "Word", "word"], name) == index


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (["a", "b"], "c"),
        (["a", "b"], "2"),
        (["a", "b"], "-1"),
        (["1", "0"], "0"),
        (["a", "a"], "a"),
        (["Ab", "aB"], "ab"),
    ],
)
def test_a_name_that_fits_none_or_more_than_one_is_refused(labels: list[str], name: str) -> None:
    with pytest.raises(LabelsError):
        named_label(labels, name)
