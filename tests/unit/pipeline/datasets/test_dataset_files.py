"""Calibration files as people have them: the plan tells what is wrong, and what it accepts can be calibrated on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.datasets import checks, dataset_problem, files
from pipeline.plan import BuildRequest, CalibrationPlan, hardware, prepare
from pipeline.problem import Problem, WrongRequestError
from pipeline.quantize.calibration import calibrate
from pipeline.stages.stage import StageError
from runtime.artifact import Calibration
from tests.harness.builds import standins
from tests.harness.builds.progress import RecordedProgress
from tests.harness.models import tiny

GOOD = json.dumps({"text": "hello there my friend, how are you doing today in this fine town"}) + "\n"
LONG = "and some more words to make it long enough"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a token for each byte."""
    return tiny.tokenizer(tmp_path_factory.mktemp("model"))


def done(model: Path, file: Path, length: int = 64) -> Calibration:
    plan = CalibrationPlan(str(file), 4, length)
    out = file.parent / "out"
    out.mkdir(exist_ok=True)
    return calibrate(plan, model, out, seed=1, parquet_python=Path(sys.executable), progress=RecordedProgress())


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def row(**fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


TAKEN: list[tuple[str, str | bytes]] = [
    ("mark.jsonl", "\ufeff" + GOOD),
    ("mark.txt", "\ufeffone two three four five six seven eight nine"),
    ("separator.jsonl", row(text=f"first line\u2028second line, {LONG}") + GOOD),
    ("next-line.jsonl", row(text=f"first line\x85second line, {LONG}")),
    ("windows.txt", f"one two three four five six seven eight\r\n\r\nanother paragraph, {LONG}\r\n"),
    ("windows.jsonl", GOOD.replace("\n", "\r\n") * 3),
    ("no-end.jsonl", GOOD.rstrip()),
    ("blank-lines.jsonl", f"\n\n{GOOD}\n\n{GOOD}\n"),
    (
        "empty-turn.jsonl",
        GOOD + row(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]),
    ),
    ("tool-turn.jsonl", GOOD + row(messages=[{"role": "tool", "content": "42"}])),
    ("parts.jsonl", GOOD + row(messages=[{"role": "user", "content": [{"type": "text", "text": "hi there"}]}])),
    ("mixed.jsonl", GOOD + "5\nNaN\n[1, 2]\nnull\n" + json.dumps("a bare text, " + LONG) + "\n{}\n"),
    ("half.jsonl", '{"text": "half of a pair \\ud83d, ' + LONG + '"}\n'),
    ("long-line.jsonl", row(text="word " * 200_000)),
    ("long-turn.jsonl", row(messages=[{"role": "user", "content": "word " * 200_000}])),
    ("many.jsonl", GOOD * 20_000),
    ("chinese.txt", "我们今天去公园散步,天气很好,孩子们在湖边喂鸭子,老人们在树下下棋聊天。"),
    ("spaces in its [b] name.txt", "one two three four five six seven eight nine"),
]
REFUSED: list[tuple[str, str | bytes, str]] = [
    ("broken.jsonl", GOOD + '{"text": \n' + GOOD, "expected a JSON object in each line, found Expecting value"),
    ("empty.jsonl", "", "expected texts to calibrate on, found none in"),
    ("empty.txt", "", "expected texts to calibrate on, found none in"),
    ("mark-alone.txt", "\ufeff", "expected texts to calibrate on, found none in"),
    ("blank.txt", "\n\n \n\n", "expected texts to calibrate on, found none in"),
    ("latin.jsonl", '{"text":"caf\u00e9"}\n'.encode("latin1"), "expected UTF-8 text, found the byte 0xe9 at 12 in"),
    ("wide.txt", "hello there my friend how are you".encode("utf-16"), "expected UTF-8 text, found UTF-16 in"),
    ("wide.jsonl", GOOD.encode("utf-16-be"), "expected UTF-8 text, found a NUL at 0"),
    ("unmarked.txt", "hello there my friend".encode("utf-16-le"), "expected UTF-8 text, found a NUL at 1"),
    ("numbers.jsonl", "5\n6\n", "expected a row with text, messages, or instruction and output, found int in"),
    ("constant.jsonl", "NaN\n", "found float in"),
    ("array.jsonl", "[1, 2]\n", "found list in"),
    ("nothing.jsonl", "{}\n", "found nothing in"),
    ("deep.jsonl", "[" * 200_000 + "]" * 200_000 + "\n", "expected a JSON object in each line, found"),
    ("digits.jsonl", "1" * 10_000 + "\n", "AWQ_CALIB_DATASET: expected"),
    ("short.txt", "hi\n\nyou", "expected texts of 8 tokens or more, found none of 2 in"),
    ("short.jsonl", row(text="hi") + row(messages=[{"role": "user", "content": "you"}]), "found none of 2 in"),
    ("binary.txt", bytes(range(256)) * 10, "expected UTF-8 text, found"),
]


