"""`awq_metadata.json`, for tools that look for it beside AWQ weights. It is one of the artifact's hashed files."""

from __future__ import annotations

import json
from pathlib import Path

from runtime.artifact import Quantization

NAME = "awq_metadata.json"
AWQ_METHODS = frozenset({"awq", "int4_awq"})


def describe_awq(quantization: Quantization, source: str, revision: str | None, engine: str, out: Path) -> bool:
    """Write the file where the weights were quantized here by AWQ.

    Args:
        source: the float model's name, with `revision` where it came from a hub.
        out: the artifact's folder.

    Returns:
        whether it was written.
    """
    if quantization.method not in AWQ_METHODS or quantization.prequantized:
        return False
    used = quantization.calibration
    document = {
        "source_model": source,
        "source_revision": revision,
        "quantization_method": "awq",
        "engine": engine,
        # The names of AutoAWQ's `quant_config`.
        "quantization_config": {
            "w_bit": 4,
            "q_group_size": quantization.group_size,
            "zero_point": None if quantization.symmetric is None else not quantization.symmetric,
            "modules_to_not_convert": list(quantization.kept_in_float),
        },
        "calibration": used.model_dump(mode="json") if used else None,
    }
    (out / NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return True
