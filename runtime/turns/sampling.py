"""How a reply is drawn: the server's or the session's way, with what a message changes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from runtime.engines import Sampling
from runtime.wire.messages import SamplingChange


def changed(sampling: Sampling, change: SamplingChange) -> Sampling:
    """The sampling with a message's changes."""
    named: dict[str, Any] = {k: int(value) if k == "top_k" else value for k, value in change.values.items()}
    extra = {"max_tokens": change.max_tokens, "stop": change.stop, "seed": change.seed}
    named |= {name: value for name, value in extra.items() if value is not None}
    return replace(sampling, **named) if named else sampling
