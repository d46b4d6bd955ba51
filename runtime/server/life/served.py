"""What is served, as clients and the log name it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from runtime.artifact import BuildMetadata

# What a model is called of which nothing is known.
UNNAMED = "chat"


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, as clients name it.

    Attributes:
        names: of the model; the first is the one that is told.
        fingerprint: changes with what is served; none where nothing is known of it.
        since: seconds since 1970.
    """

    names: tuple[str, ...]
    fingerprint: str | None = None
    since: int = field(default_factory=lambda: int(time.time()))


def described(metadata: BuildMetadata) -> dict[str, str]:
    """What is served, in words of its metadata."""
    chat, tool = metadata.chat, metadata.tool
    return {
        "digest": metadata.digest[:12],
        "engine": metadata.engine,
        "chat": chat.source.repo if chat else "",
        "chat_revision": (chat.source.revision or "") if chat else "",
        "method": chat.quantization.method if chat else "",
        "tool": tool.source.repo if tool else "",
    }
