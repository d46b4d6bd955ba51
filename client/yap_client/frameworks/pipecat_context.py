"""Pipecat's contexts, read as this server takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pipecat.adapters.llm.base_llm_adapter import BaseLLMAdapter, LLMContextConversionError
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.processors.aggregators import async_tool_messages
from pipecat.processors.aggregators.llm_context import LLMContext, LLMSpecificMessage

from yap_client.frameworks.context import Context, Item, ToolResult
from yap_client.transcript import Message

# What Pipecat writes where a call has no result of its own.
UNFINISHED = frozenset({"IN_PROGRESS", "CANCELLED"})


class YapInvocationParams(TypedDict):
    """What a context says to this server.

    Attributes:
        context: what is to be answered.
        tools: names of the tools that may be called.
    """

    context: Context
    tools: frozenset[str]


class YapLLMAdapter(BaseLLMAdapter[YapInvocationParams]):
    """Reads contexts as this server wants them: one persona, then what user and assistant said."""

    @property
    def id_for_llm_specific_messages(self) -> str:
        """The name under which contexts hold messages for this service alone."""
        return "yap"

    async def get_llm_invocation_params(
        self, context: LLMContext, *, system_instruction: str | None = None, **kwargs: object
    ) -> YapInvocationParams:
        """Read a context.

        Raises:
            LLMContextConversionError: it holds what this server cannot take.
        """
        messages = self.get_messages(context)
        own: str | None = None
        if messages and not isinstance(messages[0], LLMSpecificMessage) and messages[0].get("role") == "system":
            own = _text(messages[0])
            messages = messages[1:]
        persona = self._resolve_system_instruction(own, system_instruction, discard_context_system=True) or ""
        items = [item for message in messages if (item := _item(message)) is not None]
        tools = self.from_standard_tools(context.tools)
        names = frozenset() if context.tool_choice == "none" else frozenset(tools if isinstance(tools, list) else ())
        return {"context": Context(persona, "", tuple(items)), "tools": names}

    def to_provider_tools_format(self, tools_schema: ToolsSchema) -> list[Any]:
        """The names of tools: the server's classifier knows them, and calls them without arguments."""
        return [tool.name for tool in tools_schema.standard_tools]

    def get_messages_for_logging(self, context: LLMContext) -> list[dict[str, Any]]:
        """The messages of a context, without what is large."""
        messages = self.get_messages(context, truncate_large_values=True)
        return [dict(message) for message in messages if not isinstance(message, LLMSpecificMessage)]


def _item(message: LLMSpecificMessage | Mapping[str, Any]) -> Item | None:
    """A message of a context as this server takes it; none where it says nothing.

    What is neither the assistant's nor a tool's is the user's, as other services do where a model knows one system
    message alone.
    """
    if isinstance(message, LLMSpecificMessage):
        return None
    late = async_tool_messages.parse_message(message)
    if late is not None:
        kind = "" if late.kind == "final" else f"/{late.kind}/{hash(late.result)}"
        return None if late.result is None else ToolResult(f"{late.tool_call_id}{kind}", late.result)
    text = _text(message)
    if message["role"] == "tool":
        return None if text in UNFINISHED else ToolResult(message["tool_call_id"], text)
    if not text.strip():
        return None
    return Message("assistant", text) if message["role"] == "assistant" else Message("user", text)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts: Sequence[Mapping[str, Any]] = content
    for part in parts:
        if part.get("type") != "text":
            wrong = ValueError(f"expected parts of type text, found {part.get('type')}: this server reads text alone")
            raise LLMContextConversionError(wrong) from wrong
    return " ".join(str(part.get("text", "")) for part in parts)
