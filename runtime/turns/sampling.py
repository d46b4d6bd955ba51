"""How a reply is drawn: the server's or the session's way, with what a message changes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from runtime.engines import Sampling
from runtime.wire.messages import SamplingChange

# What is kept: a server's turns share a few ways. Not those with a text or a seed of a client's own.
KNOWN_SAMPLINGS = 256


def changed(sampling: Sampling, change: SamplingChange) -> Sampling:
    """The sampling with a message's changes."""
    named = tuple(change.values.items())
    if change.max_tokens is not None:
        named = (*named, ("max_tokens", change.max_tokens))
    if named:
        make = _with if sampling.seed is None and not sampling.stop else _with.__wrapped__
        sampling = make(sampling, named)
    if change.stop is None and change.seed is None:
        return sampling
    stop = change.stop if change.stop is not None else sampling.stop
    return replace(sampling, stop=stop, seed=change.seed if change.seed is not None else sampling.seed)


@lru_cache(KNOWN_SAMPLINGS)
def _with(sampling: Sampling, named: tuple[tuple[str, float], ...]) -> Sampling:
    values: dict[str, Any] = {name: int(value) if name == "top_k" else value for name, value in named}
    return replace(sampling, **values)
