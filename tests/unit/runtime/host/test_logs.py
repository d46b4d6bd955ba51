"""Logs say what happened, and neither who nor what was said."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Secret, SecretBytes, SecretStr

from runtime.host import logs
from runtime.host.logs import CompressingHandler
from tests.harness.scripted import KEY, serving

pytestmark = pytest.mark.usefixtures("log_restored")

LEVELS = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "server.log").read_text().splitlines()]


def test_what_became_secret_later_is_hidden_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[SecretStr("early-key")])
    logs.hide([SecretStr("late-key")])
    structlog.get_logger("x").info("seen", one="early-key", other="with late-key inside")
    assert "-key" not in capsys.readouterr().out


def test_events_go_to_standard_output_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path / "new", secrets=[])
    structlog.get_logger("test").info("ready", port=8000)
    logging.getLogger("other").warning("plain %s", "text")
    written = lines(tmp_path / "new")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == written
    assert (written[0]["event"], written[0]["port"], written[0]["level"]) == ("ready", 8000, "info")
    assert (written[1]["event"], written[1]["logger"]) == ("plain text", "other")


def test_keys_and_what_users_said_are_hidden(tmp_path: Path) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[SecretStr("hunter2")])
    log = structlog.get_logger("test")
    log.info("connected", path="/ws?api_key=abc123&x=1", header="hunter2", persona="You are Mia", Utterance="my name")
    logging.getLogger("other").warning("GET /ws?api_key=%s", "abc123")
    try:
        raise ValueError("wrong key hunter2")
    except ValueError:
        log.exception("failed")
    text = (tmp_path / "server.log").read_text()
    for secret in ("abc123", "hunter2", "Mia", "my name"):
        assert secret not in text
    assert "x=1" in text
    assert "ValueError" in text


async def test_neither_keys_nor_words_of_a_session_are_logged(tmp_path: Path) -> None:
    logs.configure(level="debug", log_format="json", folder=tmp_path, secrets=[SecretStr(KEY)])
    async with serving() as running:
        from websockets.asyncio.client import connect

        async with connect(f"{running.url}?api_key={KEY}") as socket:
            await socket.send('{"type":"start","session_id":"s","user_utterance":"zebra","persona_text":"giraffe"}')
            while '"done"' not in str(await socket.recv()):
                pass
            running.engine.fail_after = 1
            await socket.send('{"type":"start","session_id":"s","user_utterance":"zebra"}')
            while '"failed"' not in str(await socket.recv()):
                pass
    logs.flush()
    text = (tmp_path / "server.log").read_text()
    assert "turn_failed" in text
    assert "secret details" not in text
    for secret in (KEY, "zebra", "giraffe"):
        assert secret not in text.replace(str(tmp_path), "")


def test_a_short_key_does_not_eat_words() -> None:
    redactor = logs.Redactor([SecretStr("k"), SecretStr("a.b")])
    assert redactor.text("took key=k, a.b and axb") == "took key=[hidden], [hidden] and axb"


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    logs.configure(level="info", log_format="json", folder=tmp_path / "file", secrets=[])
    structlog.get_logger("test").info("ready")
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["log_file_unavailable", "ready"]


def test_old_files_are_compressed_and_three_are_kept(tmp_path: Path) -> None:
    handler = CompressingHandler(tmp_path / "server.log", max_bytes=200)
    for number in range(60):
        handler.emit(logging.LogRecord("t", logging.INFO, "f", 1, f"line {number:04d} {'x' * 40}", None, None))
    handler.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "server.log",
        "server.log.1.gz",
        "server.log.2.gz",
        "server.log.3.gz",
    ]
    assert gzip.decompress((tmp_path / "server.log.1.gz").read_bytes()).startswith(b"line 00")


@dataclass(frozen=True)
class Holder:
    """As a careless object: its repr shows what it holds."""

    words: str


SHAPES = (
    lambda secret: secret,
    lambda secret: [1, (secret,)],
    lambda secret: {"outer": {"inner": secret}},
    lambda secret: {"api_key": secret},
    lambda secret: {f"for {secret}": None},
    lambda secret: {secret},
    lambda secret: Holder(secret),
    lambda secret: ValueError(secret),
    lambda secret: Path("/keys") / secret,
    lambda secret: secret.encode(),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_key_is_hidden_in_whatever_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log_format: str, shape: Callable[[str], object]
) -> None:
    logs.configure(level="info", log_format=log_format, folder=tmp_path, secrets=[SecretStr("hunter2")])
    structlog.get_logger("test").info("said", what=shape("hunter2"))
    for text in ((tmp_path / "server.log").read_text(), capsys.readouterr().out):
        assert "said" in text
        assert "hunter2" not in text


@pytest.mark.parametrize("secret", [SecretStr("zebra"), SecretBytes(b"zebra"), Secret("zebra")])
def test_a_secret_is_hidden_by_its_type_whatever_it_is_called(tmp_path: Path, secret: object) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[])
    structlog.get_logger("test").info("said", value=secret, values=[secret], monkey="shown", held={"x": secret})
    (line,) = lines(tmp_path)
    assert (line["value"], line["values"], line["held"]) == (logs.HIDDEN, [logs.HIDDEN], {"x": logs.HIDDEN})
    assert line["monkey"] == "shown"


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    logs.configure(level="info", log_format="json", folder=tmp_path, secrets=[SecretStr("8")])
    structlog.get_logger("test").info("said", port=8000, ratio=0.5, ready=True, nothing=None, sizes=[1, 2])
    (line,) = lines(tmp_path)
    assert [line[name] for name in ("port", "ratio", "ready", "nothing", "sizes")] == [8000, 0.5, True, None, [1, 2]]


def test_loggers_of_who_started_the_process_are_left_to_it(tmp_path: Path) -> None:
    """One of them may be what standard output goes to: what is said there must not come back here."""
    folder = tmp_path / "logs"
    logs.configure(level="info", log_format="json", folder=folder, secrets=[], leave=("theirs",))
    names = ("theirs", "theirs.inner", "theirsnot")
    handlers = {name: logging.StreamHandler() for name in names}
    try:
        for name, handler in handlers.items():
            logging.getLogger(name).addHandler(handler)
        logs.take_over()
        assert {name: handlers[name] in logging.getLogger(name).handlers for name in names} == {
            "theirs": True,
            "theirs.inner": True,
            "theirsnot": False,
        }
    finally:
        for name, handler in handlers.items():
            logging.getLogger(name).removeHandler(handler)
        logs.configure(level="info", log_format="json", folder=folder, secrets=[])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    parent=st.sampled_from(LEVELS),
    child=st.sampled_from([logging.NOTSET, *LEVELS]),
    handlers=st.tuples(st.sampled_from([None, *LEVELS]), st.sampled_from(LEVELS)),
    child_first=st.booleans(),
)
def test_a_library_says_no_more_here_than_it_said_itself(
    parent: int, child: int, handlers: tuple[int | None, int], child_first: bool
) -> None:
    """Each of torch's loggers has a handler that takes everything, and its parent's level."""
    names = ("library", "library.inner")
    for name in names:
        logging.root.manager.loggerDict.pop(name, None)
    made = {name: logging.getLogger(name) for name in (reversed(names) if child_first else names)}
    loggers = [made[name] for name in names]
    with tempfile.TemporaryDirectory() as folder:
        logs.configure(level="debug", log_format="json", folder=Path(folder), secrets=[])
        try:
            heard: list[logging.LogRecord] = []
            for logger, level, of_handler in zip(loggers, (parent, child), handlers, strict=True):
                logger.setLevel(level)
                if of_handler is not None:
                    own = logging.StreamHandler()
                    own.emit = heard.append if logger is loggers[1] else lambda record: None  # type: ignore[method-assign]
                    own.setLevel(of_handler)
                    logger.addHandler(own)
            loggers[1].propagate = False
            for level in LEVELS:
                loggers[1].log(level, str(level))
            before = [record.getMessage() for record in heard]
            logs.take_over()
            for level in LEVELS:
                loggers[1].log(level, str(level))
            logs.flush()
            said = [line["event"] for line in lines(Path(folder)) if line["logger"] == names[1]]
            assert said == before
        finally:
            for logger in loggers:
                logger.handlers.clear()
                logger.setLevel(logging.NOTSET)


# What a library does to `logging` when it is imported, as vLLM does.
CONFIGURES = {
    "a dictionary": "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': False})",
    "a dictionary that silences": "logging.config.dictConfig({'version': 1})",
    "a dictionary with the root": "logging.config.dictConfig({'version': 1, 'root': {'level': 'ERROR'}})",
    "a file": "logging.config.fileConfig(io.StringIO('''[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n"
    "[logger_root]\nhandlers=\n'''))",
    "a basic one": "logging.basicConfig(force=True, level='ERROR')",
    "an end": "logging.shutdown()",
}
CONFIGURED = """
import io, logging, logging.config, sys
from pathlib import Path
import structlog
from runtime.host import logs

