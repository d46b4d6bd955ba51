"""Answers to chat completions: a whole one, or the pieces of a stream as server-sent events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from runtime.wire.frames import Usage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class _PromptDetails(msgspec.Struct):
    cached_tokens: int
    audio_tokens: int = 0


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails


class _Function(msgspec.Struct):
    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A call of a tool. It has no arguments.

    Attributes:
        index: its place among the calls, in a stream.
        id: to be named by the tool's answer.
        type: always `function`.
        function: the tool.
    """

    index: int | None = None
    id: str
    type: str = msgspec.field(default_factory=lambda: "function")
    function: _Function

    @classmethod
    def of(cls, name: str, number: str, index: int | None = None) -> ToolCall:
        """A call of the tool `name`."""
        return cls(index=index, id=number, function=_Function(name))


class _Message(msgspec.Struct):
    role: str
    content: str | None
    refusal: None
    annotations: list[str]
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


class _Choice(msgspec.Struct):
    index: int
    message: _Message
    logprobs: None
    finish_reason: str


class _Completion(msgspec.Struct):
    """A whole answer; what each field is, OpenAI's reference says.

    Attributes:
        id, object, created, model: the same in every piece of a stream.
        choices: one.
        usage: what it cost.
        service_tier, system_fingerprint: the one that there is; and what changes with what is served.
    """

    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage
    service_tier: str
    system_fingerprint: str | None


class _Model(msgspec.Struct):
    id: str
    created: int
    owned_by: str
    object: str = "model"


class _Models(msgspec.Struct):
    data: list[_Model]
    object: str = "list"


@dataclass(frozen=True, slots=True)
class Heading:
    """What every piece of an answer says.

    Attributes:
        id: of the completion.
        created: seconds since 1970.
        model: as the request named it.
        fingerprint: of what is served.
    """

    id: str
    created: int
    model: str
    fingerprint: str | None


def usage_of(usage: Usage) -> _Usage:
    """What an answer cost."""
    return _Usage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        _PromptDetails(usage.cached_tokens),
        _CompletionDetails(usage.thinking_tokens),
    )


def whole(heading: Heading, text: str, calls: Sequence[ToolCall], usage: Usage) -> bytes:
    """An answer in one piece: the text, or the calls."""
    message = _Message("assistant", None if calls else text, None, [], list(calls) or msgspec.UNSET)
    choice = _Choice(0, message, None, "tool_calls" if calls else usage.finish_reason)
    return _encode(
        _Completion(
            heading.id,
            "chat.completion",
            heading.created,
            heading.model,
            [choice],
            usage_of(usage),
            "default",
            heading.fingerprint,
        )
    )


def models(names: Sequence[str], created: int) -> bytes:
    """The list of what is served."""
    return _encode(_Models([_Model(name, created, "yap") for name in names]))


def model(name: str, created: int) -> bytes:
    """One of them."""
    return _encode(_Model(name, created, "yap"))


class Chunks:
    """Makes the pieces of one stream. What all of them have in common is written once: there is one for each token.

    Args:
        heading: what each says.
        include_usage: whether the last one tells what it cost; the others say then that they do not.
    """

    __slots__ = ("_after", "_before", "_head", "_include_usage", "_tail")

    def __init__(self, heading: Heading, *, include_usage: bool) -> None:
        fields = {
            "id": heading.id,
            "object": "chat.completion.chunk",
            "created": heading.created,
            "model": heading.model,
            "service_tier": "default",
            "system_fingerprint": heading.fingerprint,
        }
        self._include_usage = include_usage
        self._before = b"data: " + _encode(fields)[:-1] + b',"choices":['  # before the choice
        self._after = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"  # behind it
        self._head = self._before + b'{"index":0,"delta":{"content":'  # before a text
        self._tail = b'},"logprobs":null,"finish_reason":null}' + self._after  # behind it

    def text(self, text: str) -> bytes:
        """A piece of the reply."""
        return self._head + _encode(text) + self._tail

    def role(self, *, calls: bool = False) -> bytes:
        """The first piece: who speaks, before what."""
        content = b"null" if calls else b'""'
        return self._choice(b'{"role":"assistant","content":' + content + b',"refusal":null}', None)

    def call(self, call: ToolCall) -> bytes:
        """A call of a tool."""
        return self._choice(_encode({"tool_calls": [call]}), None)

    def end(self, reason: str, usage: Usage) -> bytes:
        """The last pieces: why the reply ends, what it cost where that was asked for, and that nothing follows."""
        end = self._choice(b"{}", reason)
        if self._include_usage:
            end += self._before + b'],"usage":' + _encode(usage_of(usage)) + b"}\n\n"
        return end + DONE

    def _choice(self, delta: bytes, reason: str | None) -> bytes:
        ending = b',"logprobs":null,"finish_reason":' + _encode(reason) + b"}"
        return self._before + b'{"index":0,"delta":' + delta + ending + self._after
