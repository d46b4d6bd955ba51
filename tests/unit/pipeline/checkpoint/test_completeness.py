"""What a model's files lack is told from the headers, and no model of a known family lacks anything."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
)

from pipeline.checkpoint.completeness import LINEAR, lack_of
from pipeline.checkpoint.packed import QUANTIZED_NAME
from pipeline.checkpoint.tensors import Tensor
from tests.harness.models.families import BY_SLUG, Family

Tensors = dict[str, Tensor]
TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}


def stored(model: torch.nn.Module) -> Tensors:
    """What a file of a model holds: all but what is tied to something else."""
    tied = getattr(model, "all_tied_weights_keys", {})
    state = model.state_dict()
    return {
        name: Tensor(TYPES.get(value.dtype, "U8"), tuple(value.shape), 0)
        for name, value in state.items()
        if name not in tied
    }


@functools.cache
def model(slug: str) -> tuple[Mapping[str, Any], Tensors]:
    family = BY_SLUG[slug]
    auto = AutoModelForCausalLM if family.outer is None else AutoModelForImageTextToText
    with torch.device("meta"):
        made = auto.from_config(family.config())
    return json.loads(made.config.to_json_string(use_diff=False)), stored(made)


@functools.cache
def llama(layers: int = 4, **changes: Any) -> tuple[Mapping[str, Any], Tensors]:
    family = Family("Llama", "llama", {"num_hidden_layers": layers, "tie_word_embeddings": False, **changes})
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(family.config())
    return made.config.to_dict(), stored(made)


def test_what_nobody_read_lacks_nothing() -> None:
    config, _ = llama()
    assert lack_of(config, {}) is None
    assert lack_of(config, {"odd": Tensor("BF16", (3,), 6)}) is None


@pytest.mark.parametrize("slug", BY_SLUG)
def test_no_family_of_chat_models_lacks_anything(slug: str) -> None:
    config, tensors = model(slug)
    assert lack_of(config, tensors) is None
    # As older releases wrote configs: only what differs from the class's defaults.
    family = BY_SLUG[slug]
    assert lack_of(json.loads(family.config().to_json_string(use_diff=True)), tensors) is None


# Encoders as they come by default, and one that counts its layers in another way.
CLASSIFIERS = (
    *(
        "bert",
        "roberta",
        "distilbert",
        "albert",
        "electra",
        "modernbert",
        "mobilebert",
        "xlm",
        "xlnet",
        "bart",
        "bloom",
    ),
    *("convbert", "deberta-v2", "gemma3_text", "t5", "longformer", "funnel"),
)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # DeBERTa uses it
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_no_family_of_classifiers_lacks_anything(family: str) -> None:
    config = AutoConfig.for_model(family, num_labels=2, pad_token_id=0)
    with torch.device("meta"):
        made = AutoModelForSequenceClassification.from_config(config)
    assert lack_of(json.loads(config.to_json_string(use_diff=False)), stored(made), classifier=True) is None


def told(config: Mapping[str, Any], tensors: Tensors, **more: bool) -> str:
    lack = lack_of(config, tensors, **more)
    assert lack is not None, "nothing is told"
    return f"expected {lack.expected}, found {lack.found}; {lack.next_step}"


def without(tensors: Tensors, pattern: str) -> Tensors:
    left = {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}
    assert len(left) < len(tensors)
    return left


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("name", ["mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj"])
@pytest.mark.parametrize("layers", [2, 4])
def test_one_layer_that_lacks_a_matrix_is_told(layer: int, name: str, layers: int) -> None:
    config, tensors = llama(layers)
    gone = f"model.layers.{layer % layers}.{name}.weight"
    assert f"found no {gone}; fetch it again" in told(config, without(tensors, re.escape(gone)))


def test_one_layer_that_lacks_a_norm_is_told_but_for_the_first() -> None:
    config, tensors = llama()
    assert "found no model.layers.2.input_layernorm.weight" in told(config, without(tensors, r"\.2\.input_layernorm"))
    assert lack_of(config, without(tensors, r"\.0\.input_layernorm")) is None


@pytest.mark.parametrize("layer", range(4))
def test_a_whole_layer_that_is_missing_is_told(layer: int) -> None:
    config, tensors = llama()
    line = told(config, without(tensors, rf"layers\.{layer}\."))
    assert (
        f"expected 4 layers, which its config.json counts, found none with the number {layer} in model.layers" in line
    )


def test_layers_that_the_config_does_not_count_are_told() -> None:
    config, tensors = llama()
    line = told({**config, "num_hidden_layers": 3}, tensors)
    assert "expected 3 layers, which its config.json counts, found 4 in model.layers" in line
    assert lack_of({**config, "num_hidden_layers": 3, "num_nextn_predict_layers": 1}, tensors) is None
    ahead = {f"model.layers.3.{name}.weight": Tensor("BF16", (4, 4), 32) for name in ("eh_proj", "enorm", "hnorm")}
    assert lack_of({**config, "num_hidden_layers": 3}, tensors | ahead) is None
    beside = {f"mtp.layers.0.{name}.weight": Tensor("BF16", (4, 4), 32) for name in ("q_proj", "o_proj")}
    assert lack_of(config, tensors | beside) is None


def test_an_embedding_of_another_vocabulary_is_told() -> None:
    config, tensors = llama()
    assert "an embedding of 300 tokens" in told({**config, "vocab_size": 300}, tensors)
    assert lack_of({**config, "model_type": "mllama", "vocab_size": 248}, tensors) is None


def test_a_head_that_is_said_to_be_there_is_missed() -> None:
    config, tensors = llama()
    headless = without(tensors, "lm_head")
    assert "a head of its own" in told(config, headless)
    assert lack_of({**config, "tie_word_embeddings": True}, headless) is None
    assert lack_of({key: value for key, value in config.items() if key != "tie_word_embeddings"}, headless) is None
    inside = {"text_config": config, "tie_word_embeddings": True}
    assert lack_of(inside, headless) is None
    assert "a head of its own" in told(inside | {"tie_word_embeddings": False}, headless)


def test_a_bias_without_its_weights_is_told() -> None:
    config, tensors = model("qwen-2-5")
    line = told(config, without(tensors, r"layers\.\d\.self_attn\.q_proj\.weight"))
    assert "weights of model.layers.0.self_attn.q_proj" in line


BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (r"pooler\.dense\.weight", "expected weights of bert.pooler.dense, found its bias alone"),
        (r"^classifier\.weight", "expected weights of classifier, found its bias alone"),
        (r"^classifier\.", "expected the weights of a classifier's last layer"),
        (r"layer\.1\.", "found none with the number 1 in bert.encoder.layer"),
        (r"layer\.1\.output\.dense\.", "found no bert.encoder.layer.1.output.dense.weight"),
    ],
)
def test_a_classifier_that_lacks_weights_is_told(pattern: str, line: str) -> None:
    with torch.device("meta"):
        made = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", num_labels=2, **BERT))
    assert line in told(made.config.to_dict(), without(stored(made), pattern), classifier=True)


def quantized(tensors: Tensors, kept: set[str]) -> Tensors:
    """A checkpoint in FP8 or AWQ of which some layers stay in float."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in LINEAR or "layers" not in name or module in kept:
            found[name] = tensor
        else:
            found |= {
                f"{module}.{part}": Tensor("I32", (4, 4), 64) for part in ("qweight", "qzeros", "scales", "g_idx")
            }
            found[f"{module}.bias"] = Tensor("F16", (4,), 8)
    return found


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whichever_layers_stay_in_float_a_quantized_model_lacks_nothing(data: st.DataObject) -> None:
    config, tensors = llama()
    modules = sorted(name.removesuffix(".weight") for name in tensors if "_proj" in name)
    kept = data.draw(st.sets(st.sampled_from(modules)))
    found = quantized(tensors, kept)
    assert lack_of(config, found) is None
    gone = data.draw(
        st.sampled_from([name for name in modules if name not in kept]) if len(kept) < len(modules) else st.none()
    )
    if gone is not None:
        lacking = {name: tensor for name, tensor in found.items() if not name.startswith(f"{gone}.")}
        assert f"found no {gone}.weight" in told(config, lacking)


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_quantized_weight_without_its_scales_is_told(part: str) -> None:
    config, tensors = llama()
    found = quantized(tensors, {"model.layers.0.mlp.up_proj"})
    gone = f"model.layers.2.mlp.down_proj.{part}"
    assert f"expected {part} beside each weight" in told(config, without(found, re.escape(gone)))
    rounded = {
        name: Tensor("F8_E4M3", tensor.shape, 0) if "proj" in name else tensor for name, tensor in tensors.items()
    }
    scales = {f"{name}_scale": Tensor("F32", (1,), 4) for name in tensors if "proj" in name}
    assert lack_of(config, rounded | scales) is None
    del scales["model.layers.3.self_attn.q_proj.weight_scale"]
    assert "found no model.layers.3.self_attn.q_proj.weight_scale" in told(config, rounded | scales)


def test_scales_alone_are_no_difference() -> None:
    config, tensors = llama()
    scales = {f"{name}_scale": Tensor("F32", (1,), 4) for name in tensors if "proj" in name and ".2." not in name}
    assert all(map(QUANTIZED_NAME.search, scales))
    assert lack_of(config, tensors | scales) is None
