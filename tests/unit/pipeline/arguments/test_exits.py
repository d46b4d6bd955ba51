"""How commands end: whatever goes wrong is one line and an exit code, and nobody sees a traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli
from pipeline.arguments import exits
from pipeline.plan import hardware, prepare
from pipeline.problem import Problem, printable
from tests.harness.builds import standins

ROOT = Path(__file__).resolve().parents[4]
PLAN = ("plan", "--cpu", "awq", "embedded")


class OddError(Exception):
    """An error that nobody knows, whose text has two lines and a secret."""


def ended(
    monkeypatch: pytest.MonkeyPatch, raised: Callable[[], BaseException], command: tuple[str, ...] = PLAN
) -> tuple[object, str]:
    """Run a command whose planning raises; returns its exit code, and what it said."""

    def broken(*_: object, **__: object) -> None:
        raise raised()

    said = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare", broken)
        patch.setattr(sys, "argv", ["yap-pipeline", *command])
        patch.setattr("signal.signal", lambda *_: None)
        with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
            cli.main()
    said.flush()
    return end.value.code, said.buffer.getvalue().decode()  # type: ignore[attr-defined]


FAULTS: tuple[Callable[[], BaseException], ...] = (
    lambda: OddError("two\nlines \x1b[31m and half a character \udce9"),
    lambda: OddError("[/bold] :smile:"),
    lambda: OddError(),
    lambda: ValueError("x" * 100_000),
    lambda: MemoryError(),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: EOFError("Ran out of input"),
    lambda: StopIteration(3),
    lambda: KeyError("mystery"),
    lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full"),
    lambda: OSError("without a number"),
    # Of a library's own pipe: ours have a reader.
    lambda: BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
    lambda: TimeoutError("timed out"),
    lambda: UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"),
    lambda: AssertionError("expected 3"),
    lambda: NotImplementedError(),
)


@pytest.mark.parametrize("number", range(len(FAULTS)))
@pytest.mark.parametrize("command", [PLAN, ("run", *PLAN[1:]), ("build", *PLAN[1:]), ("quantize", *PLAN[1:])])
def test_a_fault_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, said = ended(monkeypatch, FAULTS[number], command)
    (line,) = said.splitlines()
    assert code == os.EX_SOFTWARE
    assert line.startswith("error: the pipeline failed where it should not have: ")
    assert len(line) < 1000
    (log,) = tmp_path.glob("yap-pipeline-*.log")
    assert f"the traceback is in {log}" in line
    text = log.read_text("utf-8")
    assert "Traceback (most recent call last):" in text
    assert type(FAULTS[number]()).__name__ in text
    assert "yap-pipeline '" in text


def test_secrets_go_neither_into_the_line_nor_into_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine-123")
    told = "got 'secret-of-mine-123' and hf_abcdefghijklmnop"
    _, said = ended(monkeypatch, lambda: OddError(told))
    (log,) = tmp_path.glob("*.log")
    for text in (said, log.read_text()):
        assert "secret-of-mine" not in text
        assert "hf_abcdefghij" not in text


def test_a_file_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    code, said = ended(monkeypatch, lambda: OddError("why"))
    assert code == os.EX_SOFTWARE
    assert "OddError: why" in said
    assert "its traceback could not be written (No such file or directory)" in said
    assert len(said.splitlines()) == 1


def test_an_interrupt_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = ended(monkeypatch, KeyboardInterrupt)
    assert code == 130
    assert said.splitlines() == ["interrupted; finished stages are kept, the same command goes on from there"]


def test_an_interrupt_outside_of_a_command_is_none_either(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, exits.exit_codes():
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    code = "import sys; from pipeline.__main__ import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", [("inspect", "tests/data/artifacts/cpu-int8"), ("--version",), ("plan", "--help")])
def test_a_reader_that_goes_away_ends_a_command_quietly(words: tuple[str, ...], buffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*words, stdout=writing, environment={"PYTHONUNBUFFERED": buffered})
    os.close(writing)
    _, said = process.communicate(timeout=60)
    assert said == ""
    # The parser prints its own pages, and ends by itself.
    assert process.returncode == exits.UNREAD or (words[0] != "inspect" and process.returncode == 1)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_an_output_that_is_closed_is_none(closed: str) -> None:
    words = f'"{sys.executable}" -m pipeline inspect tests/data/artifacts/cpu-int8 {closed}'
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_that_knows_ascii_alone_is_enough() -> None:
    # The console draws with characters that no ASCII has.
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    process = start("inspect", "tests/data/artifacts/cpu-int8", stdout=subprocess.PIPE, environment=environment)
    told, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "perplexity_ratio" in told
    assert told.isascii()


@pytest.mark.parametrize("command", [("inspect",), ("validate",), ("inspect", "--verify")])
@pytest.mark.parametrize("name", ["nowhere", "a" * 5000, "a\nb", "[/b]", ":smile:", os.fsdecode(b"caf\xe9"), "~no/x"])
def test_an_artifact_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], name: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["yap-pipeline", command[0], name, *command[1:]])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("name", ["a" * 5000, os.fsdecode(b"caf\xe9"), "~nobody-of-that-name/x", "/proc/nope"])
@pytest.mark.parametrize(
    "words",
    [
        ("sign", "{}", "--sign-key", "{}"),
        ("push", "{}", "--sign-key", "{}"),
        ("quantize", "--cpu", "awq", "{}", "--out", "{}", "--cache-dir", "{}"),
        ("build", "--cpu", "awq", "{}", "{}", "--out", "{}", "--cache-dir", "{}"),
        ("run", "--cpu", "awq", "embedded", "--out", "{}", "--sign-key", "{}", "--push-quant"),
        ("validate", "{}", "--cache-dir", "{}", "--reference", "{}"),
    ],
    ids=lambda words: words[0],
)
def test_no_path_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], name: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hardware, "describe", standins.describe)
    monkeypatch.setattr(sys, "argv", ["yap-pipeline", *(word.format(name) for word in words)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code in {64, 1}, said
    assert all(line.startswith("error: ") for line in said.splitlines())
    if words[0] in {"quantize", "build"} and name != "/proc/nope":
        assert {"--out", "--cache-dir", "CHAT_MODEL"} <= {line.split(": ")[1] for line in said.splitlines()}


@given(st.text(), st.text(), st.text(), st.text())
def test_a_problem_is_one_line_that_any_terminal_shows(where: str, expected: str, found: str, next_step: str) -> None:
    line = str(Problem(where, expected, found, next_step))
    assert len(line.splitlines()) <= 1
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", line)
    line.encode("utf-8")


@given(st.text(st.characters()), st.integers(10, 50))
def test_what_is_printed_is_whole_where_it_is_short(text: str, longest: int) -> None:
    shown = printable(text, longest)
    assert len(shown) <= longest
    assert len(printable(text)) > longest or shown == printable(text)
