"""What this server tells, in Pipecat's terms."""

from __future__ import annotations

from pipecat.metrics.metrics import LLMTokenUsage
from pipecat.utils.errors import ErrorCategory

from yap_client.errors import AuthenticationError, ProtocolError, RateLimitError, RefusedError, YapError
from yap_client.events import Usage


def category_of(error: Exception) -> ErrorCategory | None:
    """Why something was not done, in Pipecat's words. What is permanent there ends the use of a service."""
    if isinstance(error, AuthenticationError):
        return ErrorCategory.AUTHENTICATION
    if isinstance(error, RateLimitError):
        return ErrorCategory.RATE_LIMIT
    if isinstance(error, RefusedError):
        if error.code in ("generation_failed", "generation_timeout", "internal_error", "draining"):
            return ErrorCategory.SERVER
        return ErrorCategory.QUOTA if error.code.endswith("_quota_exceeded") else ErrorCategory.INVALID_REQUEST
    if isinstance(error, ProtocolError):
        return ErrorCategory.INVALID_REQUEST
    return ErrorCategory.CONNECTIVITY if isinstance(error, YapError) else None


def usage_of(usage: Usage) -> LLMTokenUsage:
    """A turn's tokens."""
    return LLMTokenUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cache_read_input_tokens=usage.cached_tokens,
        reasoning_tokens=usage.thinking_tokens,
    )
