"""Fields that a message should not have: ignored, and named in a warning where they look like one that it may have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from runtime.wire.messages import DEFAULT_BOUNDS
from runtime.wire.near_names import near

# Unknown fields of a message that are looked at; the others pass.
MOST = 8

SAMPLING = frozenset({*DEFAULT_BOUNDS, "max_tokens", "stop", "seed", "sanitize_output"})
_ALL = frozenset({"type", "request_id"})
_PERSONA = frozenset({"persona_text", "chat_prompt"})
_STYLE = frozenset({"gender", "persona_style", "personality"})
_HISTORY = frozenset({"history", "history_text"})

# What each message that gets an `ack` may have.
KNOWN: Mapping[str, frozenset[str]] = {
    "start": _ALL
    | _PERSONA
    | _STYLE
    | _HISTORY
    | SAMPLING
    | {
        "session_id",
        "user_identity",
        "personalities",
        "user_utterance",
        "runtime_text",
        "sampling",
        "check_screen_prefix",
        "screen_checked_prefix",
    },
    "followup": _ALL | SAMPLING | {"session_id", "analysis_text", "sampling"},
    "chat_prompt": _ALL | _PERSONA | _STYLE | {"session_id"},
    "heard": _ALL | {"session_id", "text", "chars"},
}


def warnings(kind: str, raw: Mapping[str, object]) -> tuple[str, ...]:
    """One line for each unknown field of a message that is like a known one."""
    known = KNOWN.get(kind)
    if known is None:
        return ()
    nested = raw.get("sampling") if "sampling" in known else None
    inner = nested.keys() - SAMPLING if isinstance(nested, dict) else ()
    unknown = raw.keys() - known
    if not unknown and not inner:
        return ()
    found = [_warning(name, kind, "") for name in sorted(unknown)[:MOST]]
    found += [_warning(name, "sampling", "sampling.") for name in sorted(inner)[:MOST]]
    return tuple(line for line in found if line)


@lru_cache(1024)
def _warning(name: str, kind: str, path: str) -> str:
    meant = near(name, SAMPLING if path else KNOWN[kind])
    return f"{path}{name}: unknown, and ignored; did you mean {path}{meant}?" if meant else ""
