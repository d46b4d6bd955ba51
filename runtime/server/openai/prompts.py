"""From a conversation, which OpenAI's clients send whole each time, to a turn as `/ws` has it."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.artifact import SCREENSHOT_TOOL
from runtime.deployment.models import Chat
from runtime.engines import Sampling
from runtime.text.prompt import Message
from runtime.turns.answer import TurnRequest
from runtime.turns.sampling import changed
from runtime.wire.messages import MAX_HISTORY_MESSAGES, MAX_IDENTIFIER_CHARS
from runtime.wire.openai.errors import ApiError
from runtime.wire.openai.messages import Said
from runtime.wire.openai.request import ChatRequest

TOO_LONG = "context_length_exceeded"
# LangChain and LiteLLM know by these words of OpenAI's, and not by the code, that a conversation is too long.
EXCEEDED = "Input tokens exceed the configured limit."


def turn_request(
    request: ChatRequest, sampling: Sampling, screen_checked_prefix: str, headers: Mapping[str, str]
) -> TurnRequest:
    """The turn that answers a request.

    The last message is what is answered: a user's is an utterance, a tool's answer continues as a `followup` does.
    After an assistant's, or none, the model speaks first.
    """
    conversation = request.conversation
    # Far above any budget: what lies before these could not be seen by a model.
    history = list(conversation.said if request.whole_history else conversation.said[-MAX_HISTORY_MESSAGES:])
    last = history.pop() if history and history[-1].role != "assistant" else Said("user", "")
    return TurnRequest(
        persona=conversation.system,
        runtime_text=conversation.later,
        history=tuple(
            Message("assistant" if said.role == "assistant" else "user", _prefixed(said, screen_checked_prefix))
            for said in history
        ),
        utterance=_prefixed(last, screen_checked_prefix),
        prefix="",
        sampling=changed(sampling, request.sampling),
        sanitize=bool(request.sampling.sanitize),
        decide=last.role == "user" and bool(request.tools),
        ended=_forget,
        # For traces alone: a gateway in front of several servers may go by it.
        conversation=_readable(headers.get("x-session-id", "")[:MAX_IDENTIFIER_CHARS]),
        traceparent=headers.get("traceparent"),
        tools=request.tools,
        stream=request.stream,
    )


async def check_budgets(chat: Chat, turn: TurnRequest, cache_salt: str | None, *, whole_history: bool) -> None:
    """Refuse what would be cut: instructions and the last message always, older ones where nothing may be left out.

    Raises:
        ApiError: something is too long.
    """
    excess = await chat.persona_excess(turn.persona, turn.runtime_text, cache_salt)
    if excess is not None:
        raise _too_long(f"messages: {excess}")
    budget = await chat.utterance_budget(turn.utterance, cache_salt)
    if budget is not None:
        raise _too_long(f"messages: expected a last message of at most {budget} tokens, found more; shorten it")
    if whole_history and not await chat.history_fits(turn.persona, turn.runtime_text, turn.history, cache_salt):
        text = "messages: the conversation is longer than this server's budget; leave out its beginning, or truncation"
        raise _too_long(text)


def _too_long(text: str) -> ApiError:
    return ApiError(400, f"{EXCEEDED} {text}", code=TOO_LONG, param="messages")


def _prefixed(said: Said, screen_checked_prefix: str) -> str:
    """What was said, and of a tool's answer what about: as a session has it in its history."""
    if said.role != "tool":
        return said.text
    prefix = screen_checked_prefix if said.tool == SCREENSHOT_TOOL else f"{said.tool}:"
    gap = "" if not prefix or prefix[-1].isspace() else " "
    return f"{prefix}{gap}{said.text}"


def _readable(header: str) -> str:
    """A header's text, with U+FFFD for what is no UTF-8: a trace's exporter cannot write that, and fails."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _forget(kept: bool) -> None:
    """Nothing is kept: the client sends the conversation anew each time."""
