"""The log keeps nobody waiting, and what cannot be written is counted, told, and never shown raw."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import structlog
from pydantic import SecretStr

from runtime.host import log_outputs, log_writer, logs
from runtime.host.log_outputs import CompressingHandler, Output
from runtime.host.log_writer import LogWriter
from tests.harness.waiting import eventually


class Held(Output):
    """An output that writes when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.may.wait()
        self.lines.append(line)


pytestmark = pytest.mark.usefixtures("log_restored")


def record(text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, "f", 1, text, args, None)


async def test_the_event_loop_does_not_wait_for_an_output() -> None:
    held = Held()
    writer = LogWriter([held])
    for number in range(100):
        assert writer.handle(record("line %d", number))
    assert held.lines == []
    held.may.set()
    await eventually(lambda: len(held.lines) == 100)
    assert held.lines == [f"line {number}\n" for number in range(100)]
    writer.end()


async def test_what_does_not_fit_is_counted_and_told() -> None:
    held = Held()
    writer = LogWriter([held], capacity=10)
    taken = sum(writer.handle(record("line")) for _ in range(100))
    assert 10 <= taken <= 11  # one may be in the writer's hands
    held.may.set()
    await eventually(lambda: len(held.lines) == taken + 1)
    writer.handle(record("after"))
    await eventually(lambda: held.lines[-1] == "after\n")
    told = [line for line in held.lines if "log_records_dropped" in line]
    assert len(told) == 1
    assert f"'count': {100 - taken}" in told[0]
    writer.end()


def test_a_thread_without_a_loop_has_it_written_when_it_goes_on() -> None:
    held = Held()
    held.may.set()
    writer = LogWriter([held])
    writer.handle(record("first"))
    assert held.lines == ["first\n"]
    writer.end()


def test_nobody_waits_for_ever_for_an_output_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_writer, "FLUSH_S", 0.01)
    held = Held()
    writer = LogWriter([held])
    for _ in range(200):
        writer.handle(record("line"))
    writer.end()
    held.may.set()


