#!/usr/bin/env python3
"""Write a Llama of 8B shape with random weights: real sizes and real kernels, no download.

    python3 tests/gpu/inputs/make_model.py OUT --tokenizer FOLDER

The shape is Llama 3.1 8B's, but for the vocabulary, which is the tokenizer's: 4096 × 14336, 32 layers, 32 heads, 8 KV
heads. Weights are normal with a deviation of 0.02, bfloat16, in one shard a layer group, written from the GPU if any.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 4096, 14336, 32, 32, 8, 128
LAYERS_PER_SHARD = 8
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def layer_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of one decoder layer's weights."""
    return {
        f"{prefix}.input_layernorm.weight": (HIDDEN,),
        f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
        f"{prefix}.self_attn.q_proj.weight": (HEADS * HEAD, HIDDEN),
        f"{prefix}.self_attn.k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        f"{prefix}.self_attn.v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD),
        f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
        f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN),
        f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
    }


def configuration(source: dict[str, Any], layers: int = LAYERS) -> dict[str, Any]:
    """Return the model's `config.json`; vocabulary and the tokens that end a text are those of another one."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": source["vocab_size"],
        "bos_token_id": source.get("bos_token_id"),
        "eos_token_id": source.get("eos_token_id"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder whose tokenizer and template to use")
    parser.add_argument("--layers", type=int, default=LAYERS)
    arguments = parser.parse_args()
    import torch
    from safetensors.torch import save_file

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    source = json.loads((arguments.tokenizer / "config.json").read_text())
    vocabulary = source["vocab_size"]
    for name in TOKENIZER_FILES:
        if (arguments.tokenizer / name).exists():
            shutil.copy(arguments.tokenizer / name, out / name)
    config = configuration(source, arguments.layers)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    end = {"eos_token_id": config["eos_token_id"], "bos_token_id": config["bos_token_id"]}
    (out / "generation_config.json").write_text(json.dumps(end))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def tensor(shape: tuple[int, ...]) -> object:
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        values = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return values.normal_(0, 0.02, generator=generator).cpu()

    outer = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "lm_head.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    groups = [outer]
    for first in range(0, arguments.layers, LAYERS_PER_SHARD):
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(first, min(first + LAYERS_PER_SHARD, arguments.layers)):
            shapes.update(layer_shapes(f"model.layers.{layer}"))
        groups.append(shapes)
    index: dict[str, str] = {}
    total = 0
    for number, shapes in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = {key: tensor(shape) for key, shape in shapes.items()}
        total += sum(value.numel() * 2 for value in tensors.values())
        index.update(dict.fromkeys(tensors, name))
        save_file(tensors, out / name, metadata={"format": "pt"})
        print(f"{name}: {len(tensors)} tensors", flush=True)
    document = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(document))
    print(f"{out}: {total / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
