"""A LiveKit Agents LLM: `pip install yap-client[livekit]`.

    session = AgentSession(llm=yap.LLM(url="ws://127.0.0.1:8000/ws", api_key="…"), stt=…, tts=…)

The server keeps the conversation, so that a reply costs one short message. A stream that is closed becomes a `cancel`:
the replies that are generated before a user has finished cost the server no more than their first tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast
from uuid import uuid4

from yap_client.frameworks.missing import missing

try:
    from livekit.agents import APIConnectionError, APIConnectOptions, APIError, APIStatusError, APITimeoutError, llm
    from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr
    from livekit.agents.utils import is_given
except ImportError as wrong:
    raise missing("livekit", "livekit.agents", "livekit-agents 1.8", (3, 10), wrong) from wrong

from yap_client.arguments import Sampling
from yap_client.errors import AuthenticationError, CapacityError, RefusedError, ServerGoneError, YapError
from yap_client.events import Done, Error, Interrupted, Token, ToolCall, TurnEvent, Usage
from yap_client.frameworks.context import Context
from yap_client.frameworks.conversations import Conversations
from yap_client.frameworks.livekit_context import read
from yap_client.talk import connect

# What the server answers to a message, as a status of HTTP.
STATUSES = {
    "generation_failed": 500,
    "internal_error": 500,
    "draining": 503,
    "message_rate_limited": 429,
    "cancel_rate_limited": 429,
    "session_quota_exceeded": 429,
    "message_too_big": 413,
    "chat_not_deployed": 404,
}


class LLM(llm.LLM):
    """Replies of a server that keeps the conversation.

    Several replies at once go over connections of their own, each with a session of its own.

    Args:
        url: the server's WebSocket, such as `wss://example.com/ws`.
        api_key: one of its keys.
        sampling: how replies are drawn.
        screen_checked_prefix: precedes the result of a tool in the prompt; the server has one of its own.
        max_connections: so many replies may run at once; others wait.
        model: a name for metrics.
        connect_options: further arguments of `yap_client.connect`.
    """

    def __init__(
        self,
        *,
        url: str,
        api_key: str | None = None,
        sampling: Sampling | None = None,
        screen_checked_prefix: str = "",
        max_connections: int = 4,
        model: str = "yap",
        connect_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._model = model
        self._sampling: Sampling = sampling or {}
        options = dict(connect_options or {})
        connect(url, api_key, **options)  # what is wrong in them is told now, and not by the first reply
        self._conversations = Conversations(
            lambda: connect(url, api_key, **options), prefix=screen_checked_prefix, most=max_connections
        )

    @property
    def model(self) -> str:
        """The name that metrics carry."""
        return self._model

    @property
    def provider(self) -> str:
        """The name of the service."""
        return "yap"

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        parallel_tool_calls: NotGivenOr[bool] = NOT_GIVEN,
        tool_choice: NotGivenOr[llm.ToolChoice] = NOT_GIVEN,
        extra_kwargs: NotGivenOr[dict[str, Any]] = NOT_GIVEN,
    ) -> llm.LLMStream:
        """Answer a context.

        The server's classifier decides about tools: `tool_choice` can forbid them, and not require one. Of
        `extra_kwargs` those count that are a sampling's.
        """
        extra = extra_kwargs if is_given(extra_kwargs) else {}
        names = () if tool_choice == "none" else llm.ToolContext(tools or []).function_tools
        return LLMStream(
            self,
            chat_ctx=chat_ctx,
            tools=tools or [],
            conn_options=conn_options,
            conversations=self._conversations,
            offered=frozenset(names),
            sampling={**self._sampling, **_sampling(extra)},
        )

    async def _prewarm_impl(self) -> None:
        await self._conversations.open()

    async def aclose(self) -> None:
        """Leave the server."""
        await super().aclose()
        await self._conversations.close()


class LLMStream(llm.LLMStream):
    """One reply. Closing it ends the turn on the server."""

    def __init__(
        self,
        owner: LLM,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool],
        conn_options: APIConnectOptions,
        conversations: Conversations,
        offered: frozenset[str],
        sampling: Sampling,
    ) -> None:
        super().__init__(owner, chat_ctx=chat_ctx, tools=tools, conn_options=conn_options)
        self._conversations = conversations
        self._offered = offered
        self._sampling = sampling
        self._asked: Callable[[str], None] | None = None  # told of calls
        self._said = False  # whether anything was sent on: a reply that has begun is not begun again

    async def _run(self) -> None:
        failure: Error | None = None
        try:
            async with aclosing(self._events(read(self._chat_ctx))) as events:
                # The first is the server's acknowledgement.
                event: TurnEvent | None = await asyncio.wait_for(anext(events), self._conn_options.timeout)
                while event is not None:
                    if isinstance(event, Error):
                        failure = event
                    self._send(event, failure)
                    event = await anext(events, None)
        except asyncio.TimeoutError as error:
            raise APITimeoutError(retryable=not self._said) from error
        except YapError as error:
            raise translate(error, retryable=not self._said) from error

    async def _events(self, context: Context) -> AsyncGenerator[TurnEvent, None]:
        async with self._conversations.lease(context, self._sampling) as conversation:
            self._asked = conversation.asked
            async with aclosing(conversation.reply(context, self._sampling)) as events:
                async for event in events:
                    yield event

    def _send(self, event: TurnEvent, failure: Error | None) -> None:
        """Send on what an event says to the framework."""
        if isinstance(event, Token):
            self._chunk(event, llm.ChoiceDelta(role="assistant", content=event.text))
        elif isinstance(event, ToolCall):
            calls = [
                llm.FunctionToolCall(name=name, arguments="{}", call_id=f"call_{uuid4().hex}")
                for name in event.tools
                if name in self._offered
            ]
            for call in calls:
                if self._asked is not None:
                    self._asked(call.call_id)
            if calls:
                self._chunk(event, llm.ChoiceDelta(role="assistant", tool_calls=calls))
        elif isinstance(event, Interrupted):
            raise ServerGoneError(f"the connection was lost: {event.reason}")
        elif isinstance(event, Done):
            if event.usage is not None:
                self._event_ch.send_nowait(llm.ChatChunk(id=str(event.request_id), usage=_usage(event.usage)))
            elif event.failed:
                code = failure.error_code if failure is not None else "generation_failed"
                raise RefusedError(code, failure.message if failure is not None else "the turn failed")

    def _chunk(self, event: TurnEvent, delta: llm.ChoiceDelta) -> None:
        self._said = True
        self._event_ch.send_nowait(llm.ChatChunk(id=str(event.request_id), delta=delta))


def translate(error: YapError, *, retryable: bool) -> APIError:
    """A client's error in LiveKit's words."""
    if isinstance(error, RefusedError):
        if error.code == "generation_timeout":
            return APITimeoutError(str(error), retryable=retryable)
        status = STATUSES.get(error.code, 400)
        return APIStatusError(str(error), status_code=status, body=error.code, retryable=retryable and status != 404)
    if isinstance(error, AuthenticationError):
        return APIStatusError(str(error), status_code=401, retryable=False)
    if isinstance(error, CapacityError):
        return APIStatusError(str(error), status_code=503, retryable=retryable)
    return APIConnectionError(str(error), retryable=retryable and isinstance(error, ServerGoneError))


def _sampling(values: Mapping[str, Any]) -> Sampling:
    """Those of the values that a sampling knows, also under OpenAI's name for the longest reply."""
    known = {"max_tokens" if name == "max_completion_tokens" else name: value for name, value in values.items()}
    return cast("Sampling", {name: value for name, value in known.items() if name in Sampling.__annotations__})


def _usage(usage: Usage) -> llm.CompletionUsage:
    return llm.CompletionUsage(
        prompt_tokens=usage.prompt_tokens,
        prompt_cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.thinking_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
