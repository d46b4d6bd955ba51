"""Refusals: the one frame that answers a message which is not acted upon, in the shape that its kind of message has."""

from __future__ import annotations

from runtime.wire.frames import ChatPromptAck, Error, Frame, RequestId
from runtime.wire.messages import ChatPrompt, Inbound, Rejected

# What the `ack` of a `chat_prompt` says beside the error code, in the words of HTTP; of all others, that it is invalid.
_CODES = {
    "no_active_session": 404,
    "chat_prompt_too_long": 413,
    "chat_prompt_rate_limited": 429,
    "message_rate_limited": 429,
    "internal_error": 500,
    "chat_not_deployed": 501,
    "draining": 503,
}


def refusal(message: Inbound, error_code: str, text: str, retry_in: int | None = None) -> Frame:
    """The answer to a message that is valid, and cannot be acted upon."""
    if isinstance(message, ChatPrompt):
        return _chat_prompt_refusal(error_code, text, message.request_id, retry_in=retry_in)
    return Error(error_code=error_code, message=text, retry_in=retry_in, request_id=message.request_id)


def rejection(rejected: Rejected) -> Frame:
    """The answer to a message that is not valid."""
    if rejected.kind == "chat_prompt":
        return _chat_prompt_refusal(
            rejected.code,
            rejected.message,
            rejected.request_id,
            field=rejected.field,
            expected=rejected.expected,
            found=rejected.found,
            retry_in=rejected.retry_in,
        )
    return Error(
        error_code=rejected.code,
        message=rejected.message,
        field=rejected.field,
        expected=rejected.expected,
        found=rejected.found,
        retry_in=rejected.retry_in,
        request_id=rejected.request_id,
    )


def _chat_prompt_refusal(
    error_code: str,
    text: str,
    request_id: RequestId | None,
    *,
    field: str | None = None,
    expected: str | None = None,
    found: str | None = None,
    retry_in: int | None = None,
) -> Frame:
    return ChatPromptAck(
        to="chat_prompt",
        ok=False,
        code=_CODES.get(error_code, 400),
        message=text,
        error_code=error_code,
        field=field,
        expected=expected,
        found=found,
        retry_in=retry_in,
        request_id=request_id,
    )
