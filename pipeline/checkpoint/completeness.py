"""What a model's files lack, or have too much of, told from the headers of its weights against its config.

What loads a float model makes up what is missing and drops what is left over; engines do so with weights that came
quantized. The workers see it exactly (`pipeline/quantize/whole_weights.py`), the plan as far as names and shapes tell:
the layers that the config counts, one layer that is less than the others, the embedding's rows, a head of its own, a
matrix of which only the bias is there. Only what no family of models does is a lack.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.checkpoint.config_reader import TEXT_SECTIONS, ConfigReader, text_config
from pipeline.checkpoint.float_layers import is_tower
from pipeline.checkpoint.layers import CUT_INPUTS, DRAFT, FLOAT_TYPES
from pipeline.checkpoint.packed import BESIDE, MORE_BESIDE, ROUNDED, packed_weight
from pipeline.checkpoint.shape import EACH_LAYER_KEYS, LAYERS_KEYS, VOCABULARY_KEYS
from pipeline.checkpoint.tensors import Tensor

AGAIN = "fetch it again, or choose another model"
CORRECT = "correct its config.json, fetch it again, or choose another model"

_LAYER = re.compile(r"^((?:.*?\.)?(?:layers?|h|blocks?|decoder_layers))\.(\d+)\.(.+)$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|tok_embeddings|word_embeddings?)\.weight$")
_HEAD = re.compile(r"(?:^|[._])(?:lm_?head|head|output\w*|embed_out|score|logits\w*|unembed\w*)(?=[._]|$)")
_CLASSIFIER = re.compile(r"classif|score|logits_proj|summary|head|decoder")
# What lies beside a weight that came quantized, and buffers that releases of transformers differ in.
_ASIDE = re.compile(
    r"(?:_scales?(?:_\w+)?|zero_points?|absmax|quant_map|quant_state\w*|SCB|inv_freq|masked_bias|bias)$"
)
_ROUNDED_NAMES = frozenset({"qweight", "weight_packed"})
_PACKED = re.compile(r"\.(?:qweight|weight_packed)$|_blocks$")
# Matrices that each layer has, whatever it is made of; the first may do without norms and the like.
_MATRIX = re.compile(
    r"(?:^|\.)(?:[qkvo]_proj|(?:up|down|gate)_proj|\w*qkv\w*|fc[12]|dense\w*|query\w*|key|value)\.weight$"
)
# Linear layers of which none has a bias alone; a head that is the embedding's may.
LINEAR = CUT_INPUTS | frozenset(
    (
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "fc1", "query", "key", "value"),
        *("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2", "query_proj", "key_proj", "value_proj"),
        *("classifier", "pre_classifier", "score", "query_key_value", "dense_h_to_4h", "c_attn", "c_fc"),
    )
)
# Keys that count layers which predict further tokens ahead; they lie behind the others.
_AHEAD = re.compile(r"nextn|next_n|mtp|predict")
# Where layers are not as many as the config's number, or are as different as somebody chose.
_OTHER_COUNTS = ("block_configs", "block_sizes")
_OTHER_COUNTING = frozenset({"longcat_flash", "albert", "funnel"})
# Its embedding has rows of its own beside the vocabulary.
_MORE_ROWS = frozenset({"mllama", "mllama_text_model"})


@dataclass(frozen=True, slots=True)
class Lack:
    """What a model lacks, or has too much of.

    Attributes:
        expected: what would be right.
        found: what is there.
        next_step: what the user can do.
    """

    expected: str
    found: str
    next_step: str


@dataclass(slots=True)
class _Layers:
    """The layers that lie in one place, by their numbers: what each holds, and which of them predict further tokens."""

    place: str
    held: dict[int, set[str]] = field(default_factory=dict)
    ahead: set[int] = field(default_factory=set)


def lack_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, classifier: bool = False) -> Lack | None:
    """Return what a model lacks; none where nothing does, or where nothing can be told.

    Args:
        config: its `config.json`.
        tensors: from the headers of its weights; empty where these were not read.
        classifier: whether it is one, and no chat model.

    Raises:
        ConfigError: the config cannot be understood.
    """
    if not any(len(tensor.shape) > 1 for tensor in tensors.values()):
        return None  # files without a single matrix say nothing
    text = text_config(config)
    return next(_lacks(config, text, tensors, classifier=classifier), None)


def _lacks(
    config: Mapping[str, Any], text: ConfigReader, tensors: Mapping[str, Tensor], *, classifier: bool
) -> Iterator[Lack]:
    stacks = _stacks(tensors)
    odd = any(text.states(key) for key in _OTHER_COUNTS) or text.word("model_type") in _OTHER_COUNTING
    count = None if odd else _count(text)
    if count is not None and stacks:
        yield from _miscounted(text, stacks, count)
        # Layers that share keys and values with others have none of their own.
        for stack in () if text.states("num_kv_shared_layers") else stacks:
            yield from _lesser_layer(stack, count)
    yield from _other_vocabulary(text, tensors)
    yield from _matrix_without_weights(tensors)
    yield from _weight_without_scales(tensors)
    if classifier:
        if (name := packed_weight(tensors)) is not None:
            yield Lack("a classifier's weights in float", f"{name} in {tensors[name].dtype}", AGAIN)
        if not any(_CLASSIFIER.search(name) for name in tensors):
            yield Lack("the weights of a classifier's last layer", "those of its encoder alone", AGAIN)
    elif _is_untied(config) and not any(_HEAD.search(name) for name in tensors if not _LAYER.match(name)):
        expected = "a head of its own (lm_head), as tie_word_embeddings: false says"
        yield Lack(expected, "none among its weights", CORRECT)


def _stacks(tensors: Mapping[str, Tensor]) -> list[_Layers]:
    """Return where the layers of a language model or an encoder may lie, without those of other senses."""
    stacks: dict[str, _Layers] = {}
    for name in tensors:
        match = _LAYER.match(name)
        if match is None or is_tower(name):
            continue
        place, number, rest = match[1], int(match[2]), match[3]
        if DRAFT.search(place):
            continue
        stack = stacks.setdefault(place, _Layers(place))
        if DRAFT.search(rest):
            stack.ahead.add(number)
        held = stack.held.setdefault(number, set())
        if not rest.endswith((*BESIDE, *MORE_BESIDE)) and not _ASIDE.search(rest):
            held.add(_PACKED.sub(".weight", rest))
    return list(stacks.values())


def _count(text: ConfigReader) -> int | None:
    number = text.number(*LAYERS_KEYS)
    if number is not None:
        return number
    listed = (text.values.get(key) for key in EACH_LAYER_KEYS)
    return next((len(value) for value in listed if isinstance(value, list | str) and value), None)


def _miscounted(text: ConfigReader, stacks: list[_Layers], count: int) -> Iterator[Lack]:
    """Tell of fewer layers than the config counts, or of more; where several places could hold them, one must fit."""
    whole = [stack for stack in stacks if all(number in stack.held for number in range(count))]
    expected = f"{count} layers, which its config.json counts"
    if not whole:
        most = max(stacks, key=lambda stack: len(stack.held))
        gone = [number for number in range(count) if number not in most.held]
        yield Lack(
            expected, f"none with the number {gone[0]} in {most.place}, of {len(gone)} that are missing", CORRECT
        )
        return
    ahead = any(_AHEAD.search(key) and value for key, value in text.values.items() if isinstance(value, int))
    most = min(whole, key=lambda stack: len(stack.held))
    more = {number for number in most.held if number >= count}
    if more and not ahead and not more & most.ahead:
        yield Lack(expected, f"{len(most.held)} in {most.place}, of which the last would be left out", CORRECT)


def _lesser_layer(stack: _Layers, count: int) -> Iterator[Lack]:
    """Tell of the one layer that lacks what all others have, and has nothing of its own instead."""
    layers = {number: held for number, held in stack.held.items() if number < count}
    if not 2 <= len(layers) == count:
        return
    lesser: list[tuple[int, list[str]]] = []
    for number, held in layers.items():
        others = [other for index, other in layers.items() if index != number]
        gone = set.intersection(*others) - held
        if gone and held <= set.union(*others):
            lesser.append((number, sorted(gone)))
    if len(lesser) != 1:
        return
    number, missed = lesser[0]
    # Norms before the first layer may be the embedding's, and it takes nothing from a layer before it. Of two layers
    # each may be the one that is made otherwise.
    certain = number > 0 and len(layers) > 2
    named = [name for name in missed if certain or _MATRIX.search(name)]
    if named:
        rest = f" and {len(missed) - 1} others" if len(missed) > 1 else ""
        expected = "in each layer what all the others have"
        yield Lack(expected, f"no {stack.place}.{number}.{named[0]}{rest}", AGAIN)


def _other_vocabulary(text: ConfigReader, tensors: Mapping[str, Tensor]) -> Iterator[Lack]:
    sizes = {size for key in VOCABULARY_KEYS for size in text.numbers(key)}
    rows = {
        name: tensor.shape[0]
        for name, tensor in tensors.items()
        if _EMBEDDING.search(name)
        and len(tensor.shape) == 2
        and tensor.dtype in FLOAT_TYPES
        and not (is_tower(name) or DRAFT.search(name) or _LAYER.match(name))
    }
    if sizes and rows and not sizes & {*rows.values()} and text.word("model_type") not in _MORE_ROWS:
        name, found = next(iter(rows.items()))
        expected = f"an embedding of {max(sizes)} tokens, which is vocab_size in its config.json"
        yield Lack(expected, f"{found} rows in {name}", "correct vocab_size, or save both together")


def _matrix_without_weights(tensors: Mapping[str, Tensor]) -> Iterator[Lack]:
    """Tell of a linear layer of which the bias alone is there."""
    modules = {name.rpartition(".")[0] for name in tensors if not name.endswith(".bias")}
    for name in tensors:
        module = name.removesuffix(".bias")
        alone = module != name and module.rpartition(".")[2] in LINEAR and module not in modules
        if alone and not any(other.startswith(f"{module}.") for other in modules):
            yield Lack(f"weights of {module}", "its bias alone", AGAIN)


def _weight_without_scales(tensors: Mapping[str, Tensor]) -> Iterator[Lack]:
    """Tell of the one rounded weight beside which something is missing that all others of its kind have."""
    kinds: dict[tuple[str, str], dict[str, set[str]]] = {}
    beside: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if _LAYER.match(name) and (last in _ROUNDED_NAMES or (last == "weight" and tensor.dtype in ROUNDED)):
            kinds.setdefault((last, tensor.dtype), {})[module] = beside.setdefault(module, set())
    for name in tensors:
        module, _, last = name.rpartition(".")
        if module in beside and f".{last}" in (*BESIDE, *MORE_BESIDE):
            beside[module].add(last)
    for modules in kinds.values():
        held = Counter(last for lasts in modules.values() for last in lasts)
        for last, count in sorted(held.items()):
            if count == len(modules) - 1 and count > 1:
                module = next(name for name, lasts in modules.items() if last not in lasts)
                yield Lack(f"{last} beside each weight that came quantized", f"no {module}.{last}", AGAIN)


def _is_untied(config: Mapping[str, Any]) -> bool:
    """Whether a config says that the head is no embedding: at every place where it may."""
    whole = ConfigReader(config)
    if whole.states("thinker_config"):
        return False
    section = whole.first(TEXT_SECTIONS)
    holders = (whole, whole.inside(section)) if section else (whole,)
    key = "tie_word_embeddings"
    return all(holder.states(key) and not holder.flag(key, default=True) for holder in holders)
