"""The content of `awq_metadata.json`, for tools that look for it beside AWQ weights; a hashed file like others."""

from __future__ import annotations

from typing import Any

from runtime.artifact import ChatModel

NAME = "awq_metadata.json"
AWQ_METHODS = frozenset({"awq", "int4_awq"})


def describe_awq(chat: ChatModel, engine: str) -> dict[str, Any] | None:
    """Return the content of `awq_metadata.json`; none unless the weights were quantized here by AWQ.

    Nothing in it depends on the GPU.
    """
    stored = chat.quantization
    if stored.method not in AWQ_METHODS or stored.prequantized:
        return None
    used = stored.calibration
    return {
        "source_model": chat.source.repo,
        "source_revision": chat.source.revision,
        "quantization_method": "awq",
        "engine": engine,
        # The names of AutoAWQ's `quant_config`.
        "quantization_config": {
            "w_bit": 4,
            "q_group_size": stored.group_size,
            "zero_point": None if stored.symmetric is None else not stored.symmetric,
            "modules_to_not_convert": list(stored.kept_in_float),
        },
        "calibration": used.model_dump(mode="json") if used else None,
    }
