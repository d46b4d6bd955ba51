"""Answers every request under `/v1`: who may ask, what there is, and who is admitted to a turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

import structlog
from starlette.types import Receive, Scope, Send

from runtime.host.supervision import attempt
from runtime.server.auth import Credential, origin_allowed
from runtime.server.front.heads import field_of, path_of, refusal
from runtime.server.front.sockets import Socket, socket_of
from runtime.server.openai.completion import Completion
from runtime.server.openai.exchange import (
    JSON,
    ClientGoneError,
    Exchange,
    Header,
    new_request_id,
    shared_with,
)
from runtime.server.openai.prompts import check_budgets, turn_request
from runtime.server.service import Phase, Service
from runtime.turns.answer import TurnRequest
from runtime.turns.outbox import Outbox
from runtime.turns.turn import Turn
from runtime.wire.openai import answers
from runtime.wire.openai.answers import Chunks, Heading
from runtime.wire.openai.errors import ApiError
from runtime.wire.openai.request import ChatRequest

PREFIX = "/v1"
COMPLETIONS, MODELS = f"{PREFIX}/chat/completions", f"{PREFIX}/models"
# Where a client asks whose base_url is the server's bare address.
BARE = COMPLETIONS.removeprefix(PREFIX)

# Seconds after which a client may come again. What drains or is full may be well in a moment; a model loads for longer.
SOON, LATER = 1, 5
# What nginx calls it that the client hung up before its answer began.
CLIENT_GONE = 499

log = structlog.get_logger(__name__)


# What of a head may have been refused, beside that it cannot be read.
_HEADS = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("The body is larger than WS_MAX_MESSAGE_BYTES.", "request_too_large"),
    HTTPStatus.LENGTH_REQUIRED: ("Expected a Content-Length: bodies in chunks are not read.", "length_required"),
}


class OpenAiDoor:
    """The ASGI application under `/v1`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        exchange, socket = Exchange(scope, receive, send), socket_of(scope)
        began = time.perf_counter()
        try:
            await self._answer_or_refuse(exchange, socket)
        except (OSError, ClientGoneError):
            pass  # the client left
        except Exception as error:
            log.exception("request_failed", error=type(error).__name__)
            if exchange.status:
                socket.abort()  # in the middle of an answer nothing else tells that it ends here
                await exchange.gone()
            else:
                await exchange.refuse(ApiError(500, "The server could not handle this request.", code="internal_error"))
        finally:
            attempt("request_end", partial(self._note, exchange, time.perf_counter() - began))

    async def _answer_or_refuse(self, exchange: Exchange, socket: Socket) -> None:
        try:
            await self._answer(exchange, socket)
        except ApiError as error:
            await exchange.refuse(error, _allow(exchange) if error.status == 405 else ())

    def refused_head(self, head: bytes, status: HTTPStatus) -> bytes:
        """The whole answer to a request that is refused by its head, of which so much has come."""
        path = path_of(head).decode("latin-1")
        if path != BARE and not path.startswith(f"{PREFIX}/"):
            return refusal(status)
        message, code = _HEADS.get(status, (f"{status.phrase}.", "invalid_http"))
        error, request_id = ApiError(status.value, message, code=code), new_request_id()
        origin, allowed = field_of(head, b"origin"), self._service.settings.ws_allowed_origins
        if origin is not None and not origin_allowed(origin.decode("latin-1"), allowed):
            origin = None
        self._service.metrics.request_ended(status.value)
        if self._service.settings.log_turns:
            log.info("request", path=_known(path), status=status.value, error=code, request_id=request_id)
        more = [(b"x-request-id", request_id.encode()), *shared_with(origin)]
        return refusal(status, error.body(), JSON, more)

    def _note(self, exchange: Exchange, seconds: float) -> None:
        """Count a request that was answered, and tell of it where turns are told of."""
        status = exchange.status if exchange.status else CLIENT_GONE  # it has not begun: there was nobody to answer
        if exchange.method == "OPTIONS":
            return
        self._service.metrics.request_ended(status)
        if self._service.settings.log_turns:
            log.info(
                "request",
                path=_known(exchange.path),
                status=status,
                error=exchange.error,
                key=exchange.holder,
                request_id=exchange.request_id,
                duration_ms=round(seconds * 1000, 1),
            )

    async def _answer(self, exchange: Exchange, socket: Socket) -> None:
        if not origin_allowed(exchange.origin, self._service.settings.ws_allowed_origins):
            raise ApiError(403, "This origin may not connect.", code="origin_not_allowed")
        exchange.allow_origin()
        if exchange.method == "OPTIONS":
            return await exchange.answer_nothing(_preflight(exchange.headers))
        if exchange.path == BARE:
            message = (
                f"No such path. It is {COMPLETIONS}: the base_url ends with {PREFIX}, as in http://HOST:8000{PREFIX}."
            )
            raise ApiError(404, message, code="unknown_url")
        if exchange.path == COMPLETIONS:
            self._expect(exchange, "POST")
            return await self._complete(exchange, self._identify(exchange), socket)
        if exchange.path == MODELS or exchange.path.startswith(f"{MODELS}/"):
            self._expect(exchange, "GET", "HEAD")
            self._identify(exchange)
            return await self._tell_models(exchange)
        message = f"No such path: {exchange.method} {quote(exchange.path)[:200]}. There are {COMPLETIONS} and {MODELS}."
        raise ApiError(404, message, code="unknown_url")

    def _expect(self, exchange: Exchange, *methods: str) -> None:
        if exchange.method not in methods:
            raise ApiError(405, f"Expected {methods[0]} on this path.", code="method_not_allowed")

    def _identify(self, exchange: Exchange) -> Credential:
        credential = self._service.keyring.identify(exchange.headers, {})
        if credential is None:
            text = "The API key is missing or wrong: send it as `Authorization: Bearer …` or as `X-API-Key: …`."
            raise ApiError(401, text, code="invalid_api_key")
        exchange.holder = credential.principal.name
        phase = self._service.phase
        if phase is Phase.DRAINING:
            raise ApiError(503, "The server goes away; send this again.", code="draining", retry_after=SOON)
        if phase is not Phase.READY:
            code = "engine_died" if phase is Phase.DEAD and self._service.deployment is not None else "loading"
            raise ApiError(503, f"Not ready: {self._service.reason}.", code=code, retry_after=LATER)
        return credential

    async def _tell_models(self, exchange: Exchange) -> None:
        served = self._service.served
        if exchange.path == MODELS:
            return await exchange.answer(answers.models(served.names, served.since))
        name = exchange.path[len(MODELS) + 1 :]
        if name not in served.names:
            raise ApiError(404, "No such model.", code="model_not_found", param="model")
        return await exchange.answer(answers.model(name, served.since))

    async def _complete(self, exchange: Exchange, credential: Credential, socket: Socket) -> None:
        service = self._service
        body = await exchange.body()
        if retry := service.seats.request(credential.principal):
            text = f"Too many requests of this key; try again in {retry} s."
            raise ApiError(429, text, code="rate_limit_exceeded", retry_after=retry)
        deployment = service.deployment
        if deployment is None:
            raise RuntimeError("a request was taken before anything was loaded")
        encoding = exchange.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise ApiError(415, "Content-Encoding: expected none, a body as it is.", code="unsupported_encoding")
        request = service.requests.read(body)
        if deployment.chat is None and not request.tools:
            raise ApiError(400, "This server has no chat model: it decides on tools alone.", code="chat_not_deployed")
        turn = turn_request(request, service.sampling, service.settings.screen_checked_prefix, exchange.headers)
        await self._admit(exchange, credential, socket, request, turn)

    async def _admit(
        self, exchange: Exchange, credential: Credential, socket: Socket, request: ChatRequest, turn: TurnRequest
    ) -> None:
        service = self._service
        seat = service.seats.take(credential.principal)
        if seat is None:  # before it waits for a slot: who waits stands in others' way too
            text = "This key has as many connections and requests at once as it may have; try again later."
            raise ApiError(429, text, code="connection_quota_exceeded", retry_after=SOON)
        try:
            slot = await service.admission.acquire()
            if slot is None:
                raise ApiError(429, "Server is at capacity.", code="server_at_capacity", retry_after=SOON)
            try:
                await self._check_budgets(credential, request, turn)
                if socket.closing or socket.ended:  # who hung up meanwhile waits for nothing
                    socket.abort()
                    await exchange.gone()
                    raise ClientGoneError
                socket.admit()
                await self._run(exchange, credential, socket, request, turn)
            finally:
                slot.release()
                socket.slot_released()
        finally:
            seat.leave()

    async def _check_budgets(self, credential: Credential, request: ChatRequest, turn: TurnRequest) -> None:
        """Refuse what is too long. To find that out may cost as much as a turn does: so it is done within the slot."""
        chat = self._service.deployment.chat if self._service.deployment is not None else None
        if chat is not None:
            await check_budgets(chat, turn, credential.principal.cache_salt, whole_history=request.whole_history)

    async def _run(
        self, exchange: Exchange, credential: Credential, socket: Socket, request: ChatRequest, turn: TurnRequest
    ) -> None:
        service = self._service
        if service.deployment is None:
            raise RuntimeError("a request was admitted before anything was loaded")
        outbox = Outbox()
        heading = Heading(_completion_id(exchange), int(time.time()), request.model, service.served.fingerprint)
        service.deployment.wake_engine()
        completion = Completion(
            exchange,
            Turn(None, outbox, service.deployment, credential.principal),
            outbox,
            heading,
            one_call=request.one_call,
            abort=socket.abort,
            patience=service.settings.ws_idle_timeout_s,
        )
        service.connections.add(completion)
        service.credentials[completion] = credential
        try:
            if not service.keyring.holds(credential):  # since the client began to wait for its slot
                service.close_removed(completion)
            if service.phase is Phase.DRAINING:
                completion.end("draining")
            elif service.phase is Phase.DEAD:
                completion.end("engine_died")
            chunks = Chunks(heading, include_usage=request.include_usage) if request.stream else None
            await completion.serve(turn, chunks=chunks)
        finally:
            service.connections.discard(completion)
            service.credentials.pop(completion, None)


def _completion_id(exchange: Exchange) -> str:
    return exchange.request_id.replace("req_", "chatcmpl-")


def _allow(exchange: Exchange) -> tuple[Header, ...]:
    return ((b"allow", b"POST, OPTIONS" if exchange.path == COMPLETIONS else b"GET, HEAD, OPTIONS"),)


def _preflight(headers: Mapping[str, str]) -> tuple[Header, ...]:
    """What a browser asks before its script may send a key."""
    asked = headers.get("access-control-request-headers", "")
    # Clients have headers of their own, whose names change with every version: whatever is asked for may be sent.
    names = ", ".join(name for part in asked.split(",") if (name := part.strip()) and name.replace("-", "").isalnum())
    return (
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", (names or "authorization, content-type").encode("ascii", "ignore")),
        (b"access-control-max-age", b"600"),
    )


def _known(path: str) -> str:
    """A path as it may stand in the log: what a client made up does not."""
    return path if path in (COMPLETIONS, MODELS) else "other"
