"""The hub's server: sockets, authentication, bodies, faults. What it answers is in `endpoints.py`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import endpoints
from tests.hub.endpoints import Answer, Call, Refusal
from tests.hub.faults import Fault, Faults
from tests.hub.store import Account, Repository

BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that reached the hub.

    Attributes:
        method: of HTTP.
        path: with its query.
        host: as the client named it.
        token: none for a stranger.
        range: the `Range` header.
        status: what was answered.
        received: bytes of the request's body.
        sent: bytes of the answer's body.
    """

    method: str
    path: str
    host: str
    token: str | None
    range: str | None
    status: int
    received: int
    sent: int


@dataclass
class Hub:
    """A hub in threads of this process, as a context manager.

    Attributes:
        accounts: by token.
        repositories: by `org/name`.
        objects: LFS objects by SHA-256.
        parts: parts of uploads that are not complete, by object and number.
        part_size: bytes of a part; files that are larger are uploaded in parts.
        page_size: entries in one answer of a tree.
        faults: the failures that are still to come.
        seen: every request, in the order of their ends.
        running: requests that are being answered now.
        lock: held while any of these is changed.
    """

    accounts: dict[str, Account] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    part_size: int = 1 << 20
    page_size: int = 100
    faults: Faults = field(default_factory=Faults)
    seen: list[Seen] = field(default_factory=list)
    running: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> Hub:
        hub = self

        class Bound(Handler):
            """A handler that knows its hub."""

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port on loopback."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address that `HF_ENDPOINT` is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """The address of LFS objects, which is another host in the client's eyes."""
        return f"http://localhost:{self.port}"

    def environment(self, token: str | None = None, **more: str) -> dict[str, str]:
        """Return the variables that send a client here."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **more,
        }
        return {**variables, "HF_TOKEN": token} if token else variables

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        """Make coming requests fail."""
        return self.faults.add(Fault(method, path, **how))

    def requests(self, method: str, path: str = "") -> list[Seen]:
        """Return the requests seen so far that match."""
        # A client has its answer a moment before the request is noted.
        deadline = time.monotonic() + 1
        while self.running and time.monotonic() < deadline:
            time.sleep(0.001)
        wanted = Fault(method, path)
        return [entry for entry in list(self.seen) if wanted.matches(entry.method, entry.path)]

    def uploaded(self) -> int:
        """Return the bytes of LFS content received so far, retries included."""
        return sum(entry.received for entry in self.requests("PUT", "^/lfs/"))


class Handler(BaseHTTPRequestHandler):
    """The handler of one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        with self.hub.lock:
            self.hub.running += 1
        try:
            self._serve_one()
        finally:
            with self.hub.lock:
                self.hub.running -= 1

    def _serve_one(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path)
        self._path, self._received, self._sent = path, 0, 0
        fault = self.hub.faults.take(self.command, path)
        upload = not (self.command == "GET" and fault and fault.after_bytes)
        if fault and fault.bytes_per_s is None and not fault.lost and upload:
            self._read(fault.after_bytes)
            self._fail(fault)
            return
        body = self._read(int(self.headers.get("Content-Length") or 0), fault)
        if body is None:
            return
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        call = Call(self.command, path, query, dict(self.headers.items()), body, token)
        try:
            with self.hub.lock:
                answer = endpoints.answer(self.hub, call)
        except Refusal as refusal:
            answer = refusal.answer()
        if fault and fault.lost:
            self._log(0)
            self._drop()
            return
        self._answer(answer, fault)

    def _read(self, size: int, fault: Fault | None = None) -> bytes | None:
        """Read the body; none when the client went away in the middle of it."""
        blocks = []
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while length := int(self.rfile.readline().strip() or b"0", 16):
                blocks.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            self._received = sum(map(len, blocks))
            return b"".join(blocks)
        while self._received < size:
            block = self.rfile.read(min(BLOCK, size - self._received))
            if not block:
                self._log(0)
                self.close_connection = True
                return None
            self._received += len(block)
            blocks.append(block)
            self._slow(fault, len(block))
        return b"".join(blocks)

    def _fail(self, fault: Fault) -> None:
        """Answer with the fault's status, or with nothing; what is left of the body is never read."""
        if fault.also:
            fault.also()
        if fault.status:
            # Without `Connection: close`, a client that is quick would send its next request into the closing one.
            more = {"Content-Type": "application/json", "Connection": "close"}
            self._head(fault.status, {**fault.headers, **more}, len(fault.body))
            if self.command != "HEAD":
                self.wfile.write(fault.body)
        self._log(fault.status)
        self._drop()

    def _drop(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        # Unread bytes in the buffer would turn the close into a reset that destroys the answer on its way.
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(0.5)
        try:
            while self.connection.recv(BLOCK):
                pass
        except OSError:
            pass

    def _answer(self, answer: Answer, fault: Fault | None) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self._head(answer.status, answer.headers, len(body))
        if self.command != "HEAD":
            try:
                for start in range(0, len(body), BLOCK):
                    block = body[start : start + BLOCK]
                    if fault and fault.after_bytes and self._sent + len(block) > fault.after_bytes:
                        self.wfile.write(block[: fault.after_bytes - self._sent])
                        self._sent = fault.after_bytes
                        self._log(0)
                        self._drop()
                        return
                    self.wfile.write(block)
                    self._sent += len(block)
                    self._slow(fault, len(block))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
        self._log(answer.status)

    def _slow(self, fault: Fault | None, size: int) -> None:
        if fault and fault.bytes_per_s:
            time.sleep(size / fault.bytes_per_s)

    def _head(self, status: int, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _log(self, status: int) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        host = (self.headers.get("Host") or "").partition(":")[0]
        ranged = self.headers.get("Range")
        entry = Seen(self.command, self._path, host, token, ranged, status, self._received, self._sent)
        with self.hub.lock:
            self.hub.seen.append(entry)
