"""The body of `POST /v1/chat/completions`: read, checked field by field, and refused by the field's name.

Unknown fields are ignored, as OpenAI's clients expect of servers that are not OpenAI's. Fields that are known and
would change the answer are never ignored: they are served, or refused unless they ask for what is done anyway.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from runtime.wire.fields import shown
from runtime.wire.json_text import read_json
from runtime.wire.messages import MAX_SEED, MAX_STOP_CHARS, MAX_STOPS, Bound, Grammar, SamplingChange
from runtime.wire.openai.errors import ApiError, invalid, invalid_type
from runtime.wire.openai.messages import Conversation, read_messages
from runtime.wire.openai.tools import read_tools

# Fields that are served.
SERVED = frozenset(
    {
        "messages",
        "model",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
    }
)
# Fields of ours, and of other servers with this API.
EXTENSIONS = frozenset({"top_k", "min_p", "repetition_penalty", "sanitize_output", "truncation"})
# Fields that change nothing of an answer.
IGNORED = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "store",
        "user",
    }
)
# What is kept of these: numbers that were found to be within their bounds.
KNOWN_SAMPLINGS = 256
# Fields that are not served, each with the values that ask for what is done anyway. Null is one for all of them.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "prediction": (),
    "reasoning_effort": ("none", "minimal"),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a client asks for.

    Attributes:
        model: one of those that are served.
        conversation: what was said.
        sampling: the parameters that the request names.
        stream: whether the answer comes in pieces.
        include_usage: whether a stream tells at its end what it cost.
        tools: those that a call may be the answer of; empty where no decision is wanted.
        one_call: whether at most one tool may be called.
        whole_history: whether nothing of the conversation may be left out of the prompt.
    """

    model: str
    conversation: Conversation
    sampling: SamplingChange = field(default_factory=SamplingChange)
    stream: bool = False
    include_usage: bool = False
    tools: frozenset[str] = frozenset()
    one_call: bool = False
    whole_history: bool = False


class RequestReader:
    """Reads requests.

    Args:
        grammar: the ranges that the operator has set.
        models: the names that are served.
        tools: the names of the tools that can be decided on.
    """

    def __init__(self, grammar: Grammar, models: Collection[str], tools: Collection[str]) -> None:
        self._grammar = grammar
        self._models = models
        self._tools = tools
        self._longest = Bound(1, grammar.max_tokens, whole=True)  # of a reply
        self._sampled = (*grammar.bounds, "sanitize_output", "max_tokens", "max_completion_tokens")
        self._known: dict[object, SamplingChange] = {}  # by the values of these: a server's clients ask a few

    def read(self, body: bytes) -> ChatRequest:
        """One request.

        Raises:
            ApiError: it is not served; says which field is to blame.
        """
        raw = self._object(body)
        model = self._model(raw.get("model"))
        if not REFUSED.keys().isdisjoint(raw):
            for name, neutral in REFUSED.items():
                _refuse(name, raw.get(name), neutral)
        stream = _flag("stream", raw.get("stream"))
        include_usage = _stream_options(raw.get("stream_options"), stream=stream)
        return ChatRequest(
            model=model,
            conversation=read_messages(raw.get("messages")),
            sampling=self._sampling(raw),
            stream=stream,
            include_usage=include_usage,
            tools=read_tools(raw.get("tools"), raw.get("tool_choice"), self._tools),
            one_call=raw.get("parallel_tool_calls") is not None
            and not _flag("parallel_tool_calls", raw.get("parallel_tool_calls")),
            whole_history=_truncation(raw.get("truncation")),
        )

    def _object(self, body: bytes) -> dict[str, object]:
        try:
            raw = read_json(body.decode())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise ApiError(400, "The body is no JSON: expected one object, as UTF-8.", code="invalid_json") from None
        if not isinstance(raw, dict):
            raise ApiError(400, f"The body: expected one JSON object, found {shown(raw)}.", code="invalid_type")
        return raw

    def _model(self, value: object) -> str:
        if value is None:
            raise invalid("model", "model: expected the name of a model, found nothing", "missing_required_parameter")
        if not isinstance(value, str):
            raise invalid_type("model", "a string", value)
        if value not in self._models:
            text = f"The model {shown(value)} does not exist. GET /v1/models lists those that do."
            raise ApiError(404, text, code="model_not_found", param="model")
        return value

    def _sampling(self, raw: Mapping[str, object]) -> SamplingChange:
        if raw.get("stop") is not None or raw.get("seed") is not None:  # hardly ever the same again
            return self._read_sampling(raw)
        asked = tuple(map(raw.get, self._sampled))
        key = asked, tuple(map(type, asked))  # for `1`, `1.0` and `true` are equal
        try:
            known = self._known.get(key)
        except TypeError:  # what cannot be a key is no value of any either
            return self._read_sampling(raw)
        if known is None:
            known = self._read_sampling(raw)
            if len(self._known) >= KNOWN_SAMPLINGS:
                self._known.clear()
            self._known[key] = known
        return known

    def _read_sampling(self, raw: Mapping[str, object]) -> SamplingChange:
        values = {}
        for name, bound in self._grammar.bounds.items():
            value = raw.get(name)
            if value is not None:
                values[name] = _number(name, value, bound)
        sanitize = raw.get("sanitize_output")
        return SamplingChange(
            values,
            False if sanitize is None else _flag("sanitize_output", sanitize),
            max_tokens=self._max_tokens(raw),
            stop=_stops(raw.get("stop")),
            seed=_seed(raw.get("seed")),
        )

    def _max_tokens(self, raw: Mapping[str, object]) -> int | None:
        found = {
            name: int(_number(name, value, self._longest))
            for name in ("max_completion_tokens", "max_tokens")
            if (value := raw.get(name)) is not None
        }
        if len(set(found.values())) > 1:
            raise invalid("max_tokens", "max_tokens: expected this or max_completion_tokens, found both")
        return next(iter(found.values()), None)


