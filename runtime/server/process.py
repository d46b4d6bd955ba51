"""The process: socket, signals, and the exit status.

| status | meaning |
|---|---|
| 0 | drained after SIGTERM |
| 64 | the settings are wrong, or do not fit the artifact |
| 65 | the artifact is refused |
| 69 | the port is taken, or cannot be listened on |
| 70 | the engine failed to load, died, or could not be stopped |
| 143 | a second SIGTERM, or SIGINT |
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog
import uvicorn
from pydantic import SecretStr

from runtime import __version__, defaults
from runtime.artifact import ArtifactError, hub
from runtime.command import OutputError
from runtime.deployment.settings import RuntimeSettings, SettingsError, unknown
from runtime.deployment.timeline import process_began
from runtime.deployment.traces import TracesError
from runtime.engines import EngineDeadError, EngineOptionError, EngineVersionError
from runtime.host import logs
from runtime.host.descriptors import BACKLOG, raise_limit, share
from runtime.server.admin import DEADLINE_S, SOCKETS, create_admin_app
from runtime.server.app import create_app
from runtime.server.front.config import Front, FrontError, check_uvicorn
from runtime.server.front.http import serve_behind
from runtime.server.front.log_throttle import install as throttle_log
from runtime.server.front.sockets import Sockets
from runtime.server.openai.door import BARE, COMPLETIONS, PREFIX, OpenAiDoor
from runtime.server.service import Phase, Service

EX_TERMINATED = 128 + signal.SIGTERM

# Seconds from the last turn's end to the process's. vLLM gives its own processes 5 to end before it kills them.
SHUTDOWN_TIMEOUT_S = 20.0
# Time in which an answer gets out.
ANSWER_S = 0.2
# An engine that died may hang when it is stopped; nobody waits for that.
DEAD_SHUTDOWN_TIMEOUT_S = 2.0

log = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """uvicorn without its own handling of signals: draining is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the loop's own handlers."""
        yield


def run(settings: RuntimeSettings) -> int:
    """Serve until drained, refused, or dead; return the exit status. Says why on standard error, in one line each."""
    begin(settings, f"{settings.host}:{settings.port}", settings.log_dir)
    try:
        check_uvicorn()
    except FrontError as error:
        return _report(os.EX_SOFTWARE, str(error))
    files = raise_limit()
    try:
        shares = share(files.limit, settings.max_concurrent_connections, _unadmitted(settings))
    except ValueError as error:
        return _report(os.EX_USAGE, f"MAX_CONCURRENT_CONNECTIONS: {error}; set fewer or raise the limit (`ulimit -n`)")
    try:
        listener = bind(settings.host, settings.port, shares.backlog)
    except UnicodeError:
        return _report(os.EX_USAGE, f"HOST: expected a host name or an address, found {settings.host!r}")
    except OSError as error:
        return _report(
            os.EX_UNAVAILABLE,
            f"PORT: expected a free port, found {settings.host}:{settings.port} ({error.strerror}); set HOST or PORT",
        )
    admin: socket.socket | None = None
    if settings.admin_port is not None:
        try:
            admin = bind(settings.admin_host, settings.admin_port)
        except (UnicodeError, OSError) as error:
            where = f"{settings.admin_host}:{settings.admin_port}"
            return _report(
                os.EX_UNAVAILABLE, f"ADMIN_PORT: expected a free port, found {where} ({type(error).__name__})"
            )
    import uvloop

    log.info("open_files", limit=files.limit, before=files.before, unadmitted=shares.unadmitted, backlog=shares.backlog)
    settings = settings.model_copy(update={"max_unadmitted_sockets": shares.unadmitted})
    with listener, admin or contextlib.nullcontext():
        return uvloop.run(_serve(settings, listener, shares.backlog, admin))


def begin(settings: RuntimeSettings, address: str, log_folder: Path | None, leave_loggers: Sequence[str] = ()) -> None:
    """Set the log up and tell what starts, as every process that serves does first.

    Args:
        settings: the environment.
        address: where clients reach it.
        log_folder: where `server.log` lies; none where standard output is kept by who started the process.
        leave_loggers: those of who started the process, if it has any here.
    """
    logs.configure(
        level=settings.log_level,
        log_format=settings.log_format,
        folder=log_folder,
        secrets=_secrets(settings),
        leave=leave_loggers,
    )
    logs.catch_stray_errors()
    log.info(
        "starting", version=__version__, address=address, artifact=settings.artifact, playground=settings.playground
    )
    for warning in unknown.warnings(os.environ):
        name, _, what = warning.partition(": ")
        log.warning("unknown_variable", variable=name, problem=what)


def _secrets(settings: RuntimeSettings) -> list[SecretStr]:
    """All that this process knows and must not tell."""
    try:
        hub_token = hub.token_of(os.environ)
    except hub.TokenError:
        hub_token = None  # told where a token is needed
    store = settings.store()
    password = [SecretStr(store.password)] if store is not None and store.password is not None else []
    admin = [token] if (token := settings.admin_token()) is not None else []
    return [*settings.api_keys(), *password, *admin, *([hub_token] if hub_token else [])]


def _unadmitted(settings: RuntimeSettings) -> int:
    room = defaults.UNADMITTED + settings.max_concurrent_connections
    return defaults.first_set(settings.max_unadmitted_sockets, default=room)


