"""A model's shape, from its `config.json`: widths, parameters, experts, context."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.artifact import Moe

# Names that the families give to the number of experts.
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
EXPERTS_PER_TOKEN_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
# Written "ernie-4.5", it stands for the family, whose larger models are mixtures; the dense ones are `ernie4_5`.
MOE_MODEL_TYPES = re.compile(r"moe|mixtral|deepseek_v[23]|ernie_4_5|dbrx|gpt_oss")

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
        intermediate: columns inside the feed-forward block of a dense model.
        layers: decoder layers.
        attention: columns of the attention's output projection, heads × head size.
        key_value: columns of the keys, and of the values, of one token.
        vocabulary: entries of the embedding.
        tied: whether the head is the embedding's matrix.
        context: positions that the model was made for, in tokens.
        experts: experts in each layer, 0 for a dense model.
        expert_intermediate: columns inside one expert.
        dtype: type of the weights, as config.json names it.
    """

    hidden: int
    intermediate: int
    layers: int
    attention: int
    key_value: int
    vocabulary: int
    tied: bool
    context: int | None
    experts: int
    expert_intermediate: int
    dtype: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read a shape from a config; multimodal ones keep theirs under `text_config`.

        Raises:
            ShapeError: a dimension is missing.
        """
        text: Mapping[str, Any] = {**config, **config.get("text_config", {})}
        hidden = _integer(text, "hidden_size", "n_embd", "d_model")
        heads = _integer(text, "num_attention_heads", "n_head")
        head_size = text.get("head_dim") or hidden // heads
        intermediate = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
        experts = _expert_count(text)
        return cls(
            hidden=hidden,
            intermediate=int(intermediate),
            layers=_integer(text, "num_hidden_layers", "n_layer"),
            attention=heads * int(head_size),
            key_value=int(text.get("num_key_value_heads") or heads) * int(head_size),
            vocabulary=_integer(text, "vocab_size"),
            tied=bool(text.get("tie_word_embeddings", False)),
            context=text.get("max_position_embeddings") or text.get("n_positions"),
            experts=experts,
            expert_intermediate=int(text.get("moe_intermediate_size") or intermediate) if experts else 0,
            dtype=str(text.get("dtype") or text.get("torch_dtype") or "bfloat16").removeprefix("torch."),
        )

    @property
    def linear_parameters(self) -> int:
        """The number of weights in the linear layers, which a quantizer rounds."""
        attention = self.hidden * (2 * self.attention + 2 * self.key_value)
        inside = self.experts * self.expert_intermediate if self.experts else self.intermediate
        return self.layers * (attention + 3 * self.hidden * inside)

    @property
    def embedding_parameters(self) -> int:
        """The number of weights in the embedding and in a head of its own; these stay in float."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """The number of all weights, without norms and biases."""
        return self.linear_parameters + self.embedding_parameters

    @property
    def cache_bytes_per_token(self) -> int:
        """The bytes that one token takes in a KV cache with two bytes a number."""
        return 2 * 2 * self.layers * self.key_value

    @property
    def widths(self) -> tuple[int, ...]:
        """The input widths of the linear layers that are quantized, ascending."""
        found = {self.hidden, self.attention, self.intermediate, self.expert_intermediate} - {0}
        return tuple(sorted(found))

    def group_size(self, preferred: int) -> int | None:
        """Return the largest of 128, 64 and 32, at most `preferred`, that divides every width; none when none does."""
        common = math.gcd(*self.widths)
        return next((size for size in (128, 64, 32) if size <= preferred and common % size == 0), None)


def mixture_of_experts(config: Mapping[str, Any], name: str) -> Moe | None:
    """Recognize a mixture of experts by its config's counts, then by its model type, then by its name."""
    text: Mapping[str, Any] = {**config, **config.get("text_config", {})}
    experts, active = _expert_count(text), next((text[key] for key in EXPERTS_PER_TOKEN_KEYS if text.get(key)), None)
    if experts:
        key = next(key for key in EXPERT_KEYS if text.get(key))
        return Moe(experts=experts, experts_per_token=active, recognized_by=f"{key} in config.json")
    model_type = str(text.get("model_type", "")).replace("-", "_").replace(".", "_")
    if MOE_MODEL_TYPES.search(model_type):
        return Moe(recognized_by=f"model type {text['model_type']}")
    if match := MOE_NAME.search(name):
        return Moe(recognized_by=f"{match.group().lstrip('-')} in its name")
    return None


def _expert_count(text: Mapping[str, Any]) -> int:
    count = next((text[key] for key in EXPERT_KEYS if text.get(key)), 0)
    # Some families give a count for each layer.
    largest = max(count) if isinstance(count, list) else count
    return int(largest) if int(largest) > 1 else 0


def _integer(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ShapeError(names[0])
