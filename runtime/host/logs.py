"""The log: one stream of events, as JSON lines on standard output and in `server.log`, without keys and prompts.

What other libraries say through `logging` takes the same way. `server.log` rotates at 100 MB; three old files are kept,
compressed.
"""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

from runtime import defaults
from runtime.host.variables import SECRETS

ROTATE_BYTES = defaults.LOG_MEGABYTES * 1024 * 1024

HIDDEN = "[hidden]"
# Fields that carry what users said or who they are, whoever logs them.
PRIVATE_FIELDS = frozenset(
    {
        "api_key", "x-api-key", "authorization", "text_api_key", "persona", "persona_text", "chat_prompt", "prompt",
        "history", "history_text", "utterance", "user_utterance", "analysis_text", "runtime_text", "text", "said",
    }
)  # fmt: skip
_QUERY_KEY = re.compile(r"(api_key=)[^&\s\"']*", re.IGNORECASE)


class Redactor:
    """Hides private fields, secrets by their type, keys in query strings, and the server's own keys everywhere."""

    def __init__(self, secrets: Sequence[SecretStr] = ()) -> None:
        texts = [secret.get_secret_value() for secret in secrets]
        longest_first = sorted((re.escape(text) for text in texts if text), key=len, reverse=True)
        # Whole words only: a key such as `k` must not eat the k of every word.
        self._secrets = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)") if longest_first else None

    def text(self, text: str) -> str:
        """A text without keys."""
        text = _QUERY_KEY.sub(rf"\1{HIDDEN}", text)
        return self._secrets.sub(HIDDEN, text) if self._secrets else text

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Redact one event, as a structlog processor."""
        for name, value in event.items():
            event[name] = self._field(name, value)
        return event

    def value(self, value: object) -> object:
        """A value without keys: secrets by their type are hidden, and texts are looked through wherever they lie.

        What is neither number, text nor collection is written by its `repr`, so that is looked through.
        """
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, SECRETS):
            return HIDDEN
        if isinstance(value, Mapping):
            return {self.text(str(name)): self._field(str(name), inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(inner) for inner in value]
        return self.text(repr(value))

    def _field(self, name: str, value: object) -> object:
        return HIDDEN if name.lower() in PRIVATE_FIELDS else self.value(value)


class CompressingHandler(RotatingFileHandler):
    """The standard rotation, with gzip for what was rotated away."""

    def __init__(self, path: Path, max_bytes: int = ROTATE_BYTES, kept: int = defaults.LOG_FILES) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=kept, encoding="utf-8")
        self.namer = lambda name: f"{name}.gz"
        self.rotator = _compress


def _compress(source: str, target: str) -> None:
    with Path(source).open("rb") as plain, gzip.open(target, "wb") as packed:
        shutil.copyfileobj(plain, packed)
    Path(source).unlink()


def configure(*, level: str, log_format: str, folder: Path, secrets: Sequence[SecretStr]) -> None:
    """Set up logging for the whole process.

    Args:
        level: least severe level that is kept.
        log_format: `json` or `console`, on standard output; the file is always JSON.
        folder: where `server.log` lies. When it cannot be written, standard output alone is used, with one warning.
        secrets: texts that must never appear.
    """
    redactor = Redactor(secrets)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
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
    console = _formatter(shared, redactor, structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()))
    stdout = logging.StreamHandler(sys.stdout)
    stdout.setFormatter(json_lines if log_format == "json" else console)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(stdout)
    root.setLevel(level.upper())
    # At info uvicorn names the path with its query, at debug both quote what goes over the wire.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = CompressingHandler(folder / defaults.LOG_NAME)
    except OSError as error:
        structlog.get_logger(__name__).warning(
            "log_file_unavailable", folder=str(folder), reason=error.strerror, next_step="set LOG_DIR"
        )
        return
    file.setFormatter(json_lines)
    root.addHandler(file)


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
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redactor,
            renderer,
        ],
    )