def bind(host: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """Bind a listening socket to the address, with so many connections that may wait to be accepted.

    Raises:
        OSError: the address is taken or not ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def web_config(service: Service, backlog: int = BACKLOG) -> uvicorn.Config:
    """Make uvicorn's configuration for the application."""
    return serve_behind(
        _front(service),
        create_app(service),
        max_message_bytes=service.settings.ws_max_message_bytes,
        backlog=backlog,
        keep_alive=service.settings.http_keep_alive_s,
    )


def _front(service: Service) -> Front:
    """What all connections share: paths that take a body, and what is asked so often that it goes the short way."""
    if not service.settings.openai_api:
        return Front(service.sockets)
    door, largest = OpenAiDoor(service), service.settings.ws_max_message_bytes
    return Front(
        service.sockets,
        bodies={f"{PREFIX}/".encode(): largest, BARE.encode(): largest},
        direct={f"POST {COMPLETIONS} HTTP/1.1".encode(): door},
        explain=door.refused_head,
    )


def admin_config(service: Service) -> uvicorn.Config:
    """Make uvicorn's configuration for the admin port."""
    app = create_admin_app(lambda: leave(service), service.settings.admin_token())
    return serve_behind(
        Front(Sockets(SOCKETS, DEADLINE_S, service.metrics.socket_dropped)),
        app,
        max_message_bytes=1024,
        backlog=SOCKETS,
    )


async def _serve(
    settings: RuntimeSettings, listener: socket.socket, backlog: int, admin_listener: socket.socket | None = None
) -> int:
    service = Service(settings, process_began())
    server = Server(web_config(service, backlog))
    admin = Server(admin_config(service)) if admin_listener is not None else None
    throttle_log()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, service)
    loop.add_signal_handler(signal.SIGHUP, service.reload_keys)
    serving = loop.create_task(server.serve([listener]))
    administering = None
    if admin is not None and admin_listener is not None:
        administering = loop.create_task(admin.serve([admin_listener]))
    try:
        await asyncio.wait((service.ended, serving), return_when=asyncio.FIRST_COMPLETED)
        status = _status(service)
        if status in (os.EX_USAGE, os.EX_DATAERR):
            exit_now(status)  # nobody was served, and an import that is under way cannot be interrupted
    finally:
        server.should_exit = True
    exit_within(DEAD_SHUTDOWN_TIMEOUT_S if status == os.EX_SOFTWARE else SHUTDOWN_TIMEOUT_S, status)
    await serving
    if admin is not None and administering is not None:
        admin.should_exit = True  # last: who had the server leave may ask how far it is
        await administering
    return status


def _status(service: Service) -> int:
    if not service.ended.done():
        return _report(os.EX_SOFTWARE, "the web server stopped by itself; see the log")
    error = service.ended.exception()
    return 0 if error is None else _report(*failure(error))


def failure(error: BaseException) -> tuple[int, str]:
    """The exit status of a service that ended with an error, and what is told of it: a line for each problem."""
    if isinstance(error, (SettingsError, EngineOptionError, TracesError)):
        return os.EX_USAGE, str(error)
    if isinstance(error, ArtifactError):
        return os.EX_DATAERR, str(error)
    if isinstance(error, EngineVersionError):
        return os.EX_SOFTWARE, str(error)
    if isinstance(error, EngineDeadError):
        return os.EX_SOFTWARE, f"the engine died: {error}; restart the server"
    # Nobody has been connected yet, so there is nobody whom its text could quote.
    log.error("loading_failed", reason=str(error), exc_info=error)
    return os.EX_SOFTWARE, f"loading failed: {type(error).__name__}: {error}".splitlines()[0]


def leave(service: Service) -> dict[str, object]:
    """Have a server leave as SIGTERM does, once, and say where it stands."""
    if service.phase is Phase.READY:
        service.drain()
    elif service.phase is Phase.LOADING:
        # Soon, so that whoever asked is answered.
        asyncio.get_running_loop().call_later(ANSWER_S, _leave_once, service)
    left = service.draining().deadline_s if service.phase is Phase.DRAINING else 0
    return {"status": service.phase.value, "deadline_s": left, "connections": len(service.connections)}


def _leave_once(service: Service) -> None:
    if service.phase in (Phase.LOADING, Phase.READY):  # else somebody was quicker, and this is no second signal
        _on_signal(service)


def _on_signal(service: Service) -> None:
    if service.phase is Phase.READY:
        service.drain()
    elif service.phase is Phase.LOADING:
        log.info("stopped_while_loading")
        exit_now(0)  # nobody is connected, and a model that is being loaded cannot be interrupted
    else:
        exit_now(EX_TERMINATED)


def exit_within(seconds: float, status: int) -> None:
    """Exit after so many seconds, unless the interpreter has ended before: something may hang when it is stopped.

    A timer of the loop would not do: a thread that hangs is waited for after the loop's end too.
    """

    def expire() -> None:
        try:
            if status == 0:
                _report(os.EX_SOFTWARE, f"drained, and not stopped {seconds:g} s later; every thread's place follows")
                faulthandler.dump_traceback()
        finally:
            exit_now(os.EX_SOFTWARE if status == os.EX_OK else status)

    timer = threading.Timer(seconds, expire)
    timer.name, timer.daemon = "exit-deadline", True
    timer.start()


def exit_now(status: int) -> None:
    """Exit at once, and kill the engine's processes."""
    try:
        for child in multiprocessing.active_children():
            with contextlib.suppress(Exception):  # the others must be killed too
                child.kill()
        with contextlib.suppress(Exception):
            logs.flush()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # a full disk, or nobody reads any more
                stream.flush()
    finally:
        os._exit(status)


def _report(status: int, text: str) -> int:
    with contextlib.suppress(OSError, OutputError):  # the status counts, also where it cannot be explained
        for line in text.splitlines():
            print(f"yap-runtime: {line}", file=sys.stderr, flush=True)
    return status
