"""The log: one stream of events, as JSON lines on standard output and in `server.log`, without keys and prompts.

What other libraries say through `logging` takes the same way, and what nobody caught. `server.log` rotates at 100 MB;
three old files are kept, compressed. `redaction` decides what is shown; `log_writer` has it written off the event loop.
"""

from __future__ import annotations

import atexit
import logging
import re
import sys
import threading
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

from runtime import defaults
from runtime.host.log_outputs import ROTATE_BYTES, CompressingHandler, StandardOutput
from runtime.host.log_writer import FLUSH_S, LogWriter
from runtime.host.redaction.errors import explain, without_quotes
from runtime.host.redaction.private_fields import HIDDEN
from runtime.host.redaction.redactor import Redactor

__all__ = [
    "HIDDEN",
    "ROTATE_BYTES",
    "CompressingHandler",
    "Redactor",
    "catch_stray_errors",
    "configure",
    "flush",
    "hide",
    "take_over",
]

# At info uvicorn names the path with its query, and torch tells of its caches when it ends; at debug these quote what
# goes over the wire, headers included.
QUIET = (
    "uvicorn", "uvicorn.error", "uvicorn.access", "websockets", "httpx", "httpcore", "urllib3", "requests", "hpack",
    "h11", "filelock", "fsspec", "botocore", "multipart", "python_multipart", "torch",
)  # fmt: skip
# asyncio names callbacks with their arguments, and tasks with their results: only what comes before is shown.
_ASYNCIO_NAME = re.compile(r"[^<(\n]*")


_configured: list[Redactor] = []  # the one of the process's log
_writing: list[LogWriter] = []  # the process's log
_left: list[str] = []  # loggers that keep their own outputs


def hide(secrets: Iterable[SecretStr]) -> None:
    """Hide secrets that became known after the log was set up."""
    known = list(secrets)
    for redactor in _configured:
        redactor.hide(known)


def configure(
    *, level: str, log_format: str, folder: Path | None, secrets: Sequence[SecretStr], leave: Sequence[str] = ()
) -> None:
    """Set up logging for the whole process.

    Args:
        level: least severe level that is kept.
        log_format: `json` or `console`, on standard output; the file is always JSON.
        folder: where `server.log` lies; none where standard output is enough. When it cannot be written, standard
            output alone is used, with one warning.
        secrets: texts that must never appear.
        leave: loggers, with those below them, that are not taken over: of who started the process, and may keep what is
            written to standard output by one of them.
    """
    _left[:] = leave
    _keep_open()
    redactor = Redactor(secrets)
    _configured[:] = [redactor]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        _take_error,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    json_lines = _formatter(shared, redactor, structlog.processors.JSONRenderer())
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    stdout = StandardOutput()
    stdout.setFormatter(json_lines if log_format == "json" else _formatter(shared, redactor, renderer))
    outputs: list[StandardOutput | CompressingHandler] = [stdout]
    unavailable = None
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = CompressingHandler(folder / defaults.LOG_NAME)
            file.setFormatter(json_lines)
            outputs.append(file)
    except OSError as error:
        unavailable = error.strerror
    for writer in _writing:
        writer.end()
    _writing[:] = [LogWriter(outputs)]
    _take_root(level.upper())
    # A handler of somebody else's would print a record that it could not write, as it is, on standard error.
    logging.raiseExceptions = False
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if unavailable is not None:
        structlog.get_logger(__name__).warning(
            "log_file_unavailable", folder=str(folder), reason=unavailable, next_step="set LOG_DIR"
        )


def flush(seconds: float = FLUSH_S) -> None:
    """Wait until what was said is written, but not longer than so many seconds."""
    for writer in _writing:
        writer.wait(seconds)


# At the end `logging` flushes the handlers that it knows, and whoever configured it since has had it forget ours.
atexit.register(flush)


def take_over() -> None:
    """Have libraries that write their logs themselves say it here, where it is redacted. Call when they are imported.

    What such a library has silenced is heard again. Where this log was not set up, theirs stay as they are.
    """
    if not _writing or _writing[0].ended:
        return
    _take_root()
    known = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    # One that has no level has its parent's, which is about to change: torch's loggers would tell each step of a start.
    ours = [(logger, logger.getEffectiveLevel()) for logger in known if not _is_left(logger)]
    for logger, level in ours:
        logger.disabled = False
        own = [handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler)]
        for handler in own:
            logger.removeHandler(handler)
        if own:
            logger.propagate = True
            logger.setLevel(max(level, min(handler.level for handler in own)))


def _keep_open() -> None:
    """Have nobody close the outputs of loggers that are left: what configures `logging` closes those of all."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and _is_left(logger):
            for handler in logger.handlers:
                handler.close = handler.flush  # type: ignore[method-assign]


def _is_left(logger: logging.Logger) -> bool:
    return any(f"{logger.name}.".startswith(f"{one}.") for one in _left)


def _take_root(level: str | None = None) -> None:
    """Have the log alone be the root's handler, at its level or another one."""
    (writer,) = _writing
    if level is not None:
        writer.setLevel(level)
    root = logging.getLogger()
    root.handlers[:] = [writer]
    root.setLevel(writer.level)


def catch_stray_errors() -> None:
    """Log what nobody caught, in any thread: Python would print it on standard error, with all that it quotes."""
    log = structlog.get_logger(__name__)

    def stray(where: str, error: BaseException | None) -> None:
        log.error("uncaught", where=where, exc_info=error)
        flush()

    sys.excepthook = lambda kind, error, trace: stray("main", error)
    threading.excepthook = lambda found: stray(found.thread.name if found.thread else "thread", found.exc_value)
    sys.unraisablehook = lambda found: stray("finalizer", found.exc_value)


def _take_error(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Say in words which error is meant, while it is at hand: the writer's thread knows nothing of it."""
    found = event.pop("exc_info", None)
    if isinstance(found, tuple):
        found = found[1]
    elif found and not isinstance(found, BaseException):
        found = sys.exc_info()[1]
    if isinstance(found, BaseException):
        event["exception"] = explain(found)
    return event


def _quote_nobody(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Cut out of a library's message what it quotes."""
    text = event.get("event")
    if not event["_from_structlog"] and isinstance(text, str):
        name = event["_record"].name
        if name == "asyncio" or name.startswith("concurrent.futures"):
            found = _ASYNCIO_NAME.match(text)
            text = found[0].strip() if found else ""
        event["event"] = without_quotes(text)
    event.pop("stack_info", None)
    return event


def _add_timestamp(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """The moment of the event, the same in every output."""
    created: float = event["_record"].created
    event["timestamp"] = datetime.fromtimestamp(created, timezone.utc).isoformat(timespec="milliseconds")
    return event


def _formatter(shared: list[Processor], redactor: Redactor, renderer: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            _add_timestamp,
            _quote_nobody,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            redactor,
            renderer,
        ],
    )
