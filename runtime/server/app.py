"""The ASGI application: `/ws`, `/v1`, `/healthz`, `/readyz`, `/metrics`, and the page at `/` where it is wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from runtime.server.admission import Slot
from runtime.server.auth import Credential, origin_allowed
from runtime.server.connection import Connection
from runtime.server.front.sockets import Socket, socket_of
from runtime.server.metrics_page import MetricsPage
from runtime.server.openai.door import BARE, PREFIX, OpenAiDoor
from runtime.server.playground import pages
from runtime.server.quotas import Seat
from runtime.server.service import Phase, Service
from runtime.server.session_key import SessionKeyError, session_key
from runtime.turns.message_handler import MessageHandler
from runtime.turns.outbox import Outbox
from runtime.wire import frames
from runtime.wire.frames import Frame


def create_app(service: Service) -> Starlette:
    """Make the application around a service. Its lifespan starts loading and, at the end, stops what was started."""
    page, door, settings = MetricsPage(service.metrics.registry), OpenAiDoor(service), service.settings

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def readyz(request: Request) -> Response:
        found = service.readiness()
        return JSONResponse(found.answer(), status_code=200 if found.ready else 503)

    async def metrics(request: Request) -> Response:
        return Response(await page.read(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app = Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            WebSocketRoute("/ws", WebSocketEndpoint(service)),
            Route("/ws", upgrade_required),
            WebSocketRoute("/{path:path}", no_such_socket),
            *(Route(path, door) for path in (PREFIX, f"{PREFIX}/{{path:path}}", BARE) if settings.openai_api),
            *(pages.routes() if settings.playground else ()),
        ],
        lifespan=lifespan,
    )
    # Else `/healthz/` would be: to whatever host the client names, and to plain HTTP where TLS ends before the server.
    app.router.redirect_slashes = False
    unknown = app.router.default

    async def anything_else(scope: Scope, receive: Receive, send: Send) -> None:
        """What no pattern of a path matches: one with a line end in it, say."""
        known = scope["type"] == "http" and settings.openai_api and scope["path"].startswith(f"{PREFIX}/")
        await (door if known else unknown)(scope, receive, send)

    app.router.default = anything_else
    return app


async def upgrade_required(request: Request) -> Response:
    """Answer a plain request to the WebSocket's path."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return JSONResponse({"error": "expected a WebSocket handshake"}, status_code=426, headers=headers)


async def no_such_socket(websocket: WebSocket) -> None:
    """Answer a WebSocket handshake on a path that is none with 404. A close would be answered with 403: a wrong key."""
    await websocket.receive()
    answer = JSONResponse({"error": "no such path; the WebSocket is at /ws"}, status_code=404)
    await websocket.send_denial_response(answer)


class WebSocketEndpoint:
    """The WebSocket endpoint: the handshake, who is admitted, and what the others are told."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket, from its handshake to its end."""
        try:
            await receive()
            await self._admit(scope, receive, send, socket_of(scope))
        except OSError:
            return  # the client left while something was being sent

    async def _admit(self, scope: Scope, receive: Receive, send: Send, socket: Socket) -> None:
        service = self._service
        headers = {
            name.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape") for name, value in scope["headers"]
        }
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if not origin_allowed(headers.get("origin"), service.settings.ws_allowed_origins):
            refusal = frames.Error(error_code="authentication_failed", message="This origin may not connect.")
            return await self._refuse(send, socket, refusal, frames.CLOSE_POLICY, "authentication_failed")
        credential = service.keyring.identify(headers, query)
        if credential is None:
            refusal = frames.Error(error_code="authentication_failed", message="The API key is missing or wrong.")
            return await self._refuse(send, socket, refusal, frames.CLOSE_POLICY, "authentication_failed")
        try:
            session_key(headers, query)  # for routers; what a client says in its messages is served whatever it is
        except SessionKeyError as error:
            refusal = frames.Error(
                error_code="invalid_session",
                message=str(error),
                field=error.field,
                expected=error.expected,
                found=error.found,
            )
            return await self._refuse(send, socket, refusal, frames.CLOSE_POLICY, "invalid_session")
        if service.phase is Phase.DRAINING:
            return await self._refuse(send, socket, service.draining(), frames.CLOSE_GOING_AWAY, "draining")
        if service.phase is not Phase.READY:
            full = self._capacity_error(f"Not ready: {service.reason}.")
            return await self._refuse(send, socket, full, frames.CLOSE_TRY_LATER, service.phase.value)
        seat = service.seats.take(credential.principal)
        if seat is None:  # before it waits for a slot: who waits stands in others' way too
            return await self._refuse(
                send, socket, self._over_quota(), frames.CLOSE_TRY_LATER, "connection_quota_exceeded"
            )
        try:
            slot = await service.admission.acquire()
            if slot is None:
                return await self._refuse(
                    send, socket, self._capacity_error("Server is at capacity."), frames.CLOSE_TRY_LATER, "at_capacity"
                )
            try:
                if not socket.closing:
                    socket.admit()
                    await send({"type": "websocket.accept"})
                    await self._serve(credential, receive, send, slot, seat, socket, headers.get("traceparent"))
            finally:
                slot.release()
                socket.slot_released()
        finally:
            seat.leave()
        return None

    async def _serve(
        self,
        credential: Credential,
        receive: Receive,
        send: Send,
        slot: Slot,
        seat: Seat,
        socket: Socket,
        traceparent: str | None,
    ) -> None:
        service = self._service
        if service.deployment is None or service.sessions is None:
            raise RuntimeError("a connection was admitted before anything was loaded")
        outbox = Outbox()
        handler = MessageHandler(credential.principal, outbox, service.deployment, service.sessions, traceparent)
        connection = Connection(receive, send, outbox, handler, service.decoder, service.limits, seat, socket.abort)

        def on_end() -> None:
            slot.release()
            seat.leave()
            socket.slot_released()
            service.connections.discard(connection)
            service.credentials.pop(connection, None)
            service.metrics.connection_closed(connection.close_code)

        service.connections.add(connection)
        service.credentials[connection] = credential
        if not service.keyring.holds(credential):  # since the client began to wait for its slot
            service.close_removed(connection)
        if service.phase is Phase.DRAINING:  # since the client began to wait for its slot
            connection.close(frames.CLOSE_GOING_AWAY, "draining", service.draining())
        elif service.phase is Phase.DEAD:
            connection.close(frames.CLOSE_GOING_AWAY, "engine_died")
        await connection.serve(on_end)

    def _over_quota(self) -> Frame:
        return frames.Error(
            error_code="connection_quota_exceeded",
            message="This key has as many connections as it may have; close one, or try again later.",
        )

    def _capacity_error(self, message: str) -> Frame:
        capacity = self._service.admission.capacity()
        if self._service.phase is not Phase.READY:
            capacity = frames.Capacity(active=capacity.active, max=capacity.max, available=0, at_capacity=True)
        return frames.Error(error_code="server_at_capacity", message=message, capacity=capacity)

    async def _refuse(self, send: Send, socket: Socket, frame: Frame, code: int, reason: str) -> None:
        """Accept, say why not, close: a browser can read a close code, never the status of a failed handshake."""
        if socket.closing:  # it left, or was dropped, before it was told
            return
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": frames.encode(frame)})
        await send({"type": "websocket.close", "code": code, "reason": reason})
        self._service.metrics.connection_closed(code)