class Odd:
    """Cannot be put into words."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error

    __str__ = __repr__


BAD = (
    (("%d", "hunter2-zebra"), {}),
    (("%s %s", "hunter2-zebra"), {}),
    (("%s", Odd(RuntimeError("hunter2-zebra"))), {}),
    (("%s", Odd(RecursionError("hunter2-zebra"))), {}),
    (("%(x)s", {"y": "hunter2-zebra"}), {}),
)


@pytest.mark.parametrize(("arguments", "named"), BAD)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_record_that_fails_is_told_and_never_shown(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    log_format: str,
    arguments: tuple[object, ...],
    named: dict[str, object],
) -> None:
    logs.configure(level="info", log_format=log_format, folder=tmp_path, secrets=[SecretStr("hunter2")])
    logging.getLogger("other").warning(*arguments, **named)  # type: ignore[arg-type]
    logs.flush()
    out, err = capfd.readouterr()
    for text in ((tmp_path / "server.log").read_text(), out):
        assert "log_record_failed" in text
        assert "zebra" not in text
    assert "zebra" not in err
    assert "Traceback" not in err


def test_a_formatter_that_fails_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            raise KeyError("zebra")

    handler = CompressingHandler(tmp_path / "server.log")
    handler.setFormatter(Failing())
    handler.handle(record("zebra"))
    handler.end()
    line = json.loads((tmp_path / "server.log").read_text())
    assert (line["event"], line["logger"], line["error"]) == ("log_record_failed", "test", "KeyError")
    assert "zebra" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("failing", ["file", "stdout"])
def test_a_full_disk_is_told_once_in_the_other_output_with_what_was_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[SecretStr("hunter2")])
    kind = CompressingHandler if failing == "file" else log_outputs.StandardOutput

    def full(self: Output, line: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = structlog.get_logger("test")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "write", full)
        for number in range(20):
            log.info("said", number=number, persona="zebra", what="hunter2")
    log.info("after")
    out, err = capfd.readouterr()
    other = out if failing == "file" else (tmp_path / "server.log").read_text()
    events = [json.loads(line) for line in other.splitlines()]
    failed = [event["reason"] for event in events if event["event"] == "log_output_failed"]
    assert failed == ["No space left on device"]
    assert [event["lost"] for event in events if event["event"] == "log_output_recovered"] == [20]
    for text in (out, err):
        assert "zebra" not in text
        assert "hunter2" not in text
    assert err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_disk_shows_nothing_on_standard_error(tmp_path: Path) -> None:
    (tmp_path / "server.log").symlink_to("/dev/full")
    script = (
        "import logging, sys, structlog; from pathlib import Path; from pydantic import SecretStr\n"
        "from runtime.host import logs\n"
        "logs.configure(level='info', log_format='json', folder=Path(sys.argv[1]), secrets=[SecretStr('hunter2')])\n"
        "structlog.get_logger('x').info('said', persona='zebra', what='hunter2')\n"
        "logging.getLogger('y').error('key %s', 'hunter2')\n"
    )
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert "zebra" not in result.stderr
    assert "hunter2" not in result.stderr


def test_a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = CompressingHandler(tmp_path / "server.log")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:3]))
        handler.handle(record("cut off"))
    handler.handle(record("whole"))
    handler.end()
    assert (tmp_path / "server.log").read_text().splitlines() == ["cut", "whole"]


async def test_compression_keeps_no_line_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may = threading.Event()
    compress = log_outputs._compress

    def slow(source: Path, target: Path) -> None:
        may.wait()
        compress(source, target)

    monkeypatch.setattr(log_outputs, "_compress", slow)
    path = tmp_path / "server.log"
    handler = CompressingHandler(path, max_bytes=30)
    writer = LogWriter([handler])
    for number in range(5):
        writer.handle(record("line %04d", number))
    await eventually(lambda: path.exists() and "0004" in path.read_text())
    assert not (tmp_path / "server.log.1.gz").exists()
    may.set()
    await eventually((tmp_path / "server.log.1.gz").exists)
    writer.end()


def test_compression_that_fails_is_not_tried_for_each_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, told = [], []

    def fail(source: Path, target: Path) -> None:
        tried.append(source)
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log_outputs, "_compress", fail)
    handler = CompressingHandler(tmp_path / "server.log", max_bytes=300)
    handler.tell = lambda event, **fields: told.append(event)
    for number in range(100):
        handler.handle(record(f"line {number:04d} {'x' * 40}"))
    handler.end()
    rotations = 100 // 5 - 1
    assert len(tried) <= rotations
    assert told == ["log_compression_failed"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["server.log", "server.log.1", "server.log.2", "server.log.3"]  # bounded all the same
    assert (tmp_path / "server.log.1").read_text().startswith("line 00")


def test_rotation_that_fails_is_tried_again_in_a_while_and_loses_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, told = [], []

    def refuse(path: Path, target: Path) -> Path:
        tried.append(path)
        raise PermissionError(errno.EACCES, "no")

    handler = CompressingHandler(tmp_path / "server.log", max_bytes=100)
    handler.tell = lambda event, **fields: told.append(event)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        for number in range(50):
            handler.handle(record(f"line {number:04d}"))
    handler.end()
    assert len(tried) == 1
    assert told == ["log_rotation_failed"]
    assert len((tmp_path / "server.log").read_text().splitlines()) == 50


def test_plain_and_compressed_files_are_counted_together(tmp_path: Path) -> None:
    (tmp_path / "server.log.1").write_text("plain")
    (tmp_path / "server.log.2.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "server.log.3").write_text("oldest")
    handler = CompressingHandler(tmp_path / "server.log", max_bytes=10)
    for _ in range(2):
        handler.handle(record("0123456789"))
    handler.end()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["server.log", "server.log.1.gz", "server.log.2", "server.log.3.gz"]


def test_a_forked_process_writes_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        "import os, sys, structlog; from pathlib import Path; from runtime.host import logs\n"
        "logs.configure(level='info', log_format='json', folder=Path(sys.argv[1]), secrets=[])\n"
        "if (child := os.fork()) == 0:\n"
        "    structlog.get_logger('x').info('from_child'); os._exit(0)\n"
        "os.waitpid(child, 0); structlog.get_logger('x').info('from_parent')\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True, timeout=60, capture_output=True
    )
    events = [json.loads(line)["event"] for line in (tmp_path / "server.log").read_text().splitlines()]
    assert events == ["from_child", "from_parent"]


async def test_an_error_is_told_as_it_was_when_it_was_logged(tmp_path: Path) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[])
    log = structlog.get_logger("test")
    for name in ("exception", "error"):
        try:
            raise LookupError("zebra")
        except LookupError:
            getattr(log, name)("failed", **({} if name == "exception" else {"exc_info": True}))
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=LookupError("zebra"))
    await asyncio.to_thread(logs.flush)
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert len(lines) == 3
    assert all("LookupError" in line["exception"] for line in lines)
    assert "zebra" not in str(lines)


async def test_what_asyncio_complains_about_is_told_without_arguments_and_results(tmp_path: Path) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[])

    def call(words: str) -> None:
        raise ValueError(words)

    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(None)
    try:
        loop.call_soon(call, "zebra")
        await asyncio.sleep(0.01)
        failed = loop.create_future()
        failed.set_exception(ValueError("zebra"))
        del failed
    finally:
        loop.set_exception_handler(handler)
    await asyncio.to_thread(logs.flush)
    text = (tmp_path / "server.log").read_text()
    assert "Exception in callback" in text
    assert "ValueError" in text
    assert "zebra" not in text


def test_what_nobody_caught_is_logged_and_not_printed(tmp_path: Path) -> None:
    script = (
        "import sys, threading; from pathlib import Path; from runtime.host import logs\n"
        "logs.configure(level='info', log_format='json', folder=Path(sys.argv[1]), secrets=[])\n"
        "logs.catch_stray_errors()\n"
        "def fail(words): raise ValueError(words)\n"
        "thread = threading.Thread(target=fail, args=('zebra',)); thread.start(); thread.join()\n"
        "class Odd:\n"
        "    def __del__(self): fail('zebra')\n"
        "Odd(); fail('zebra')\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "zebra" not in result.stdout + result.stderr
    assert result.stdout.count('"uncaught"') == 3


def test_a_finalizer_may_log_while_something_is_logged() -> None:
    held = Held()
    held.may.set()
    writer = LogWriter([held])
    entries: queue.SimpleQueue[int] = writer._queue  # type: ignore[assignment]
    assert isinstance(entries, queue.SimpleQueue)  # whose put is reentrant, as that of Queue is not
    writer.end()


def test_the_cost_for_the_loop_is_small() -> None:
    async def say() -> float:
        held = Held()
        held.may.set()
        writer = LogWriter([held], capacity=10**6)
        started = time.thread_time()
        for _ in range(1000):
            writer.handle(record("line"))
        spent = time.thread_time() - started
        await asyncio.to_thread(writer.end)
        return spent / 1000

    assert asyncio.run(say()) < 0.001  # formatting and writing take longer


def test_a_library_that_writes_its_log_itself_is_redacted_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    library = logging.getLogger("library_of_its_own")
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    library.addHandler(handler)
    library.propagate = False
    logs.take_over()
    assert library.handlers == [handler]  # where our log was not set up, theirs stay
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[SecretStr("hunter2")])
    logs.take_over()
    library.info("too little")
    try:
        raise ValueError("zebra")
    except ValueError:
        library.exception("key %s", "hunter2")
    out, err = capfd.readouterr()
    assert "too little" not in out
    assert json.loads(out)["event"] == "key [hidden]"
    assert "zebra" not in out
    assert err == ""
