"""The JSON Schema of every message, for those who generate clients: `docs/protocol.schema.json`.

Frames come from their classes. What a client may send has many forms (aliases, numbers in strings, any case); here
stands the plain one of each, within the bounds and limits that the readers use. A test holds that the decoder takes
whatever fits, and that both know the same fields.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.wire import frames, messages
from runtime.wire.frames import Frame
from runtime.wire.messages import Grammar

SERVER_FRAMES: tuple[type[Frame], ...] = (
    frames.Ack,
    frames.ChatPromptAck,
    frames.HeardAck,
    frames.ToolCall,
    frames.Token,
    frames.Final,
    frames.Done,
    frames.Pong,
    frames.Warmed,
    frames.ConnectionClosed,
    frames.Error,
    frames.Draining,
)
# What `for` says tells the three kinds of `ack` apart.
ACKNOWLEDGED = {
    frames.Ack: ["start", "followup"],
    frames.ChatPromptAck: ["chat_prompt"],
    frames.HeardAck: ["heard"],
}

Schema = dict[str, Any]


def _text(description: str, limit: int | None = None, *, least: int = 0) -> Schema:
    made: Schema = {"type": "string", "description": description}
    if limit is not None:
        made["maxLength"] = limit
    if least:
        made["minLength"] = least
    return made


def _whole(description: str, low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}


def _sampling(grammar: Grammar) -> Schema:
    found: Schema = {
        name: {
            "type": "integer" if bound.whole else "number",
            "minimum": bound.low,
            "maximum": bound.high,
            "description": "the range is the operator's to change",
        }
        for name, bound in grammar.bounds.items()
    }
    found["max_tokens"] = _whole("tokens of the reply", 1, grammar.max_tokens)
    found["stop"] = {
        "type": "array",
        "maxItems": messages.MAX_STOPS,
        "items": _text("ends the reply", messages.MAX_STOP_CHARS, least=1),
    }
    found["seed"] = _whole("makes a reply repeatable", 0, messages.MAX_SEED)
    found["sanitize_output"] = {"type": "boolean", "description": "whether the text is made fit to be spoken"}
    return {"type": "object", "properties": found}


def _fields() -> Schema:
    """Every field of every message, once."""
    message: Schema = {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": "string"}},
    }
    style = {"type": "string", "pattern": f"^[A-Za-z]{{1,{messages.MAX_STYLE_CHARS}}}$"}
    return {
        "session_id": _text("the session", messages.MAX_IDENTIFIER_CHARS, least=1),
        "user_utterance": _text("what the user said"),
        "persona_text": _text("the system prompt"),
        "chat_prompt": _text("the same as persona_text, which wins"),
        "runtime_text": _text("follows the system prompt in this turn"),
        "history": {"type": "array", "items": message, "description": "replaces the session's; wins over history_text"},
        "history_text": {
            "type": "string",
            "pattern": "^(User: [^\\n]*\\n|Assistant: [^\\n]*\\n)*$",
            "description": "the same as a transcript",
        },
        "gender": {"enum": list(messages.GENDERS)},
        "persona_style": {**style, "description": "letters of any script"},
        "personality": {**style, "description": "the same as persona_style, which wins"},
        "user_identity": {"enum": list(messages.IDENTITIES)},
        "personalities": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
            "description": "checked, without effect",
        },
        "check_screen_prefix": _text("precedes the utterance after a decision yes", messages.MAX_PREFIX_CHARS),
        "screen_checked_prefix": _text("precedes the analysis of a followup", messages.MAX_PREFIX_CHARS),
        "traceparent": _text("W3C Trace Context", messages.MAX_IDENTIFIER_CHARS),
        "analysis_text": {"type": "string", "pattern": "\\S", "description": "what was seen on the screen"},
        "text": _text("the beginning of the reply, as far as it was heard"),
        "chars": _whole("its length in code points", 0, messages.MAX_CHARS),
    }


# What a `start` has, and a `prepare`, which says what a `start` would.
_START: tuple[tuple[str, ...], tuple[str, ...]] = (
    ("session_id",),
    (
        "user_utterance",
        "persona_text",
        "chat_prompt",
        "runtime_text",
        "history",
        "history_text",
        "gender",
        "persona_style",
        "personality",
        "user_identity",
        "personalities",
        "sampling",
        "check_screen_prefix",
        "screen_checked_prefix",
        "traceparent",
    ),
)
# What each message has beside `type` and `request_id`: what it must have, and what it may.
CLIENT_MESSAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "start": _START,
    "prepare": _START,
    "followup": (("analysis_text",), ("session_id", "sampling", "traceparent")),
    "heard": ((), ("session_id", "text", "chars")),
    "cancel": ((), ()),
    "end": ((), ()),
    "ping": ((), ()),
    "pong": ((), ()),
    "chat_prompt": ((), ("session_id", "persona_text", "chat_prompt", "gender", "persona_style", "personality")),
    "warm_persona": ((), ("persona_text", "chat_prompt")),
    "warm_history": ((), ("session_id", "history", "history_text", "persona_text", "chat_prompt", "runtime_text")),
}
# Where one of several must be there.
ONE_OF = {
    "heard": ("text", "chars"),
    "chat_prompt": ("persona_text", "chat_prompt"),
    "warm_persona": ("persona_text", "chat_prompt"),
    "warm_history": ("history", "history_text"),
}


def _message(kind: str, fields: Schema) -> Schema:
    required, optional = CLIENT_MESSAGES[kind]
    made: Schema = {
        "type": "object",
        "required": ["type", *required],
        "properties": {
            "type": {"const": kind},
            "request_id": {"$ref": "#/$defs/request_id"},
            **{
                name: {"$ref": "#/$defs/sampling"} if name == "sampling" else fields[name]
                for name in (*required, *optional)
            },
        },
    }
    if kind in ONE_OF:
        made["anyOf"] = [{"required": [name]} for name in ONE_OF[kind]]
    if kind in {"chat_prompt", "warm_persona"}:
        made["properties"] |= {name: {**fields[name], "pattern": "\\S"} for name in ONE_OF[kind]}
    return made


def schema(grammar: Grammar | None = None) -> Schema:
    """The document: `$defs/client` is what a client may send, `$defs/server` what it gets."""
    grammar = grammar or Grammar()
    fields = _fields()
    defs: Schema = {
        "request_id": {"anyOf": [_text("echoed", messages.MAX_IDENTIFIER_CHARS), {"type": "number"}]},
        "sampling": _sampling(grammar),
    }
    for kind in CLIENT_MESSAGES:
        defs[f"client.{kind}"] = _message(kind, fields)
    defs["client"] = {"oneOf": [{"$ref": f"#/$defs/client.{kind}"} for kind in CLIENT_MESSAGES]}
    _, components = msgspec.json.schema_components(SERVER_FRAMES, ref_template="#/$defs/server.{name}")
    for name, component in components.items():
        defs[f"server.{name}"] = {key: value for key, value in component.items() if key != "title"}
        if "description" in component:
            defs[f"server.{name}"]["description"] = component["description"].partition("\n")[0]
    for frame, kinds in ACKNOWLEDGED.items():
        defs[f"server.{frame.__name__}"]["properties"]["for"] = {"enum": kinds}
    defs["server.Token"]["properties"]["text"]["minLength"] = 1
    defs["server.Done"]["oneOf"] = [
        {"required": ["usage"], "properties": {"usage": {"$ref": "#/$defs/server.Usage"}}},
        *({"required": [name], "properties": {name: {"const": True}}} for name in ("cancelled", "failed")),
    ]
    defs["server"] = {"anyOf": [{"$ref": f"#/$defs/server.{frame.__name__}"} for frame in SERVER_FRAMES]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of /ws",
        "description": "Text frames of JSON: `$defs/client` is what a client may send, `$defs/server` what it gets. "
        "Of what the server reads in several forms, the plain one stands here. Unknown fields are ignored by the "
        "server, and may appear in its frames.",
        "anyOf": [{"$ref": "#/$defs/client"}, {"$ref": "#/$defs/server"}],
        "$defs": defs,
    }
