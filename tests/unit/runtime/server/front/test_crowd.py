"""The process under a limit of open files: raised and told, too low and refused, reached and still not deaf."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.attack import raw
from tests.harness.server import Server

# 64 slots, the reserve, and 40 each for who has no slot and who waits to be accepted.
TIGHT = 400


@contextmanager
def limited(soft: int, hard: int) -> Iterator[Server]:
    """A server of which the soft and the hard limit of open files are these."""
    server = Server(Path(), module="tests.harness.scripted_process")
    code = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f"runpy.run_module({server.module!r}, run_name='__main__')"
    )
    server.began = time.monotonic()
    with server.log.open("wb") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=log, stderr=subprocess.STDOUT, env=server.environment
        )
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.__exit__(None, None, None)


def events(server: Server) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]


def test_the_limit_is_raised_and_told() -> None:
    with limited(300, 2000) as server:
        server.wait_ready()
        (told,) = [event for event in events(server) if event["event"] == "open_files"]
        assert (told["limit"], told["before"], told["unadmitted"]) == (2000, 300, 320)
        assert server.process is not None
        assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (2000, 2000)


def test_too_few_for_the_slots_is_refused_in_one_line() -> None:
    with limited(300, 300) as server:
        assert server.process is not None
        assert server.process.wait(60) == 64
        last = server.log.read_text().splitlines()[-1]
        assert last == (
            "yap-runtime: MAX_CONCURRENT_CONNECTIONS: expected at least 384 open files, found 300; "
            "set fewer or raise the limit (`ulimit -n`)"
        )


def test_more_silent_sockets_than_open_files_make_nobody_deaf() -> None:
    with limited(TIGHT, TIGHT) as server:
        server.wait_ready()
        silent = []
        try:
            for number in range(2 * TIGHT):
                silent.append(raw.connect(server.port))
                if number % 20 == 0:
                    time.sleep(0.02)  # else some find no place to wait, and try again after a second
                if number % 100 == 0:
                    assert server.status("/healthz") == 200
            assert server.status("/healthz") == 200
            with raw.websocket(server.port, server.api_key) as connection:
                connection.sendall(raw.frame(raw.TEXT, b'{"type":"ping"}'))
                assert b"pong" in connection.recv(100)
            told = [event for event in events(server) if event["event"] == "sockets_dropped"]
            assert 1 <= len(told) <= 10
            assert told[0]["too_many"] == 1
        finally:
            for connection in silent:
                connection.close()