async def main():
    log.info("in a loop")  # nobody waits for it: it is written at the end

logs.configure(level="info", log_format="json", folder=Path(sys.argv[1]), secrets=[])
log = structlog.get_logger("runtime.server")
log.info("before")
{configures}
logs.take_over()
log.info("after")
import asyncio
asyncio.run(main())
"""


@pytest.mark.parametrize("configures", CONFIGURES.values(), ids=CONFIGURES.keys())
def test_the_log_goes_on_when_a_library_configures_logging(tmp_path: Path, configures: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONFIGURED.format(configures=configures), tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line["event"] for line in lines(tmp_path)] == ["before", "after", "in a loop"]
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["before", "after", "in a loop"]
    assert not done.stderr


LEFT = """
import logging, logging.config, logging.handlers, sys
from runtime.host import logs

theirs = logging.getLogger("theirs.inner")
handler = logging.handlers.MemoryHandler(100, target=logging.FileHandler(sys.argv[1]))
theirs.addHandler(handler)
logs.configure(level="info", log_format="json", folder=None, secrets=[], leave=["theirs"])
theirs.warning("before")
logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
logs.take_over()
theirs.warning("after")
handler.flush()
"""


def test_the_log_of_who_started_the_process_goes_on_too(tmp_path: Path) -> None:
    file = tmp_path / "theirs.log"
    subprocess.run([sys.executable, "-c", LEFT, file], check=True, capture_output=True)
    assert file.read_text() == "before\nafter\n"


def test_without_a_folder_standard_output_is_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(level="info", log_format="json", folder=None, secrets=[SecretStr("hunter2")])
    structlog.get_logger("test").info("said", what="hunter2")
    logs.flush()
    out = capfd.readouterr().out
    assert json.loads(out)["event"] == "said"
    assert "hunter2" not in out
