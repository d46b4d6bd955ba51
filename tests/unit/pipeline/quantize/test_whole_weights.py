"""What transformers makes up where a model's files lack it is refused, and a model that is whole is not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from pipeline.quantize import whole_weights
from pipeline.stages.stage import StageError
from tests.harness.models import tiny
from tests.harness.models.families import BY_SLUG

Weights = dict[str, torch.Tensor]
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny.llama(tmp_path / "llama")


def load(folder: Path, kind: Any = LlamaForCausalLM) -> PreTrainedModel:
    with whole_weights.required(folder):
        return kind.from_pretrained(folder, dtype="auto", local_files_only=True)


def rewrite(folder: Path, change: Callable[[Weights], Weights | None] = lambda _: None, **config: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights) or weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def without(*patterns: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: w for name, w in weights.items() if not any(re.search(p, name) for p in patterns)}


def spoiled(value: float) -> Callable[[Weights], None]:
    def change(weights: Weights) -> None:
        weights[DOWN][3, 5] = value

    return change


def beside(weights: Weights) -> Weights:
    return weights | {f"mtp.{name}": w.clone() for name, w in weights.items() if ".layers.1." in name}


@pytest.mark.parametrize("kind", [LlamaForCausalLM, AutoModelForCausalLM])
@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        (without(DOWN), {}, f"expected all weights of LlamaForCausalLM, found none for {DOWN}"),
        (without(r"layers\.1\."), {}, "and 6 others"),
        (lambda weights: {f"foo.{name}": w for name, w in weights.items()}, {}, "found none for .*and 18 others"),
        (None, {"tie_word_embeddings": False}, "found none for lm_head.weight"),
        (None, {"num_hidden_layers": 1}, "the layers that its config.json counts, found .*layers.1.*and 6 others"),
        (None, {"vocab_size": 300}, r"expected \(300, 64\) as the shape of model.embed_tokens.weight"),
        (None, {"hidden_size": 128}, "others of another shape"),
        (None, {"hidden_act": "nope"}, "loads as LlamaForCausalLM, found KeyError: 'nope'"),
        (None, {"dtype": "int8"}, "found .*int8"),
        (spoiled(float("nan")), {}, f"expected numbers as weights, found others in {DOWN}"),
        (spoiled(float("-inf")), {}, f"expected numbers as weights, found others in {DOWN}"),
    ],
)
def test_a_model_that_is_not_whole_is_refused_in_one_line(
    llama: Path, kind: Any, change: Callable[[Weights], Weights | None] | None, config: dict[str, Any], told: str
) -> None:
    rewrite(llama, change or (lambda _: None), **config)
    with pytest.raises(StageError, match=told) as refused:
        load(llama, kind)
    assert "\n" not in str(refused.value)
    # The next model is loaded by transformers' own method again.
    assert "whole_weights" not in PreTrainedModel.from_pretrained.__func__.__code__.co_filename


def test_each_weight_is_missed(llama: Path) -> None:
    stored = load_file(llama / "model.safetensors")
    for name in stored:
        save_file({other: w for other, w in stored.items() if other != name}, llama / "model.safetensors")
        with pytest.raises(StageError, match=f"{name}"):
            load(llama)


@pytest.mark.parametrize("change", [lambda _: None, beside, lambda w: w | {"rotary_emb.inv_freq": torch.ones(2)}])
def test_a_whole_model_is_loaded_whatever_lies_beside(llama: Path, change: Any) -> None:
    found = load(rewrite(llama, change)).state_dict()
    stored = load_file(llama / "model.safetensors")
    assert all(torch.equal(found[name], stored[name]) for name in found.keys() & stored.keys())


@pytest.mark.parametrize("slug", ["mixtral", "deepseek-v3", "opt", "gemma-2"])
def test_families_of_other_names_are_loaded(slug: str, tmp_path: Path) -> None:
    assert load(BY_SLUG[slug].write(tmp_path / "model"), AutoModelForCausalLM)
