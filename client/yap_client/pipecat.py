"""A Pipecat LLM service: `pip install yap-client[pipecat]`.

    llm = YapLLMService(
        url="ws://127.0.0.1:8000/ws",
        api_key="…",
        settings=YapLLMService.Settings(system_instruction="You are Mia."),
    )

It takes the place of any other LLM service in a pipeline. The server keeps the conversation, so that a turn costs one
short message. An interruption becomes a `cancel`; every frame of the server's names its turn, so that nothing has to be
drained before the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from yap_client.frameworks.missing import missing

try:
    from loguru import logger
    from pipecat.adapters.llm.base_llm_adapter import LLMContextConversionError
    from pipecat.frames.frames import (
        ErrorFrame,
        Frame,
        FunctionCallFromLLM,
        LLMContextFrame,
        LLMFullResponseEndFrame,
        LLMFullResponseStartFrame,
        UserStoppedSpeakingFrame,
    )
    from pipecat.processors.aggregators.llm_context import LLMContext
    from pipecat.processors.frame_processor import FrameDirection
    from pipecat.services.llm_service import WebsocketLLMService
    from pipecat.utils.errors import ErrorCategory
    from pipecat.utils.tracing.service_decorators import traced_llm
except ImportError as wrong:
    raise missing("pipecat", "pipecat", "pipecat-ai 1.14", (3, 11), wrong) from wrong

from yap_client.arguments import Sampling
from yap_client.errors import (
    ClosedError,
    RefusedError,
    ServerGoneError,
    YapError,
)
from yap_client.events import Done, Error, Interrupted, Token, ToolCall
from yap_client.frameworks.context import Context
from yap_client.frameworks.conversation import Conversation
from yap_client.frameworks.pipecat_context import YapLLMAdapter
from yap_client.frameworks.pipecat_settings import SAMPLING, YapLLMSettings, given, sampling_of
from yap_client.frameworks.pipecat_terms import category_of, usage_of
from yap_client.talk import Talk, connect
from yap_client.turn import came_within

# As long as a server holds a prepared reply, if its operator has not said otherwise.
HOLD_S = 3.0


class YapLLMService(WebsocketLLMService[YapLLMAdapter]):
    """A service whose server keeps the conversation.

    Event handlers are those of every WebSocket LLM service, `on_connection_error` among them.

    Args:
        url: the server's WebSocket, such as `wss://example.com/ws`.
        api_key: one of its keys.
        session: the session's name there; none for a new one.
        screen_checked_prefix: precedes the result of a tool in the prompt; the server has one of its own.
        settings: what can be changed while the pipeline runs.
        connect_options: further arguments of `yap_client.connect`.
        kwargs: arguments of Pipecat's own.
    """

    Settings = YapLLMSettings
    _settings: YapLLMSettings
    adapter_class = YapLLMAdapter

    def __init__(
        self,
        *,
        url: str,
        api_key: str | None = None,
        session: str | None = None,
        screen_checked_prefix: str = "",
        settings: YapLLMSettings | None = None,
        connect_options: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 - whatever Pipecat's own classes take
    ) -> None:
        store = self.Settings(
            **dict.fromkeys(("model", "system_instruction", *SAMPLING)),
            filter_incomplete_user_turns=False,
            user_turn_completion_config=None,
        )
        if settings is not None:
            store.apply_update(settings)
        super().__init__(settings=store, **kwargs)
        self._url, self._api_key, self._session = url, api_key, session
        self._prefix = screen_checked_prefix  # precedes what was seen
        self._connect_options = dict(connect_options or {})
        self._talk(session)  # what is wrong in them is told now, and not by the pipeline
        self._conversation: Conversation | None = None  # none while there is no connection
        self._unknown_tools: set[str] = set()  # that were told of
        self._confirmed = asyncio.Event()  # set when a user's turn has ended

    def can_generate_metrics(self) -> bool:
        """Say that it does."""
        return True

    # The connection: the client comes back by itself, and sends again what a server does not know.

    def _talk(self, session: str | None) -> Talk:
        return connect(self._url, self._api_key, session=session, **self._connect_options)

    async def _connect_websocket(self) -> None:
        if self._conversation is not None:
            return
        try:
            self._conversation = Conversation(await self._talk(self._session).__aenter__(), self._prefix)
        except YapError as error:
            await self._report_error(ErrorFrame(f"Error connecting: {error}", exception=error))

    async def _disconnect_websocket(self) -> None:
        conversation, self._conversation = self._conversation, None
        await self.stop_all_metrics()
        if conversation is not None:
            await conversation.talk.close()

    async def _verify_connection(self) -> bool:
        return self._conversation is not None

    async def _ensure_connected(self) -> None:
        # A client that was not to come back by itself (`backoff=None`) is replaced; one without a right key is not.
        if self._conversation is not None and isinstance(self._conversation.talk.gone, (ServerGoneError, ClosedError)):
            await self._disconnect_websocket()
        if self._conversation is None and not await self._try_reconnect(report_error=self._report_error):
            raise ServerGoneError(f"{self} has no connection")

    async def cleanup(self) -> None:
        """Release what it holds, also where the pipeline ends in another way."""
        await super().cleanup()
        await self._disconnect()

    # Replies

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer contexts; pass on everything else."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            if isinstance(frame, UserStoppedSpeakingFrame):
                self._confirmed.set()
            return
        try:
            await self.push_frame(LLMFullResponseStartFrame())
            await self.start_processing_metrics()
            await self._process_context(frame.context)
        except LLMContextConversionError as error:
            await self.push_error(error_msg=str(error), exception=error, category=ErrorCategory.APPLICATION)
        except Exception as error:  # noqa: BLE001 - whatever it is, the pipeline goes on
            if isinstance(error, RefusedError) and error.code == "generation_timeout":
                await self._call_event_handler("on_completion_timeout")
            await self.push_error(error_msg=f"Error during completion: {error}", exception=error)
        finally:
            await self.stop_processing_metrics()
            await self.push_frame(LLMFullResponseEndFrame())

    @traced_llm
    async def _process_context(self, context: LLMContext) -> None:
        sampling = sampling_of(self._settings)
        if self._conversation is not None and not self._conversation.can_draw(sampling):
            self._session = None  # another session begins, and is sent the conversation
            await self._disconnect_websocket()
            await self._connect_websocket()
        await self._ensure_connected()
        conversation = self._conversation
        if conversation is None:
            raise ServerGoneError(f"{self} was disconnected")
        self._log_llm_response(context)
        params = await self.get_llm_adapter().get_llm_invocation_params(
            context, system_instruction=given(self._settings.system_instruction)
        )
        if self._speculation_gate.is_speculating and conversation.prepare(params["context"], sampling):
            # What is withdrawn is cancelled here, and was no turn. What is neither withdrawn nor confirmed becomes one.
            self._confirmed.clear()
            await came_within(HOLD_S, self._confirmed)
        await self.start_ttfb_metrics()
        async with aclosing(self._reply(conversation, params["context"], sampling)) as events:
            async for event in events:
                if isinstance(event, Token):
                    await self.stop_ttfb_metrics()
                    await self._push_llm_text(event.text)
                else:
                    await self._call_tools(event, context, params["tools"])

    async def _reply(
        self, conversation: Conversation, context: Context, sampling: Sampling
    ) -> AsyncGenerator[Token | ToolCall, None]:
        """What is said and asked for; a reply that does not come to its end raises."""
        failure: Error | None = None
        # Left early by an interruption, this ends the turn on the server.
        async with aclosing(conversation.reply(context, sampling)) as events:
            async for event in events:
                if isinstance(event, (Token, ToolCall)):
                    yield event
                elif isinstance(event, Error):
                    failure = event
                elif isinstance(event, Interrupted):
                    raise ServerGoneError(f"the connection was lost: {event.reason}")
                elif isinstance(event, Done):
                    await self._end(event, failure)

    async def _call_tools(self, decision: ToolCall, context: LLMContext, advertised: frozenset[str]) -> None:
        """Run what the decision asks for, beside the reply that follows it."""
        calls = []
        for name in decision.tools:
            if name in advertised or name in self._functions:
                calls.append(FunctionCallFromLLM(name, f"call_{uuid4().hex}", {}, context))
            elif name not in self._unknown_tools:
                self._unknown_tools.add(name)
                logger.debug(f"{self}: the server asks for {name}, which the context does not offer")
        if calls:
            await self.stop_ttfb_metrics()
            await self.stop_ttfat_metrics()
            for call in calls:
                if self._conversation is not None:
                    self._conversation.asked(call.tool_call_id)
            await self.run_function_calls(calls)

    async def _end(self, done: Done, failure: Error | None) -> None:
        if done.usage is not None:
            await self.start_llm_usage_metrics(usage_of(done.usage))
        elif done.failed:
            code = failure.error_code if failure is not None else "generation_failed"
            raise RefusedError(code, failure.message if failure is not None else "the turn failed")
        elif done.cancelled:
            logger.warning(f"{self}: another client has taken the session over")

    async def run_inference(
        self,
        context: LLMContext,
        max_tokens: int | None = None,
        system_instruction: str | None = None,
        response_schema: dict[str, Any] | None = None,
    ) -> str | None:
        """Answer a context outside of the pipeline's conversation, in a session and on a connection of its own.

        A reply is at most as long as the server makes it: where `max_tokens` is more than that, it does not count.
        """
        self._check_response_schema(response_schema)
        params = await self.get_llm_adapter().get_llm_invocation_params(
            context, system_instruction=system_instruction or given(self._settings.system_instruction)
        )
        sampling = sampling_of(self._settings)
        async with self._talk(None) as talk:
            if max_tokens is not None:
                try:
                    return await self._whole(talk, params["context"], {**sampling, "max_tokens": max_tokens})
                except RefusedError as error:
                    if error.field != "max_tokens":
                        raise
            return await self._whole(talk, params["context"], sampling)

    async def _whole(self, talk: Talk, context: Context, sampling: Sampling) -> str:
        events = self._reply(Conversation(talk, self._prefix), context, sampling)
        return "".join([event.text async for event in events if isinstance(event, Token)])

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        return category_of(exception)
