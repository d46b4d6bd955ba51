"""A stand-in for `quantize_and_export`: config.json as TensorRT-LLM 1.2 writes it, with weights of one small layer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as quantization_of_modelopt

from tests.harness.trt.api import API, VERSION, bind

LAYER = "transformer.layers.0.attention.qkv"
STORED = {"int4_awq": "I8", "fp8": "F8_E4M3", "int8_sq": "I8"}


def layer(qformat: str) -> bytes:
    """Return a safetensors file with one rounded layer."""
    entries = {
        f"{LAYER}.weight": {"dtype": STORED[qformat], "shape": [8, 8], "data_offsets": [0, 64]},
        f"{LAYER}.weights_scaling_factor": {"dtype": "F32", "shape": [1], "data_offsets": [64, 68]},
    }
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(68)


def quantize_and_export(*arguments: Any, **keywords: Any) -> None:
    """Write a checkpoint's config.json, and weights."""
    call = bind("quantize_and_export", arguments, keywords)
    if call["qformat"] not in API["enums"]["qformat"]:
        raise ValueError(f"unsupported qformat {call['qformat']}")
    model = Path(call["model_dir"])
    # It asks whether the path holds these words, and takes the model for another kind.
    if wrong := [word for word in ("mpt", "vila", "llava-onevision-qwen2") if word in call["model_dir"]]:
        raise ValueError(f"{model} is loaded as {wrong}")
    if list(model.glob("*.py")) or "auto_map" in (model / "config.json").read_text():
        raise AssertionError("trust_remote_code: this would run the model's own code")
    texts = [json.loads(line)["text"] for line in (Path(call["calib_dataset"]) / "train.jsonl").open()]
    if len(texts) < call["calib_size"]:
        raise ValueError(f"expected {call['calib_size']} texts, found {len(texts)}")
    if os.environ.get("STAND_IN_QUANTIZE") == "fail":
        raise RuntimeError("CUDA out of memory while quantizing")
    source = json.loads((model / "config.json").read_bytes())
    algorithms = {qformat: algorithm for algorithm, qformat in API["enums"]["QuantAlgo_to_qformat"].items()}
    algorithm = algorithms[call["qformat"]]
    if os.environ.get("STAND_IN_QUANTIZE") == "other":
        algorithm = "W4A8_AWQ"
    quantization: dict[str, Any] = {"quant_algo": algorithm, "kv_cache_quant_algo": call["kv_cache_dtype"]}
    if call["qformat"] == "int4_awq":
        quantization |= {"group_size": call["awq_block_size"], "has_zero_point": False, "pre_quant_scale": True}
    out = Path(call["output_dir"])
    config = {
        "producer": {"name": "modelopt", "version": "0.37.0"},
        "architecture": source["architectures"][0],
        "dtype": call["dtype"],
        "hidden_size": source["hidden_size"],
        "num_hidden_layers": source["num_hidden_layers"],
        "num_attention_heads": source["num_attention_heads"],
        "vocab_size": source["vocab_size"],
        "max_position_embeddings": source["max_position_embeddings"],
        "mapping": {"world_size": call["tp_size"], "tp_size": call["tp_size"], "pp_size": call["pp_size"]},
        "quantization": quantization,
        "stand_in": {
            "version": VERSION,
            "call": call,
            "algorithm": quantization_of_modelopt.INT8_SMOOTHQUANT_CFG["algorithm"],
            "texts": texts,
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=4, default=str))
    for rank in range(call["tp_size"]):
        (out / f"rank{rank}.safetensors").write_bytes(layer(call["qformat"]))