@pytest.mark.parametrize(("name", "content"), TAKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_what_can_be_read_is_taken(model: Path, tmp_path: Path, name: str, content: str | bytes) -> None:
    file = write(tmp_path, name, content)
    assert dataset_problem(str(file)) is None
    assert done(model, file).samples >= 1


def planned(dataset: str, monkeypatch: pytest.MonkeyPatch, method: str = "awq") -> list[str]:
    monkeypatch.setattr(hardware, "describe", standins.describe)
    request = BuildRequest(chat="embedded", lanes=("cpu",), method=method, fallback=("magic",))
    with pytest.raises(WrongRequestError) as caught:
        prepare.prepare(request, Path("cache"), {"AWQ_CALIB_DATASET": dataset, "AWQ_NSAMPLES": "many"})
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("name", "content", "why"), REFUSED, ids=lambda value: str(value)[:12])
def test_what_cannot_is_told_by_the_plan_with_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | bytes, why: str
) -> None:
    file = write(tmp_path, name, content)
    numbers, dataset, fallback = planned(str(file), monkeypatch)
    assert numbers.startswith("AWQ_NSAMPLES")
    assert dataset.startswith("AWQ_CALIB_DATASET: expected ")
    assert why in dataset
    assert str(file) in dataset
    assert fallback.startswith("--fallback")


def test_a_data_set_that_no_method_looks_at_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "empty.txt", "")
    assert [line.partition(":")[0] for line in planned(str(file), monkeypatch, "none")] == [
        "AWQ_NSAMPLES",
        "--fallback",
    ]


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    (tmp_path / "link.txt").symlink_to("nowhere")
    (tmp_path / "circle.txt").symlink_to("circle.txt")
    for name in ("pipe.txt", "folder.jsonl", "device.txt", "link.txt", "circle.txt"):
        assert isinstance(dataset_problem(str(tmp_path / name)), Problem), name
        with pytest.raises(StageError):
            files.read_file(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/x.txt", "a" * 5000 + ".txt", os.fsdecode(b"caf\xe9.txt"), "a\0.txt"]
)
def test_a_name_that_cannot_be_is_told_by_the_plan(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    told = planned(name, monkeypatch)
    assert [line.partition(":")[0] for line in told] == ["AWQ_NSAMPLES", "AWQ_CALIB_DATASET", "--fallback"]


def test_a_file_that_is_no_calibration_set_by_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_BYTES", 1 << 20)
    file = write(tmp_path, "huge.jsonl", GOOD * 20_000)
    assert "expected 1 MiB at most, found 1" in str(dataset_problem(str(file)))


def test_behind_what_the_plan_reads_a_broken_line_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKED_BYTES", 3 * len(GOOD) + 5)
    file = write(tmp_path, "large.jsonl", GOOD * 3 + '{"text": \n' + GOOD)
    assert dataset_problem(str(file)) is None
    assert done(model, file).samples == 4


def test_a_long_row_is_cut_before_it_is_tokenized(model: Path, tmp_path: Path) -> None:
    """What a sample does not take is not tokenized either: megabytes of it would be minutes."""
    whole, part = write(tmp_path, "whole.txt", "word " * 100_000), write(tmp_path, "part.txt", "word " * 1000)
    assert done(model, whole).digest == done(model, part).digest


def test_a_data_set_of_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    told = planned("acme/texts", monkeypatch)[1]
    assert "the hub gave no data set" in told
    assert "acme/texts; set AWQ_CALIB_DATASET=embedded or name a .txt or .jsonl file" in told
    assert "AWQ_CALIB_DATASET: expected " in planned("acme/模型", monkeypatch)[1]


TEXT = st.text(max_size=30) | st.sampled_from([LONG, "\u2028", "\ud83d", "\0", "", " "])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([
        *("text", "messages", "conversations", "role", "content", "from", "value", "instruction", "output", "input")
    ]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT}),
    max_size=4,
)
ROWS = st.one_of(
    st.builds(lambda text: {"text": text}, TEXT), st.builds(lambda turns: {"messages": turns}, TURNS), VALUES
)
LINES = st.lists(ROWS.map(json.dumps) | st.text(max_size=20), max_size=6)
CONTENTS = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(lambda text, encoding: text.encode(encoding, "replace"), st.text(), st.sampled_from(
        ["utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037"]
    )),
    st.builds(lambda lines, end: end.join(lines).encode("utf-8", "surrogatepass"), LINES, st.sampled_from(
        ["\n", "\r\n", "\r", "\n\n", "\u2028"]
    )),
)  # fmt: skip


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENTS, st.sampled_from([".txt", ".jsonl"]))
@example(GOOD.encode(), ".txt")
@example(GOOD.encode() * 3, ".jsonl")
def test_what_the_plan_accepts_can_be_calibrated_on(model: Path, tmp_path: Path, content: bytes, suffix: str) -> None:
    file = write(tmp_path, f"file{suffix}", content)
    problem = dataset_problem(str(file))
    if problem is None:
        assert done(model, file).samples >= 1
    else:
        assert str(problem).startswith("AWQ_CALIB_DATASET: expected ")
        assert len(str(problem).splitlines()) == 1
