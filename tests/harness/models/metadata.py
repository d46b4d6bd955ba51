"""What an artifact says of itself, in a test's words."""

from __future__ import annotations

from typing import Any

from runtime.artifact import BuildMetadata, ChatModel, Limits, Platform, Quantization, Source


def metadata(engine: str = "vllm", **changes: Any) -> BuildMetadata:
    """Metadata of a small chat model; `changes` are fields of it."""
    limits = Limits(max_batch_size=24, max_input_len=500, max_output_len=100, max_model_len=700)
    chat = ChatModel(
        source=Source(repo="embedded", content_sha256="0"),
        quantization=Quantization(method="none", scheme="BF16"),
        limits=limits,
        dtype="bfloat16",
    )
    fields = {"chat": chat, "files": (), "digest": "", "created_at": "", "platform": Platform(python="3", machine="x")}
    return BuildMetadata(lane="cpu", engine=engine, **(fields | changes))
