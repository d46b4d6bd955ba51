"""How models rotate: families, each with what its config says in transformers 4's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "attention_factor": 1.2}
LONG = {"type": "longrope", "long_factor": [1.5] * 16, "short_factor": [1.0] * 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}
# No figure is a family's default.
FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"rope_theta": 500123.0, "rope_scaling": LLAMA3, "max_position_embeddings": 131072}),
    ("llama", {"rope_theta": 60123.0}),
    ("qwen2", {"rope_theta": 1000123.0, "rope_scaling": YARN, "max_position_embeddings": 131072}),
    ("qwen3", {"rope_theta": 5000123.0}),
    ("qwen3_moe", {"rope_theta": 5000123.0}),
    ("mistral", {"rope_theta": 1000123.0}),
    ("mixtral", {"rope_theta": 2000123.0}),
    ("gemma2", {"rope_theta": 20123.0}),
    ("gemma3_text", {"rope_theta": 2000123.0, "rope_local_base_freq": 12123.0, "rope_scaling": LINEAR}),
    ("gemma3", {"text_config": {"rope_theta": 2000123.0, "rope_local_base_freq": 12123.0}}),
    (
        "phi3",
        {
            "hidden_size": 128,
            "num_attention_heads": 4,
            "rope_scaling": LONG,
            "original_max_position_embeddings": 4096,
            "max_position_embeddings": 131072,
        },
    ),
    ("phi", {"rope_theta": 12123.0, "partial_rotary_factor": 0.4}),
    ("glm", {"rope_theta": 20123.0, "partial_rotary_factor": 0.25}),
    ("stablelm", {"rope_theta": 20123.0, "partial_rotary_factor": 0.75}),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 20123}),
    ("olmo3", {"rope_theta": 500000.0, "rope_scaling": YARN, "max_position_embeddings": 131072}),
    ("gpt_oss", {"rope_theta": 150123.0, "rope_scaling": YARN}),
    ("modernbert", {"global_rope_theta": 170123.0, "local_rope_theta": 11123.0}),
)
FIELDS = (
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "rope_local_base_freq", "global_rope_theta"),
    *("local_rope_theta", "rotary_pct", "rotary_emb_base", "original_max_position_embeddings"),
)


def config(family: str, said: dict[str, Any]) -> Any:
    """Make the config of a family by the installed transformers."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **json.loads(json.dumps(said)))


def write_all(folder: Path) -> list[Path]:
    """Save every config as the installed transformers does."""
    places = [folder / f"{number}-{family}" for number, (family, _) in enumerate(FAMILIES)]
    for place, (family, said) in zip(places, FAMILIES, strict=True):
        config(family, said).save_pretrained(place)
    return places


def described(found: Any) -> dict[str, Any]:
    """How a config of transformers 4 says that its layers rotate."""
    text = found.get_text_config()
    values = {name: getattr(text, name, None) for name in FIELDS}
    scaling = values["rope_scaling"]
    if scaling is not None:
        kind = scaling.get("rope_type", scaling.get("type"))
        values["rope_scaling"] = {**scaling, "rope_type": kind, "type": kind}
    return values
