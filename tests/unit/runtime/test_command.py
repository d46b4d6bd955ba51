"""How commands end whose output, folder, home or locale is missing: in a line at most, with a code that fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.plan.hardware import find_quantizer
from runtime.command import FAULT, INTERRUPTED, UNREAD, UNWRITTEN, WRONG_REQUEST, OutputError, ending
from tests.harness.faults.endings import ROOT, Case, Ended

ARTIFACT = str(ROOT / "tests/data/artifacts/cpu-int8")
PLAN = ("pipeline", "plan", "--cpu", "8bit", "embedded", "embedded", "--cache-dir", "/nowhere/cache")
NO_SETTINGS: dict[str, str | None] = dict.fromkeys(("ARTIFACT", "TEXT_API_KEY", "TEXT_API_KEY_FILE"))
# But the one that draws with a browser, which not every machine has.
DEMOS = [f"demos.{path.stem}" for path in sorted((ROOT / "tests/demos").glob("[!_]*.py")) if path.stem != "screenshot"]
# Every command that prints something where all is well.
TELLING = [
    ("runtime", "--version"),
    ("runtime", "--help"),
    ("runtime", "settings"),
    ("runtime", "settings", "--markdown"),
    ("runtime", "settings", "--json"),
    ("runtime", "check", ARTIFACT),
    ("runtime", "check", "--help"),
    ("pipeline", "--version"),
    ("pipeline", "--help"),
    *(
        ("pipeline", name, "--help")
        for name in ("plan", "run", "serve", "quantize", "build", "validate", "push", "sign", "inspect")
    ),
    (*PLAN, "--out", "/tmp/yap-no-such-artifact"),
    ("pipeline", "inspect", ARTIFACT),
    ("pipeline", "inspect", ARTIFACT, "--json"),
    ("pipeline", "inspect", ARTIFACT, "--verify"),
    ("pipeline.embedded", "--help"),
    ("pipeline.generated_docs", "--help"),
    *((f"tests.{name}", "--help") for name in ("attack", "benchmarks", *DEMOS)),
    *(
        (str(ROOT / f"tests/{name}.py"), "--help")
        for name in ("warmup", "live", "bench", "tool", "conversation", "personality", "gender", "screen_analysis")
    ),
]
# Every command that finds something wrong, and the code that it ends with.
REFUSING = [
    (("runtime",), WRONG_REQUEST),
    (("runtime", "serve"), WRONG_REQUEST),
    (("runtime", "settings", "--check"), WRONG_REQUEST),
    (("runtime", "check", "/nowhere"), os.EX_DATAERR),
    (("runtime", "nonsense"), WRONG_REQUEST),
    (("pipeline", "nonsense"), WRONG_REQUEST),
    (("pipeline", "run", "--cpu", "8bit"), WRONG_REQUEST),
    (("pipeline", "validate", "/nowhere"), 1),
    (("pipeline", "push", "/nowhere"), WRONG_REQUEST),
    (("pipeline", "sign", "/nowhere", "--sign-key", "/nowhere"), WRONG_REQUEST),
    (("pipeline", "inspect", "/nowhere"), 1),
    ((str(ROOT / "tests/warmup.py"), "--server", "127.0.0.1:9"), 1),
    ((str(ROOT / "tests/bench.py"), "--server", "127.0.0.1:9", "-n", "1"), 1),
    ((str(ROOT / "tests/tool.py"), "--server", "127.0.0.1:9", "--limit", "1"), 1),
    ((str(ROOT / "images/preflight.py"), "trt"), 78),
    ((str(ROOT / "images/health.py"),), 1),
]
Runs = Callable[[Case], Ended]


def named(command: tuple[str, ...]) -> str:
    return " ".join([Path(command[0]).name, *command[1:3]])


@pytest.fixture(scope="module")
def ends() -> Iterator[Runs]:
    """Runs cases in forks of one process."""
    command = [sys.executable, "-m", "tests.harness.faults.endings"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(case: Case) -> Ended:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(case)) + "\n")
        process.stdin.flush()
        return Ended(**json.loads(process.stdout.readline()))

    yield run
    process.communicate()


@pytest.fixture(autouse=True)
def quantizer(request: pytest.FixtureRequest) -> None:
    """A plan for a CPU is made where a quantizer is; the tests without engines also run where there is none."""
    command = getattr(request.node, "callspec", None) and request.node.callspec.params.get("command", ())
    if command and "embedded" in command and find_quantizer(None, ("llmcompressor",)) is None:
        pytest.skip("expected an environment with llm-compressor, found none; `make setup` makes it")


def is_whole(ended: Ended) -> bool:
    """Whether nobody is shown what only a developer reads."""
    return not any(mark in ended.err + ended.out for mark in ("Traceback", "Exception ignored", "most recent call"))


@pytest.mark.parametrize("command", TELLING, ids=named)
def test_an_output_that_is_full_unread_or_closed(ends: Runs, command: tuple[str, ...]) -> None:
    unbuffered = TELLING.index(command) % 2 == 0  # whether each write fails by itself, or the last flush
    right = ends(Case(command, variables=NO_SETTINGS, unbuffered=unbuffered))
    assert right.out, right
    assert right.code == (WRONG_REQUEST if command[-1] == "--json" and command[0] == "runtime" else 0)
    full = ends(Case(command, stdout="full", variables=NO_SETTINGS, unbuffered=unbuffered))
    assert full.code == UNWRITTEN, full
    assert "standard output: expected that it can be written, found: No space left on device" in full.err
    assert len(full.err.splitlines()) == 1
    unread = ends(Case(command, stdout="unread", variables=NO_SETTINGS, unbuffered=unbuffered))
    assert (unread.code, unread.err) == (UNREAD, "")
    closed = ends(Case(command, stdout="closed", variables=NO_SETTINGS, unbuffered=unbuffered))
    assert closed.code == right.code
    # A page of help goes to the other stream where there is none of its own.
    assert is_whole(closed)


@pytest.mark.parametrize(("command", "code"), REFUSING, ids=str)
@pytest.mark.parametrize("stderr", ["pipe", "full", "closed"])
def test_messages_that_cannot_be_told_leave_the_code(
    ends: Runs, command: tuple[str, ...], code: int, stderr: str
) -> None:
    variables = {**NO_SETTINGS, "HF_PUSH_REPO_ID": None, "PORT": "9", "TEXT_API_KEY": None}
    ended = ends(Case(command, stderr=stderr, variables=variables))
    assert ended.code == code, ended
    assert is_whole(ended)
    if stderr == "pipe" and not command[0].endswith("health.py"):  # which is asked for its code alone
        assert ended.err or ended.out


# With folders named as they are, that anything can be done; but what loads models cannot be imported there.
ABSOLUTE = ("--cpu", "8bit", "embedded", "embedded", "--cache-dir", "/nowhere/cache", "--out", "/tmp/yap-none")
WORKING = [
    *(("pipeline", name, *ABSOLUTE) for name in ("run", "serve", "quantize", "build")),
    ("pipeline", "validate", ARTIFACT),
    ("runtime", "serve"),
    ("runtime",),
]


@pytest.mark.parametrize("command", WORKING, ids=named)
def test_no_work_begins_in_a_working_directory_that_is_gone(ends: Runs, command: tuple[str, ...]) -> None:
    ended = ends(Case(command, adrift=True, variables={**NO_SETTINGS, "ARTIFACT": ARTIFACT, "TEXT_API_KEY": "k"}))
    assert ended.code == WRONG_REQUEST
    assert ended.err.endswith(
        ": the working directory: expected a folder, found that it was removed; change to another one\n"
    )
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    "command", [*(command for command in TELLING if command[0] != "tests.demos.scale"), PLAN], ids=named
)
def test_a_working_directory_that_is_gone(ends: Runs, command: tuple[str, ...]) -> None:
    ended = ends(Case(command, adrift=True, variables=NO_SETTINGS))
    assert is_whole(ended)
    if command is PLAN:  # its artifact would lie there
        assert ended.code == WRONG_REQUEST
        assert ended.err == (
            "error: the working directory: expected a folder, found that it was removed; change to another one\n"
        )
    else:
        assert ended.code == ends(Case(command, variables=NO_SETTINGS)).code, ended


@pytest.mark.parametrize("home", [None, "/nonexistent"])
@pytest.mark.parametrize(
    "command", [command for command in TELLING if "--help" not in command] + [PLAN[:-2]], ids=named
)
def test_a_home_that_is_missing(ends: Runs, command: tuple[str, ...], home: str | None) -> None:
    for unknown in (False, True):
        ended = ends(Case(command, variables={**NO_SETTINGS, "HOME": home}, unknown=unknown))
        assert is_whole(ended)
        assert ended.code in {0, WRONG_REQUEST}, ended
        assert ended.code == 0 or all(": expected " in line for line in ended.err.splitlines()), ended


@pytest.mark.parametrize(
    "command",
    [
        ("runtime", "settings"),
        ("runtime", "settings", "--json"),
        ("pipeline", "plan", "--cpu", "8bit", "embedded"),
        (str(ROOT / "tests/warmup.py"), "--help"),
    ],
    ids=named,
)
def test_a_locale_that_knows_ascii_alone(command: tuple[str, ...]) -> None:
    program, *arguments = command
    # Of this interpreter, its names of files too.
    ascii_alone = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {name: value for name, value in os.environ.items() if name not in NO_SETTINGS}
    done = subprocess.run(
        [sys.executable, *([program] if program.endswith(".py") else ["-m", program]), *arguments],
        cwd=ROOT,
        env={**environment, **ascii_alone},
        capture_output=True,
        check=False,
    )
    assert done.returncode == (WRONG_REQUEST if command[-1] == "--json" else 0), done
    assert b"Traceback" not in done.stderr
    assert len(done.stdout) > 200
    assert done.stdout.isascii()


def test_what_is_opened_next_takes_no_closed_streams_number() -> None:
    # Else what a native library prints goes into that file.
    code = (
        "from runtime.command import ending\n"
        "with ending('p', prefix='', part='p'):\n"
        "    file = open('/dev/zero')\n"
        "    raise SystemExit(file.fileno())"
    )
    words = f'"{sys.executable}" -c "{code}" >&- 2>&- <&-'
    assert subprocess.run(["bash", "-c", words], cwd=ROOT, check=False).returncode > 2


class OddError(Exception):
    """An error that nobody knows."""


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (OddError("two\nlines"), FAULT, 1),
        (BrokenPipeError(32, "Broken pipe"), FAULT, 1),  # a library's own pipe
        (OutputError(BrokenPipeError(32, "Broken pipe"), -1), UNREAD, 0),
        (KeyboardInterrupt(), INTERRUPTED, 0),
        (SystemExit(2), WRONG_REQUEST, 0),
        (SystemExit(3), 3, 0),
    ],
    ids=repr,
)
def test_an_end_is_a_code_and_a_line_at_most(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    lines: int,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("runtime.command._discard", lambda descriptor: None)
    with pytest.raises(SystemExit) as end, ending("yap-runtime", prefix="yap-runtime: ", part="runtime"):
        raise error
    said = capsys.readouterr().err.splitlines()
    assert (end.value.code, len(said)) == (code, lines)
    if said:
        (log,) = tmp_path.glob("yap-runtime-*.log")
        assert said[0].startswith("yap-runtime: the runtime failed where it should not have: ")
        assert said[0].endswith(f"the traceback is in {log}")
        assert "Traceback" in log.read_text("utf-8")
