"""Labelled utterances that a user brings: read strictly, told by their line, and held against the classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.source.utterance_file import (
    LEAST_OF_A_KIND,
    ToolUtterance,
    UtterancesError,
    coverage_of,
    read_utterances,
    utterances_for,
)
from runtime.artifact import ToolLabel

LABELS = ("none", "screen", "play_music", "set_timer")
TOOLS = (
    ToolLabel(label=1, name="take_screenshot"),
    ToolLabel(label=2, name="music"),
    ToolLabel(label=3, name="set_timer"),
)


def write(folder: Path, *rows: Any, content: bytes | None = None) -> Path:
    path = folder / "utterances.jsonl"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(lines.encode() if content is None else content)
    return path


def found(folder: Path, *rows: Any, independent: bool = True) -> tuple[ToolUtterance, ...]:
    return utterances_for(read_utterances(write(folder, *rows)), LABELS, TOOLS, independent=independent).utterances


def padded(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Enough of it, and of what asks for nothing."""
    return [row] * LEAST_OF_A_KIND + [{"text": "hi", "labels": []}] * LEAST_OF_A_KIND


@pytest.mark.parametrize(
    ("row", "turns", "tools"),
    [
        ({"text": "jazz!", "label": "play_music"}, ("jazz!",), {"music"}),
        ({"text": "jazz!", "label": "music"}, ("jazz!",), {"music"}),
        ({"text": "jazz!", "label": "Play_Music"}, ("jazz!",), {"music"}),
        ({"text": "jazz!", "label": 2}, ("jazz!",), {"music"}),
        ({"text": "jazz!", "label": "2"}, ("jazz!",), {"music"}),
        ({"text": "thanks", "label": "none"}, ("thanks",), set()),
        ({"text": "thanks", "labels": []}, ("thanks",), set()),
        ({"text": "thanks", "label": None}, ("thanks",), set()),
        ({"turns": ["hi", "jazz"], "labels": ["music", "screen"]}, ("hi", "jazz"), {"music", "take_screenshot"}),
        ({"text": "a\u2028b\x85c", "label": "set_timer", "id": 7}, ("a\u2028b\x85c",), {"set_timer"}),
    ],
)
def test_a_row_is_read_as_it_is_meant(tmp_path: Path, row: dict[str, Any], turns: tuple[str, ...], tools: set) -> None:
    assert found(tmp_path, *padded(row))[0] == ToolUtterance(turns, frozenset(tools))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "none in"),
        (b"\n \n", "none in"),
        (b"{", "line 1: no JSON"),
        (b"[1]", "line 1: the row"),
        (b"7", "line 1: the row"),
        (b'{"label": "x"}', "expected one of text and turns"),
        (b'{"text": "a", "turns": ["b"], "label": "x"}', "expected one of text and turns"),
        (b'{"text": "a"}', "expected one of label and labels"),
        (b'{"text": "a", "label": "x", "labels": ["y"]}', "expected one of label and labels"),
        (b'{"text": "", "label": "x"}', "line 1: text"),
        (b'{"text": "  ", "label": "x"}', "line 1: text"),
        (b'{"turns": [], "label": "x"}', "line 1: turns"),
        (b'{"text": 5, "label": "x"}', "line 1: text"),
        (b'{"text": "a", "label": true}', "line 1: label"),
        (b'{"text": "a", "label": 1.5}', "line 1: label"),
        (b'{"text": "a", "labels": "x"}', "line 1: labels"),
        (b'{"text": "a", "label": "x"}\n\n{"text": 1}', "line 3: text"),
        (b'{"text": "\xff", "label": "x"}', "which is not UTF-8"),
        ("{}".encode("utf-16"), "which is not UTF-8"),
        (b"[" * 100_000, "line 1: no JSON"),
    ],
)
def test_what_is_no_labelled_utterance_is_told_by_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(UtterancesError, match=told) as caught:
        read_utterances(write(tmp_path, content=content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["nothing.jsonl", ".", "~nobody-here/x", "a\0b"])
def test_a_path_that_cannot_be_read_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(UtterancesError) as caught:
        read_utterances(Path(path) if path.startswith("~") else tmp_path / path)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_other_ends_of_lines_are_read(tmp_path: Path) -> None:
    rows = read_utterances(write(tmp_path, content=b'\xef\xbb\xbf{"text": "a", "label": "x"}\r\n\r\n')).rows
    assert [(row.line, row.turns, row.labels) for row in rows] == [(1, ("a",), ("x",))]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_content_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.mktemp("any"), content=content)
    told = ""
    try:
        read_utterances(path)
    except UtterancesError as error:
        told = str(error)
    assert "\n" not in told


def test_labels_that_the_classifier_has_not_are_told_with_their_lines(tmp_path: Path) -> None:
    with pytest.raises(UtterancesError, match=r"line 2: 'dance', which fits none of .*; and 1 more"):
        found(tmp_path, {"text": "a", "label": "none"}, *[{"text": "b", "label": "dance"}] * 4)


def test_a_classifier_that_says_one_thing_at_a_time_takes_one_tool_a_row(tmp_path: Path) -> None:
    rows = padded({"text": "a", "labels": ["music", "screen"]})
    assert found(tmp_path, *rows, independent=True)
    with pytest.raises(UtterancesError, match="one at a time"):
        found(tmp_path, *rows, independent=False)


def test_too_few_of_a_kind_say_nothing(tmp_path: Path) -> None:
    music, quiet = {"text": "jazz", "label": "music"}, {"text": "hi", "labels": []}
    with pytest.raises(UtterancesError, match="1 that ask for music, which says nothing; 10 do"):
        found(tmp_path, music, *[quiet] * 20)
    with pytest.raises(UtterancesError, match="2 that do not ask for music"):
        found(tmp_path, *[music] * 20, quiet, quiet)


def test_a_number_for_a_classifier_with_one_label_is_not_guessed_at(tmp_path: Path) -> None:
    """0 may be its only label's index, or mean no."""
    file = read_utterances(write(tmp_path, *padded({"text": "look", "label": 0})))
    with pytest.raises(UtterancesError, match="of a classifier with one label"):
        utterances_for(file, ("screen",), TOOLS[:1], independent=False)


def test_a_name_that_is_a_tool_and_another_tools_label_is_not_guessed_at(tmp_path: Path) -> None:
    tools = (ToolLabel(label=1, name="play_music"), ToolLabel(label=2, name="jazz"))
    file = read_utterances(write(tmp_path, *padded({"text": "a", "label": "play_music"})))
    with pytest.raises(UtterancesError, match="a label that means another"):
        utterances_for(file, LABELS, tools, independent=True)


def test_tools_that_no_utterance_asks_for_are_not_measured(tmp_path: Path) -> None:
    own = found(tmp_path, *padded({"text": "jazz", "label": "music"}))
    coverage = coverage_of(TOOLS, own)
    assert (coverage.own, coverage.embedded, coverage.missing) == (("music",), ("take_screenshot",), ("set_timer",))
    assert coverage_of(TOOLS[1:], ()).missing == ("music", "set_timer")
    assert not coverage_of(TOOLS[1:], ()).measured
