"""Records the model types whose experts llm-compressor leaves in one tensor; runs in the quantizer's environment.

    PYTHONPATH=. .venv-quantize/bin/python -m tests.harness.models.whole_experts [MODEL_TYPE…]

Each model is made without weights from the default config of its family, and nothing is downloaded. Prints JSON: the
releases, the model types that were looked at, and those whose experts stay whole.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from importlib.metadata import version

# Enough to see every kind of layer.
LAYERS, EXPERTS = 4, 4
COUNTS = {"num_hidden_layers": LAYERS, "depth": 2, "num_experts": EXPERTS, "num_local_experts": EXPERTS}


def main(names: list[str]) -> None:
    """Print the record of some model types, or of all that generate text."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from pipeline.quantize import loading

    loading.forget_broken_modules()
    from loguru import logger

    logger.remove()
    from transformers.models.auto import modeling_auto as auto

    every = {*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    looked_at, whole = [], []
    for name in names or sorted(every):
        found = stays_whole(name)
        if found is not None:
            looked_at.append(name)
            whole += [name] if found else []
    releases = {name: version(name) for name in ("llmcompressor", "transformers")}
    json.dump({"releases": releases, "looked_at": looked_at, "whole": whole}, sys.stdout)


def stays_whole(model_type: str) -> bool | None:
    """Whether experts of a model type stay in one tensor; none where it has none, or no default config."""
    import torch
    from llmcompressor.modeling.moe import linearize
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = AutoModelForCausalLM if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModelForImageTextToText
    try:
        config = AutoConfig.for_model(model_type)
        for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
            _shrink(part)
        with torch.device("meta"):
            model = kind.from_config(config)
    except Exception:
        return None
    experts = {name.rpartition(".")[0] for name, weight in model.named_parameters() if _is_experts(name, weight)}
    apart = {name for name, _ in linearize.get_non_linearized_moes(model)}
    return bool(experts - apart) if experts else None


def _shrink(config: object) -> None:
    for name, most in COUNTS.items():
        if isinstance(value := getattr(config, name, None), int) and value > most:
            setattr(config, name, most)
    if isinstance(types := getattr(config, "layer_types", None), list):
        config.layer_types = types[:LAYERS]  # type: ignore[attr-defined]


def _is_experts(name: str, weight: object) -> bool:
    shape = tuple(getattr(weight, "shape", ()))
    return len(shape) == 3 and 1 not in shape and "expert" in name and not name.endswith("bias")


if __name__ == "__main__":
    main(sys.argv[1:])
