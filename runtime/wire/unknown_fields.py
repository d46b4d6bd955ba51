"""Fields that a message should not have: ignored, and named in a warning where they look like one that it may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice

from runtime.wire.messages import DEFAULT_BOUNDS
from runtime.wire.near_names import LONGEST, near

# Unknown fields of a message that are looked at; the others pass.
MOST = 4

SAMPLING = frozenset({*DEFAULT_BOUNDS, "max_tokens", "stop", "seed", "sanitize_output"})
_ALL = frozenset({"type", "request_id"})
_PERSONA = frozenset({"persona_text", "chat_prompt"})
_STYLE = frozenset({"gender", "persona_style", "personality"})
_HISTORY = frozenset({"history", "history_text"})

_START = (
    _ALL
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
        "traceparent",
    }
)

# What each message may have that is answered by an `ack` or by `warmed`, and what says the same as one of them.
KNOWN: Mapping[str, frozenset[str]] = {
    "start": _START,
    "prepare": _START,
    "followup": _ALL | SAMPLING | {"session_id", "analysis_text", "sampling", "traceparent"},
    "chat_prompt": _ALL | _PERSONA | _STYLE | {"session_id"},
    "warm_persona": _ALL | _PERSONA,
    "warm_history": _ALL | _PERSONA | _HISTORY | {"session_id", "runtime_text"},
    "heard": _ALL | {"session_id", "text", "chars"},
}

EVERYTHING = frozenset().union(*KNOWN.values())


def warnings(kind: str, raw: Mapping[str, object]) -> tuple[str, ...]:
    """One line for each unknown field of a message that is like a known one."""
    known = KNOWN.get(kind)
    if known is None:
        return ()
    nested = raw.get("sampling") if "sampling" in known else None
    found = [_warning(name, kind, "") for name in _unknown(raw, known)]
    if isinstance(nested, dict):
        found += [_warning(name, kind, "sampling.") for name in _unknown(nested, SAMPLING)]
    return tuple(line for line in found if line)


def misspelt(name: str, raw: Mapping[str, object]) -> str | None:
    """The field of a message that was probably meant to be the one that is missing."""
    return next((other for other in _unknown(raw, EVERYTHING) if near(other, (name,))), None)


def _unknown(raw: Mapping[str, object], known: frozenset[str]) -> Iterator[str]:
    """The first unknown names: a message may have any number of them, of any length."""
    unknown = islice((name for name in raw if name not in known), MOST)
    return (name for name in unknown if len(name) <= LONGEST)  # no longer one is like a known one, nor kept


@lru_cache(1024)
def _warning(name: str, kind: str, path: str) -> str:
    meant = near(name, SAMPLING if path else KNOWN[kind])
    return f"{path}{name}: unknown, and ignored; did you mean {path}{meant}?" if meant else ""
