"""The log's writer: a thread that writes what was said anywhere.

An event loop never waits for a disk or a pipe. What it says is queued; what does not fit into the queue is counted, and
told when there is room again. A thread without a loop waits until it is written: what comes first is told first.

Whoever configures `logging` closes every handler that there is, as vLLM does when it is imported. So `close` ends
nothing here: `end` does.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence

from runtime.host.log_outputs import Output, Tell

# Events that wait: some seconds of a busy server's worst, and a few MB.
CAPACITY = 8192
FLUSH_S = 1.0


class LogWriter(logging.Handler):
    """Takes records from everywhere, and has them written by a thread."""

    def __init__(self, outputs: Sequence[Output], capacity: int = CAPACITY) -> None:
        super().__init__()
        self.outputs = tuple(outputs)  # each gets every record
        self._capacity = capacity  # records that wait
        # Records, and events to be set when everything before them is written; None is the end. Reentrant, so that a
        # finalizer may log.
        self._queue: queue.SimpleQueue[logging.LogRecord | threading.Event | None] = queue.SimpleQueue()
        self._dropped = 0  # records that nobody was told of yet
        self._stuck = False  # nobody waits for a thread that did not come to an end of it
        self._forked = False  # a forked process has no such thread, and writes itself
        self._ended = False  # nothing is taken any more
        for output in self.outputs:
            output.tell = _telling(weakref.ref(self), output)
        self._thread = self._start()  # writes
        os.register_at_fork(after_in_child=_forking(weakref.ref(self)))

    def createLock(self) -> None:
        """Have none: a thread that waits would keep the event loop waiting."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue a record; wait until it is written, unless an event loop runs in this thread."""
        try:
            record = copy.copy(record)
            if not isinstance(record.msg, dict):
                record.msg, record.args = record.getMessage(), None  # what it quotes may change until it is written
        except Exception as error:  # noqa: BLE001 - whoever logs must not fail of it
            record = notice("log_record_failed", source=record.name, error=type(error).__name__)
        if self._forked:
            self._write(record)
            return True
        if self._ended or self._queue.qsize() >= self._capacity:
            self._dropped += 1
            return False
        self._queue.put(record)
        if asyncio._get_running_loop() is None and not self._stuck and threading.current_thread() is not self._thread:
            self.wait(FLUSH_S)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until everything that was said is written, but not for ever; return whether it is."""
        if self._forked or self._ended or threading.current_thread() is self._thread or not self._thread.is_alive():
            return True
        written = threading.Event()
        self._queue.put(written)
        self._stuck = not written.wait(seconds)
        return not self._stuck

    def flush(self) -> None:
        """Wait a little until everything is written: at the process's end, for one."""
        self.wait(FLUSH_S)

    def close(self) -> None:
        """Write what waits, and go on."""
        self.flush()

    @property
    def ended(self) -> bool:
        """Whether nothing is taken any more."""
        return self._ended

    def end(self) -> None:
        """Write what waits, and end the outputs."""
        if not self._ended and not self._forked:
            self.flush()
            self._ended = True
            self._queue.put(None)
            self._thread.join(FLUSH_S)
            if not self._thread.is_alive():
                for output in self.outputs:
                    output.end()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            self._stuck = False
            try:
                if isinstance(entry, threading.Event):
                    entry.set()
                    continue
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    self._write(notice("log_records_dropped", count=dropped))
                self._write(entry)
            except BaseException:  # noqa: BLE001 - the log goes on, whatever was in the record
                self._dropped += 1
            del entry

    def _write(self, record: logging.LogRecord) -> None:
        for output in self.outputs:
            output.handle(record)

    def tell(self, source: Output, event: str, **fields: object) -> None:
        """Say something about an output, in the others."""
        for output in self.outputs:
            if output is not source:
                output.handle(notice(event, **fields))


def notice(event: str, **fields: object) -> logging.LogRecord:
    """A record of this module's own, in the form that structlog's have."""
    named = {"event": event, "logger": __name__, "level": "warning", **fields}
    level = {"levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({"name": __name__, "msg": named, "_logger": None, "_name": "warning", **level})


def _telling(writer: weakref.ref[LogWriter], source: Output) -> Tell:
    def tell(event: str, **fields: object) -> None:
        if (here := writer()) is not None:
            here.tell(source, event, **fields)

    return tell


def _forking(writer: weakref.ref[LogWriter]) -> Callable[[], None]:
    def after() -> None:
        if (here := writer()) is not None:
            here._forked = True

    return after
