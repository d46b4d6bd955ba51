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
from enum import Enum

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
# Parts of a multimodal model that hear and see, and what leads from there to the language model.
VISION = re.compile(r"vision|visual|image|img|vit$|siglip|clip(?!p)|patch|video|pixel")
AUDIO = re.compile(r"audio|speech|whisper|conformer|acoustic|token2wav|talker|code2wav")
PROJECTOR = re.compile(r"projector|connector|resampler|perceiver|merger|aligner|adapter|multi_?modal|mm_")
EMBEDDING = re.compile(r"emb(ed|$)|(^|\.)wte$|(^|\.)wpe$")
HEAD_NAMES = frozenset({"lm_head", "embed_out", "output", "output_layer", "head", "lm_head_out", "predictions"})
ROUTER = re.compile(r"router|(^|_)gate$|^gating|^wg$|expert_gate")
# Layers that predict further tokens ahead; they are no part of plain generation and are not loaded.
DRAFT = re.compile(r"(^|\.)(mtp|nextn|mtp_layers|mtp_block|eh_proj|enorm|hnorm)(\.|$)")
LAYER_INDEX = re.compile(r"(?:^|\.)(\d+)\.")
# The first matrix of attention as transformers' `Conv1D` keeps it, inputs first.
CONV1D_NAME = "c_attn"
CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
EXPERTS_PART = re.compile(r"(^|\.)experts?(\.|$)")
# The last parts of names of tensors that stand for a weight: of a layer, and of experts in one tensor.
WEIGHT = ".weight"
# What safetensors and PyTorch call the types of float weights.
FLOAT_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
SMALLEST_GROUP, GROUP_SIZES = 32, (128, 64, 32)


class Kept(Enum):
    """Why weights stay in float."""

    HEAD = "heads lose most and weigh least"
    EMBEDDING = "embeddings are looked up, not multiplied"
    ROUTER = "routers choose the experts, where a small error changes all"
    VISION = "vision is not served, and its widths are no multiple of a group's"
    AUDIO = "audio is not served"
    PROJECTOR = "it leads from vision or audio, which are not served"
    DRAFT = "draft layers are not loaded"
    OTHER = "norms, convolutions, biases and states are small"


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
    kept: Mapping[Kept, tuple[str, ...]]
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


def layer_table(shape: Shape, tensors: Mapping[str, Tensor], model_type: str = "") -> LayerTable:
    """Return the layers of a model.

    Args:
        shape: from its config.
        tensors: from the headers of its weights; empty where these were not read.
        model_type: as its config names it.
    """
    # Files without a single matrix say nothing of layers.
    if not any(len(tensor.shape) > 1 for tensor in tensors.values()):
        return _usual(shape, conv1d=model_type in CONV1D_MODEL_TYPES)
    linear: dict[tuple[str, int, int], int] = {}
    kept: dict[Kept, dict[str, None]] = {}
    in_float = 0
    conv1d = model_type in CONV1D_MODEL_TYPES
    for name, tensor in tensors.items():
        module = name.removesuffix(WEIGHT)
        reason = _reason(name, tensor, shape)
        pattern = re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", module)
        if reason is not None:
            in_float += tensor.elements if reason is not Kept.DRAFT else 0
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


def _reason(name: str, tensor: Tensor, shape: Shape) -> Kept | None:
    """Return why a tensor stays in float; none for the weights of a linear layer of the language model."""
    module = name.removesuffix(WEIGHT)
    parts = module.split(".")
    last = parts[-1]
    before_layers = parts[: next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))]
    for pattern, reason in ((VISION, Kept.VISION), (AUDIO, Kept.AUDIO), (PROJECTOR, Kept.PROJECTOR)):
        if any(pattern.search(part) for part in before_layers[:-1] or before_layers):
            return reason
    if DRAFT.search(name) or _beyond(module, shape):
        return Kept.DRAFT
    experts = EXPERTS_PART.search(module) is not None
    matrix = len(tensor.shape) == 2 and name.endswith(WEIGHT)
    if not matrix and not (len(tensor.shape) == 3 and experts and not last.endswith("bias")):
        return Kept.EMBEDDING if EMBEDDING.search(last) else Kept.OTHER
    if last in HEAD_NAMES and not LAYER_INDEX.search(module):
        return Kept.HEAD
    if EMBEDDING.search(last):
        return Kept.EMBEDDING
    if matrix and _is_router(parts, tensor, shape):
        return Kept.ROUTER
    return None


def _is_router(parts: list[str], tensor: Tensor, shape: Shape) -> bool:
    """Whether a matrix chooses experts: by its name, or because it has an output for each expert."""
    last = parts[-1]
    outputs, inputs = tensor.shape
    few = outputs < inputs and outputs <= max(shape.experts + 8, 8)
    if any("router" in part for part in parts):
        return True
    if ROUTER.search(last):
        return bool(shape.experts) and few
    return shape.experts > 1 and outputs == shape.experts and inputs == shape.hidden and not last.endswith("proj")


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
    kept: dict[Kept, tuple[str, ...]] = {Kept.EMBEDDING: ("model.embed_tokens",)}
    if not shape.tied:
        kept[Kept.HEAD] = ("lm_head",)
    if shape.experts:
        kept[Kept.ROUTER] = ("model.layers.*.mlp.gate",)
    return LayerTable(tuple(linear), kept, shape.embedding_parameters, False, conv1d)
