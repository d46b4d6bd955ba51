"""A model's shape, from its `config.json`: widths, heads, experts, context.

The layers themselves are in `layers`, from the weights' headers; what the weights do not tell stands here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.config_reader import ConfigReader, text_config
from runtime.artifact import Moe

# Names that the families give to one thing.
HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "n_embed", "model_dim")
HEADS_KEYS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads", "attention_heads")
LAYERS_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
# A list with an entry for each layer, where the number of layers is not said.
EACH_LAYER_KEYS = ("layers_block_type", "layer_types", "block_configs", "hybrid_override_pattern")
KEY_VALUE_KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
HEAD_SIZE_KEYS = ("head_dim", "attention_head_dim", "kv_channels", "d_kv")
INTERMEDIATE_KEYS = ("intermediate_size", "n_inner", "ffn_hidden_size", "ffn_dim", "d_ff", "shared_intermediate_size")
VOCABULARY_KEYS = ("vocab_size", "padded_vocab_size", "n_vocab")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
EXPERTS_PER_TOKEN_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
# Attention that keeps one compressed vector for all heads (DeepSeek's).
LATENT_KEY = "kv_lora_rank"
# Heads of layers that are no attention: tensor parallelism divides them likewise.
OTHER_HEADS_KEYS = ("linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "mamba_n_heads")
# Heads of the layers that attend to everything, where a family gives these their own number.
GLOBAL_KEY_VALUE_KEY = "num_global_key_value_heads"
GLOBAL_HEAD_SIZE_KEY = "global_head_dim"
# Written "ernie-4.5", it stands for the family, whose larger models are mixtures; the dense ones are `ernie4_5`.
MOE_MODEL_TYPES = re.compile(r"moe|mixtral|deepseek_v[23]|ernie_4_5|dbrx|gpt_oss")

# A part of the names that the families give to the weights of experts, and of what chooses among them.
EXPERT_WEIGHT = re.compile(r"expert|moe|router|\binput_linear\b", re.IGNORECASE)

# `Qwen3-30B-A3B`: 30 billion parameters, 3 billion of them active.
MOE_NAME = re.compile(r"-a\d+(?:\.\d+)?b(?![a-z0-9])", re.IGNORECASE)


class ShapeError(ValueError):
    """A `config.json` without a dimension; `dimension` is its name there."""

    def __init__(self, dimension: str) -> None:
        super().__init__(f"expected {dimension}, found none")
        self.dimension = dimension


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a decoder.

    Attributes:
        hidden: columns of the hidden state.
        intermediates: columns inside the feed-forward block, each layer's where they differ.
        layers: decoder layers.
        heads: attention heads, each number that a layer has.
        key_value_heads: heads of keys and values, each number that a layer has; empty where all share one vector.
        attention: columns of the attention's output projection, heads × head size.
        key_value: columns of the keys, and of the values, of one token.
        vocabulary: entries of the embedding.
        tied: whether the head is the embedding's matrix.
        context: positions that the model was made for, in tokens.
        experts: experts in each layer, 0 for a dense model.
        expert_intermediate: columns inside one expert.
        dtype: type of the weights, as config.json names it; none where it does not.
        other_heads: heads of layers that are no attention.
    """

    hidden: int
    intermediates: tuple[int, ...]
    layers: int
    heads: tuple[int, ...]
    key_value_heads: tuple[int, ...]
    attention: int
    key_value: int
    vocabulary: int
    tied: bool
    context: int | None
    experts: int
    expert_intermediate: int
    dtype: str | None
    other_heads: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read a shape from a config; multimodal ones keep theirs in a section.

        Raises:
            ShapeError: a dimension is missing.
            ConfigError: a dimension is there that cannot be understood.
        """
        text = text_config(config)
        hidden = _needed(text, HIDDEN_KEYS)
        heads = text.numbers(*HEADS_KEYS, least=0) or (_needed(text, HEADS_KEYS),)
        most_heads = max(heads) or _needed(ConfigReader({}), HEADS_KEYS)
        head_size = text.number(*HEAD_SIZE_KEYS, least=0) or hidden // most_heads or 1
        intermediates = text.numbers(*INTERMEDIATE_KEYS, least=0)
        experts = _expert_count(text)
        shared = text.states(LATENT_KEY)
        key_value_heads = text.numbers(*KEY_VALUE_KEYS, least=0) or _implied_key_value_heads(text, heads)
        key_value_heads += text.numbers(GLOBAL_KEY_VALUE_KEY)
        widest = max(head_size, text.number(GLOBAL_HEAD_SIZE_KEY) or 0)
        return cls(
            hidden=hidden,
            intermediates=_distinct(intermediates) or (4 * hidden,),
            layers=text.number(*LAYERS_KEYS) or _listed_layers(text),
            heads=_distinct(heads),
            key_value_heads=() if shared else _distinct(key_value_heads),
            attention=most_heads * head_size,
            key_value=_latent_width(text) if shared else max(key_value_heads) * widest,
            vocabulary=_needed(text, VOCABULARY_KEYS),
            tied=text.flag("tie_word_embeddings", default=False),
            context=text.number(*CONTEXT_KEYS),
            experts=experts,
            expert_intermediate=(text.number("moe_intermediate_size") or max(intermediates, default=4 * hidden))
            if experts
            else 0,
            dtype=(text.word("dtype", "torch_dtype") or "").removeprefix("torch.") or None,
            other_heads=_distinct(tuple(number for key in OTHER_HEADS_KEYS for number in text.numbers(key))),
        )

    @property
    def intermediate(self) -> int:
        """The columns inside the widest feed-forward block."""
        return max(self.intermediates)

    @property
    def linear_parameters(self) -> int:
        """The number of weights in the linear layers of a usual decoder of this shape."""
        attention = self.hidden * (2 * self.attention + 2 * self.key_value)
        inside = self.experts * self.expert_intermediate if self.experts else self.intermediate
        return self.layers * (attention + 3 * self.hidden * inside)

    @property
    def embedding_parameters(self) -> int:
        """The number of weights in the embedding and in a head of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """The number of all weights of a usual decoder of this shape, without norms and biases."""
        return self.linear_parameters + self.embedding_parameters

    @property
    def cache_bytes_per_token(self) -> int:
        """The bytes that one token takes in a KV cache with two bytes a number."""
        return 2 * 2 * self.layers * self.key_value


