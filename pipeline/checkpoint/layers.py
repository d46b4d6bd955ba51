"""The linear layers of a language model: which a quantizer rounds, which stay in float and why, and how GPUs cut them.

They come from the headers of the weights, whatever the family calls them. Where no header could be read they are those
of a usual decoder of the config's shape.

Tensor parallelism cuts a layer's inputs where it takes what other layers computed in parts (the output projection of
the attention, the second matrix of the feed-forward block), and its outputs else. vLLM's `RowParallelLinear` and
TensorRT-LLM's `RowLinear` are the former. Their names are known (`CUT_INPUTS`); of one with another name the shape
tells: it writes the hidden state and reads something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.config_reader import text_config
from pipeline.checkpoint.float_layers import EMBEDDING, HEAD, OUTSIDE, ROUTER, FloatRule
from pipeline.checkpoint.shape import Shape
from pipeline.checkpoint.tensors import Tensor

# The last part of the names of layers whose inputs are cut, in vLLM's models.
CUT_INPUTS = frozenset(
    (
        *("o_proj", "down_proj", "out_proj", "fc2", "dense", "linear_fc2", "wo", "w2", "dense_4h_to_h", "c_proj", "Wo"),
        *("fc_out", "output_linear", "x_proj", "out_projection", "linear2", "w_2", "ffn_out", "attn_out"),
    )
)
# Layers that every GPU holds whole.
WHOLE = frozenset(
    {"q_a_proj", "kv_a_proj_with_mqa", "fused_qkv_a_proj", "per_layer_input_gate", "per_layer_projection"}
)
# Layers that predict further tokens ahead; they are no part of plain generation and are not loaded.
DRAFT = re.compile(r"(^|\.)(mtp|nextn|mtp_layers|mtp_block|eh_proj|enorm|hnorm)(\.|$)")
# The first matrix of attention as transformers' `Conv1D` keeps it, inputs first.
CONV1D_NAME = "c_attn"
CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
WEIGHT = ".weight"
# What safetensors and PyTorch call the types of float weights.
FLOAT_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
SMALLEST_GROUP, GROUP_SIZES = 32, (128, 64, 32)


# Why weights stay in float, beside the reasons of `float_layers`.
DRAFT_LAYERS, SMALL_PARTS = "draft layers, which are not loaded", "norms, convolutions, biases and states"


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """The layers of one name, or one of them.

    Attributes:
        name: with `*` for the numbers of layers and experts where it stands for several.
        inputs: columns of its weight.
        outputs: rows of its weight.
        count: how many there are.
        cut: which side tensor parallelism divides: `inputs`, `outputs`, or none.
    """

    name: str
    inputs: int
    outputs: int
    count: int
    cut: str | None

    @property
    def parameters(self) -> int:
        """The number of weights of all of them."""
        return self.inputs * self.outputs * self.count

    def inputs_on(self, parallel: int) -> int | None:
        """Return the inputs that one of several GPUs holds; none where they cannot be shared evenly."""
        if self.cut != "inputs":
            return self.inputs
        return self.inputs // parallel if self.inputs % parallel == 0 else None


@dataclass(frozen=True, slots=True)
class LayerTable:
    """What a model's weights are to a quantizer.

    Attributes:
        linear: the layers that it rounds.
        kept: the names of those parts that stay in float, by the reason; `*` stands for numbers.
        float_parameters: how many weights stay in float.
        from_headers: whether the weights' headers were read; otherwise it is the usual decoder of the config's shape.
        conv1d: whether its layers are transformers' `Conv1D`, which no quantizer here knows.
    """

    linear: tuple[LinearLayer, ...]
    kept: Mapping[str, tuple[str, ...]]
    float_parameters: int
    from_headers: bool
    conv1d: bool = False

    @property
    def linear_parameters(self) -> int:
        """The number of weights that a quantizer rounds."""
        return sum(layer.parameters for layer in self.linear)

    @property
    def parameters(self) -> int:
        """The number of all weights."""
        return self.linear_parameters + self.float_parameters

    @property
    def widths(self) -> tuple[int, ...]:
        """The input widths of the layers that are rounded, ascending."""
        return tuple(sorted({layer.inputs for layer in self.linear}))

    def ungrouped(self, size: int, parallel: int = 1) -> tuple[LinearLayer, ...]:
        """Return the layers whose inputs, as each of several GPUs holds them, are no multiple of a group's size."""
        shares = [(layer, layer.inputs_on(parallel)) for layer in self.linear]
        return tuple(layer for layer, inputs in shares if inputs is None or inputs % size)

    def group_size(self, preferred: int, parallel: int = 1) -> int | None:
        """Return the largest of 128, 64 and 32, at most `preferred`, that divides every width; none when none does."""
        sizes = (size for size in GROUP_SIZES if size <= preferred)
        return next((size for size in sizes if not self.ungrouped(size, parallel)), None)


