"""The families of models that people bring, each as a tiny random model made from transformers' own configuration.

Every family has one or two layers and widths of 64 to 128, so that a method runs on it in seconds; what differs between
families (names of modules, norms, experts, towers) is as in the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.models import tiny

# A context that a plan with the default limits fits into.
CONTEXT = 8192

SHAPE: Mapping[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# The smallest that vLLM's attention on a CPU computes.
HEAD: Mapping[str, Any] = {"head_dim": 32}
# Gated delta networks beside attention; their heads are as wide as the real ones, which is all that kernels take.
DELTA: Mapping[str, Any] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
# Latent attention: DeepSeek's queries, keys and values go through narrow matrices.
LATENT: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# Gemma 4 adds a small embedding to every layer.
PER_LAYER: Mapping[str, Any] = {"vocab_size_per_layer_input": tiny.VOCABULARY, "hidden_size_per_layer_input": 32}
TOWER: Mapping[str, Any] = {
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models.

    Attributes:
        name: as people call it.
        model_type: as config.json has it.
        settings: of the language model, over `SHAPE`.
        outer: of the whole, where the language model is one part of it; none for a plain language model.
        architecture: the class as published models name it, where transformers spells it otherwise.
    """

    name: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    outer: Mapping[str, Any] | None = None
    architecture: str | None = None

    @property
    def slug(self) -> str:
        """Return its name for paths and test names."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()).strip("-")

    def config(self) -> Any:
        """Make the configuration."""
        from transformers import AutoConfig

        text = {**SHAPE, **self.settings}
        if self.outer is None:
            return AutoConfig.for_model(self.model_type, **text)
        return AutoConfig.for_model(self.model_type, text_config=text, **self.outer)

    def write(self, folder: Path) -> Path:
        """Write a random model with its tokenizer into a folder."""
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        config = self.config()
        auto = AutoModelForCausalLM if self.outer is None else AutoModelForImageTextToText
        torch.manual_seed(0)
        model = auto.from_config(config).to(torch.bfloat16)
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        if self.architecture:
            told = json.loads((folder / "config.json").read_bytes())
            (folder / "config.json").write_text(json.dumps(told | {"architectures": [self.architecture]}, indent=2))
        tiny.tokenizer(folder)
        return folder


FAMILIES: tuple[Family, ...] = (
    Family("Llama", "llama", {"tie_word_embeddings": True}),
    Family("Llama, untied", "llama"),
    Family("Mistral", "mistral", HEAD),
    Family("Qwen 2.5", "qwen2"),
    Family("Qwen 3", "qwen3", HEAD),
    Family("Qwen 3 MoE", "qwen3_moe", {**HEAD, **EXPERTS, "num_experts": 4}),
    Family(
        "Qwen3-Next",
        "qwen3_next",
        {
            **HEAD,
            **EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 128,
            **DELTA,
        },
    ),
    Family(
        "Qwen 3.5",
        "qwen3_5_text",
        {
            **HEAD,
            **DELTA,
        },
    ),
    Family(
        "Qwen 3.5 MoE",
        "qwen3_5_moe_text",
        {
            **HEAD,
            **EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 128,
            **DELTA,
        },
    ),
    Family("Mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("GPT-OSS", "gpt_oss", {**HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("DeepSeek V2", "deepseek_v2", {**EXPERTS, **LATENT}),
    Family("DeepSeek V3", "deepseek_v3", {**EXPERTS, **LATENT, "topk_method": "noaux_tc"}),
    Family("GLM-4", "glm4", HEAD),
    Family(
        "GLM-4 MoE",
        "glm4_moe",
        {**HEAD, **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    Family("Gemma 2", "gemma2", HEAD),
    Family("Gemma 3, text", "gemma3_text", HEAD),
    Family(
        "Gemma 3, vision",
        "gemma3",
        {**HEAD, "model_type": "gemma3_text"},
        {
            "vision_config": TOWER,
            "mm_tokens_per_image": 4,
            "image_token_index": 250,
            "boi_token_index": 251,
            "eoi_token_index": 252,
        },
    ),
    Family("Gemma 4, text", "gemma4_text", {**HEAD, **PER_LAYER}),
    Family("Gemma 4, vision", "gemma4", {**HEAD, **PER_LAYER, "model_type": "gemma4_text"}, {"vision_config": TOWER}),
    Family(
        "Mistral 3, vision",
        "mistral3",
        {**HEAD, "model_type": "mistral"},
        {"vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 36}, "image_token_index": 10},
    ),
    Family(
        "Qwen 2.5-VL",
        "qwen2_5_vl",
        {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
        {
            "vision_config": {
                "depth": 1,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 2,
                "out_hidden_size": 128,
            }
        },
    ),
    Family("Phi-3 and Phi-4", "phi3"),
    Family("OLMo-2", "olmo2"),
    Family("Granite", "granite"),
    Family("Granite MoE", "granitemoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Family("SmolLM3", "smollm3"),
    Family("Cohere", "cohere"),
    Family("Cohere 2", "cohere2", HEAD),
    Family(
        "Nemotron-H",
        "nemotron_h",
        {
            **HEAD,
            "layers_block_type": ["mamba", "attention", "mlp"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 4,
            "mamba_head_dim": 64,
            "ssm_state_size": 32,
            "n_groups": 2,
        },
    ),
    Family("GPT-NeoX", "gpt_neox"),
    Family("StarCoder2", "starcoder2"),
    Family("GPT-2", "gpt2", {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}),
    Family("OPT", "opt", {"ffn_dim": 256, "word_embed_proj_dim": 128}),
    Family(
        "Jamba",
        "jamba",
        {
            "num_experts_per_tok": 2,
            "num_experts": 4,
            "mamba_d_state": 16,
            "mamba_dt_rank": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        },
    ),
    Family("OLMoE", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    Family(
        "Phi-3.5 MoE",
        "phimoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        architecture="PhiMoEForCausalLM",
    ),
    Family(
        "Llama 4, vision",
        "llama4",
        {
            **HEAD,
            "model_type": "llama4_text",
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 256,
        },
        {
            "vision_config": {
                **TOWER,
                "hidden_size": 64,
                "intermediate_size": 128,
                "vision_output_dim": 64,
                "projector_input_dim": 64,
                "projector_output_dim": 64,
            }
        },
    ),
)

BY_SLUG: Mapping[str, Family] = {family.slug: family for family in FAMILIES}
