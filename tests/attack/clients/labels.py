"""What a client chooses, in the hope that it becomes a label of a metric: close codes, types, paths, methods, names."""

from __future__ import annotations

import contextlib
import itertools
import struct

from tests.attack import raw
from tests.attack.attack import Attack, Clock, Target


def run(target: Target, clock: Clock) -> None:
    """A new one of each, again and again."""
    for number in itertools.count():
        if not clock:
            return
        with contextlib.suppress(OSError), raw.websocket(target.port, target.key) as connection:
            connection.sendall(raw.text({"type": f"type{number}", "request_id": f"request{number}"}))
            connection.sendall(raw.text({"type": "start", "session_id": f"label{number}", f"field{number}": 1}))
            code = struct.pack("!H", 1000 + number * 7 % 4000)
            connection.sendall(raw.frame(raw.CLOSE, code + f"reason {number}".encode()))
            raw.to_the_end(connection)
        for method, path in ((f"M{number}", "/healthz"), ("GET", f"/path{number}")):
            with contextlib.suppress(OSError), raw.connect(target.port, timeout=1) as connection:
                connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: host{number}\r\n\r\n".encode())
                raw.read_head(connection)


ATTACK = Attack("labels", "ever new close codes, types, methods and paths, as labels of metrics", run)