def _refuse(name: str, value: object, neutral: tuple[object, ...]) -> None:
    if value is None or any(type(value) is type(one) and value == one for one in neutral):
        return
    if neutral:
        expected = " or ".join(msgspec.json.encode(one).decode() for one in neutral)
        raise invalid(name, f"{name}: expected {expected}, found {shown(value)}", "unsupported_value")
    raise invalid(name, f"{name}: not supported by this server; leave it out", "unsupported_parameter")


def _flag(name: str, value: object) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid_type(name, "true or false", value)
    return value


def _stream_options(value: object, *, stream: bool) -> bool:
    """Whether usage is wanted at the end of a stream."""
    if value is None:
        return False
    if not isinstance(value, dict):
        raise invalid_type("stream_options", "an object", value)
    if not stream:
        raise invalid("stream_options", "stream_options: expected only where stream is true", "invalid_value")
    _refuse("stream_options.include_obfuscation", value.get("include_obfuscation"), (False,))
    return _flag("stream_options.include_usage", value.get("include_usage"))


def _truncation(value: object) -> bool:
    if value not in (None, "auto", "disabled"):
        raise invalid("truncation", f"truncation: expected auto or disabled, found {shown(value)}")
    return value == "disabled"


def _number(name: str, value: object, bound: Bound) -> float:
    kind = "integer" if bound.whole else "decimal"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid_type(name, str(bound), value)
    if isinstance(value, float) and (not math.isfinite(value) or (bound.whole and not value.is_integer())):
        raise invalid_type(name, str(bound), value)
    if not bound.low <= value <= bound.high:
        side = "below_min" if value < bound.low else "above_max"
        raise invalid(name, f"{name}: expected {bound}, found {shown(value)}", f"{kind}_{side}_value")
    return value


def _seed(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_type("seed", f"a whole number from 0 to {MAX_SEED}", value)
    return int(_number("seed", value, Bound(0, MAX_SEED, whole=True)))


def _stops(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or any(not isinstance(text, str) for text in texts):
        raise invalid_type("stop", "a string or an array of strings", value)
    if len(texts) > MAX_STOPS:
        raise invalid(
            "stop", f"stop: expected at most {MAX_STOPS} strings, found {len(texts)}", "array_above_max_length"
        )
    for text in texts:
        if not 0 < len(text) <= MAX_STOP_CHARS:
            message = f"stop: expected strings of 1 to {MAX_STOP_CHARS} characters, found one of {len(text)}"
            raise invalid("stop", message, "string_below_min_length" if not text else "string_above_max_length")
    return tuple(texts)