def mixture_of_experts(config: Mapping[str, Any], name: str, weights: Collection[str] = ()) -> Moe | None:
    """Recognize a mixture of experts by its config's counts, then by its model type, then by its name.

    Args:
        config: its `config.json`.
        name: what it is called.
        weights: what it holds, where that is known. Configs count experts that no layer has: transformers 5 saves the
            defaults of a family with every model of it.

    Raises:
        ConfigError: a count is there that cannot be understood.
    """
    if weights and not any(EXPERT_WEIGHT.search(weight) for weight in weights):
        return None
    text = text_config(config)
    experts, active = _expert_count(text), text.number(*EXPERTS_PER_TOKEN_KEYS, least=0)
    if experts:
        return Moe(
            experts=experts, experts_per_token=active or None, recognized_by=f"{_expert_key(text)} in config.json"
        )
    model_type = text.word("model_type") or ""
    if MOE_MODEL_TYPES.search(model_type.replace("-", "_").replace(".", "_")):
        return Moe(recognized_by=f"model type {model_type}")
    if match := MOE_NAME.search(name):
        return Moe(recognized_by=f"{match.group().lstrip('-')} in its name")
    return None


def expert_count(config: Mapping[str, Any]) -> int:
    """Return how many experts each layer has; 0 for a dense model.

    Raises:
        ConfigError: a count is there that cannot be understood.
    """
    return _expert_count(text_config(config))


def _expert_key(text: ConfigReader) -> str | None:
    return next((key for key in EXPERT_KEYS if text.number(key, least=0)), None)


def _expert_count(text: ConfigReader) -> int:
    key = _expert_key(text)
    count = (text.number(key, least=0) or 0) if key else 0
    return count if count > 1 else 0


def _implied_key_value_heads(text: ConfigReader, heads: tuple[int, ...]) -> tuple[int, ...]:
    """Return the heads of keys and values where no key says them: one with `multi_query`, else all."""
    one = text.flag("multi_query", default=False) and not text.flag("new_decoder_architecture", default=False)
    return (1,) if one else heads


def _latent_width(text: ConfigReader) -> int:
    # One vector serves as keys and as values, which `cache_bytes_per_token` counts twice.
    latent = (text.number(LATENT_KEY) or 0) + (text.number("qk_rope_head_dim", least=0) or 0)
    return -(-latent // 2)


def _listed_layers(text: ConfigReader) -> int:
    """Return the number of layers from a list with one entry, or a text with one letter, for each."""
    for key in EACH_LAYER_KEYS:
        value = text.values.get(key)
        if isinstance(value, list | str) and value:
            return len(value)
    raise ShapeError(LAYERS_KEYS[0])


def _needed(text: ConfigReader, keys: tuple[str, ...]) -> int:
    number = text.number(*keys)
    if number is None:
        raise ShapeError(keys[0])
    return number


def _distinct(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Return each number once; a layer without the thing, which has 0 of it, says nothing."""
    return tuple(sorted(set(numbers) - {0}))