def layer_table(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LayerTable:
    """Return the layers of a model.

    Args:
        config: its `config.json`.
        tensors: from the headers of its weights; empty where these were not read.

    Raises:
        ShapeError: a dimension is missing in the config.
        ConfigError: a dimension is there that cannot be understood.
    """
    shape = Shape.of(config)
    model_type = text_config(config).word("model_type") or ""
    # Files without a single matrix say nothing of layers.
    if not any(len(tensor.shape) > 1 for tensor in tensors.values()):
        return _usual(shape, conv1d=model_type in CONV1D_MODEL_TYPES)
    linear: dict[tuple[str, int, int], int] = {}
    kept: dict[str, dict[str, None]] = {}
    rule = FloatRule.of(config, tensors)
    in_float = 0
    conv1d = model_type in CONV1D_MODEL_TYPES
    for name, tensor in tensors.items():
        module = name.removesuffix(WEIGHT)
        reason = _reason(name, tensor, shape, rule)
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", module)
        if reason is not None:
            in_float += tensor.elements if reason != DRAFT_LAYERS else 0
            kept.setdefault(reason, {})[pattern] = None
            continue
        count, outputs, inputs = _dimensions(module, tensor, shape)
        last = module.rpartition(".")[2]
        conv1d = conv1d or (last == CONV1D_NAME and outputs == shape.hidden and inputs != shape.hidden)
        key = (pattern, outputs, inputs)
        linear[key] = linear.get(key, 0) + count
    layers = tuple(
        LinearLayer(name, inputs, outputs, count, _cut(name, outputs, inputs, shape))
        for (name, outputs, inputs), count in linear.items()
    )
    return LayerTable(layers, {why: tuple(names) for why, names in kept.items()}, in_float, True, conv1d)


def stored_dtype(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the type that most of the weights have, as PyTorch calls it; none where none of them is in float."""
    sizes = dict.fromkeys(FLOAT_TYPES, 0)
    for tensor in tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.elements
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return FLOAT_TYPES[most] if sizes[most] else None


def _reason(name: str, tensor: Tensor, shape: Shape, rule: FloatRule) -> str | None:
    """Return why a tensor stays in float; none for the weights of a linear layer of the language model."""
    module = name.removesuffix(WEIGHT)
    if DRAFT.search(name) or _beyond(module, shape):
        return DRAFT_LAYERS
    # Experts in one tensor may have no `weight` of their own. A convolution's kernel is narrow.
    matrix = len(tensor.shape) == 2 and name.endswith(WEIGHT)
    experts = len(tensor.shape) == 3 and min(tensor.shape) > 1 and not name.endswith("bias")
    reason = rule.why(module, tensor.shape)
    if reason in (None, OUTSIDE) and not matrix and not (experts and rule.homes):
        return SMALL_PARTS
    return reason


def _beyond(module: str, shape: Shape) -> bool:
    """Whether a module lies in a layer after the last one, where some families keep what predicts further tokens."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", module)
    return found is not None and int(found[1]) >= shape.layers


def _dimensions(module: str, tensor: Tensor, shape: Shape) -> tuple[int, int, int]:
    """Return how many matrices a tensor holds, with their outputs and inputs."""
    if len(tensor.shape) == 2:
        outputs, inputs = tensor.shape
        return 1, outputs, inputs
    # Experts in one tensor: families differ in which side comes first, but not in which side is the hidden state.
    experts, first, second = tensor.shape
    other = second if first == shape.hidden else first
    writes = re.search(r"down|w2|output|wo$", module.rpartition(".")[2]) is not None
    return (experts, shape.hidden, other) if writes else (experts, other, shape.hidden)


def _cut(name: str, outputs: int, inputs: int, shape: Shape) -> str | None:
    last = name.rpartition(".")[2]
    if last in WHOLE:
        return None
    if last in CUT_INPUTS or (outputs == shape.hidden and inputs != shape.hidden):
        return "inputs"
    return "outputs"


def _usual(shape: Shape, *, conv1d: bool) -> LayerTable:
    """Return the layers of a usual decoder: attention, and a gated feed-forward block or experts."""

    def layers(block: str, width: int, count: int) -> Iterable[LinearLayer]:
        yield LinearLayer(f"model.layers.*.{block}.gate_proj", shape.hidden, width, count, "outputs")
        yield LinearLayer(f"model.layers.*.{block}.up_proj", shape.hidden, width, count, "outputs")
        yield LinearLayer(f"model.layers.*.{block}.down_proj", width, shape.hidden, count, "inputs")

    attention = "model.layers.*.self_attn"
    linear = [
        LinearLayer(f"{attention}.q_proj", shape.hidden, shape.attention, shape.layers, "outputs"),
        LinearLayer(f"{attention}.k_proj", shape.hidden, shape.key_value, shape.layers, "outputs"),
        LinearLayer(f"{attention}.v_proj", shape.hidden, shape.key_value, shape.layers, "outputs"),
        LinearLayer(f"{attention}.o_proj", shape.attention, shape.hidden, shape.layers, "inputs"),
    ]
    if shape.experts:
        linear += layers("mlp.experts.*", shape.expert_intermediate, shape.layers * shape.experts)
    else:
        for width in shape.intermediates:
            linear += layers("mlp", width, shape.layers // len(shape.intermediates) or 1)
    kept: dict[str, tuple[str, ...]] = {EMBEDDING: ("model.embed_tokens",)}
    if not shape.tied:
        kept[HEAD] = ("lm_head",)
    if shape.experts:
        kept[ROUTER] = ("model.layers.*.mlp.gate",)
    return LayerTable(tuple(linear), kept, shape.embedding_parameters, False, conv1d)
