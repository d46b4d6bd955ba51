"""Failures on demand: a status, a status in the middle of a body, a dropped connection, a slow link."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A failure of the next requests that match.

    Attributes:
        method: of the request.
        path: a pattern that is searched for in the request's path.
        status: answered instead of serving; 0 drops the connection without an answer.
        after_bytes: let so many bytes of the body through first: of an upload in, of a download out.
        bytes_per_s: slow the body down instead of failing.
        lost: serve the request, then drop the connection without the answer.
        skip: matching requests that pass unharmed first.
        times: matching requests that fail.
        headers: of the answer.
        body: of the answer.
        also: called at the moment of failure.
        seen: matching requests so far.
    """

    method: str
    path: str
    status: int = 500
    after_bytes: int = 0
    bytes_per_s: int | None = None
    lost: bool = False
    skip: int = 0
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "made to fail"}'
    also: Callable[[], None] | None = None
    seen: int = 0

    def matches(self, method: str, path: str) -> bool:
        """Tell whether the fault is for this request."""
        return method == self.method and re.search(self.path, path) is not None


class Faults:
    """The faults that are still to come."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Add a fault for requests from now on."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault of this request, which counts as one of its times."""
        with self._lock:
            for fault in self._faults:
                if fault.matches(method, path):
                    fault.seen += 1
                    if fault.skip < fault.seen <= fault.skip + fault.times:
                        return fault
        return None
