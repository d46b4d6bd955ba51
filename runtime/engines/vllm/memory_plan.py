"""What a model needs of a GPU beside its KV cache: measured where a cache is filled, and expected where it is served.

vLLM measures it at every start, by computing the largest batch and by capturing some graphs. The first it does anyway,
because kernels are made ready in it; the second only to know what graphs will take. For one model, one set of options
and one kind of GPU that is always the same, so it is kept in vLLM's cache, beside what was compiled, and with it in the
artifact.

vLLM 0.30 has such a plan itself (`VLLM_ENABLE_STARTUP_PLAN`), but its key leaves out the part of the GPU's memory that
may be used: a plan of a chat model alone would be taken for one that has a classifier beside it. Where that variable is
set, to either value, vLLM is left to itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "memory_plan"
OFF = "VLLM_ENABLE_STARTUP_PLAN"

# How much less may be free than when it was measured: a driver's own use varies a little.
SLACK = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rank has before its KV cache is laid out. Memory in bytes.

    Attributes:
        key: stands for all that the model's need depends on.
        free: of the GPU, beside the weights.
        allowed: of the GPU, which the rank may use in all.
    """

    key: str
    free: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Need:
    """What a rank needs beside its KV cache, and what was free beside its weights when that was measured."""

    needed: int
    free: int


def key_of(facts: Mapping[str, object]) -> str:
    """A key for all that a need depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def folder() -> Path | None:
    """Where plans lie; none where vLLM is left to itself."""
    root = os.environ.get("VLLM_CACHE_ROOT")
    return Path(root) / FOLDER if root and OFF not in os.environ else None


def expected(here: Path, ranks: Sequence[Facts]) -> list[int] | None:
    """Bytes of KV cache for each rank, by the plan that fits all of them; none where there is none, or less is free."""
    caches: list[int] = []
    for rank, facts in enumerate(ranks):
        need = _read(_path(here, facts, rank, len(ranks)))
        if need is None:
            return None
        if facts.free < need.free - SLACK:
            log.info("memory plan left: %d MiB free, %d when it was made", facts.free >> 20, need.free >> 20)
            return None
        caches.append(facts.allowed - need.needed)
    return caches if caches and all(cache > 0 for cache in caches) else None


def keep(here: Path, ranks: Sequence[Facts], caches: Sequence[int]) -> None:
    """Keep what was measured: the bytes that were left for each rank's KV cache. Where that fails, nothing is kept."""
    for rank, (facts, cache) in enumerate(zip(ranks, caches, strict=True)):
        path = _path(here, facts, rank, len(ranks))
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(Need(facts.allowed - cache, facts.free)), sort_keys=True), "utf-8")
            new.replace(path)
        except OSError as error:
            log.info("memory plan not kept: %s", error.strerror)
            with suppress(OSError):
                new.unlink()


def _path(here: Path, facts: Facts, rank: int, ranks: int) -> Path:
    return here / f"{facts.key}-{rank}-of-{ranks}.json"


def _read(path: Path) -> Need | None:
    try:
        found = json.loads(path.read_bytes())
        need = Need(found["needed"], found["free"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # there is none, or it is none
    whole = all(type(figure) is int and figure > 0 for figure in (need.needed, need.free))
    return need if whole else None
