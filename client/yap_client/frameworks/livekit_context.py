"""LiveKit's contexts, read as this server takes them."""

from __future__ import annotations

from livekit.agents import APIStatusError, llm
from livekit.agents.llm.chat_context import DYNAMIC_INSTRUCTIONS_MESSAGE_ID

from yap_client.frameworks.context import Context, Item, ToolResult
from yap_client.transcript import Message

# Instructions in the midst of a conversation stand there as LiveKit writes them for other models of one system message.
INLINE = "<instructions>\n{}\n</instructions>"


def read(chat_ctx: llm.ChatContext) -> Context:
    """Read a context: persona, what is said of this turn alone, and what user and assistant said.

    Raises:
        APIStatusError: it holds what this server cannot take.
    """
    spoken = [n for n, item in enumerate(chat_ctx.items) if not _instructs(item) and _item(item) is not None]
    first, last = (spoken[0], spoken[-1]) if spoken else (len(chat_ctx.items), len(chat_ctx.items))
    persona: list[str] = []
    now: list[str] = []
    items: list[Item] = []
    for n, item in enumerate(chat_ctx.items):
        if not _instructs(item):
            if (said := _item(item)) is not None:
                items.append(said)
        elif text := _text(item):
            if item.id == DYNAMIC_INSTRUCTIONS_MESSAGE_ID or n > last or (not spoken and persona):
                now.append(text)  # it changes with each turn
            elif n < first:
                persona.append(text)
            else:
                items.append(Message("user", INLINE.format(text)))
    return Context("\n\n".join(persona), "\n\n".join(now), tuple(items))


def _instructs(item: llm.ChatItem) -> bool:
    return item.type == "message" and item.role in ("system", "developer")


def _item(item: llm.ChatItem) -> Item | None:
    """What an item of a context says; none where it says nothing to a model."""
    if item.type == "function_call_output":
        return ToolResult(item.call_id, item.output)
    if item.type != "message":
        return None
    text = _text(item)
    return Message("assistant" if item.role == "assistant" else "user", text) if text.strip() else None


def _text(message: llm.ChatMessage) -> str:
    for part in message.content:
        if isinstance(part, llm.ImageContent):
            raise APIStatusError("expected text, found an image: this server reads text alone", status_code=400)
    return message.raw_text_content or ""
