"""Where scales can move is found on the model itself: by families, in the quantizer environment."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.harness.models.families import BY_SLUG
from tests.harness.models.forks import ROOT
from tests.harness.models.matrix import QUANTIZER

pytestmark = pytest.mark.engine

# Prints the places of each folder that it is given, and whether anything of the model was left changed.
FIND = """
import json, sys
from llmcompressor.utils import load_context
from pipeline.quantize import loading, smoothing
for folder in sys.argv[1:]:
    loading.forget_broken_modules()
    kind = loading.class_of(__import__("pathlib").Path(folder))
    with load_context(kind):
        model = kind.from_pretrained(folder, dtype="auto", local_files_only=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = smoothing.find(model, [list(range(3, 35))], loading.linears(model))
    same = all(value.equal(before[name]) for name, value in model.state_dict().items())
    print("PLACES " + json.dumps([same, [[place.smooth, place.balance, place.suits_smoothquant] for place in places]]))
"""
FAMILIES = ("llama", "gemma-2", "olmo-2", "gpt-neox", "opt", "cohere", "qwen-3-moe")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, tuple[str, ...], bool]]]:
    """The places of every family, without the number of the layer."""
    folders = [str(BY_SLUG[name].write(tmp_path_factory.mktemp(name))) for name in FAMILIES]
    command = [str(QUANTIZER), "-c", FIND, *folders]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.removeprefix("PLACES ") for line in done.stdout.splitlines() if line.startswith("PLACES ")]
    found = {}
    for name, line in zip(FAMILIES, lines, strict=True):
        unchanged, told = json.loads(line)
        assert unchanged, name
        found[name] = [(smooth, tuple(balance), suits) for smooth, balance, suits in told]
    return found


def kinds(places: list[tuple[str, tuple[str, ...], bool]]) -> dict[str, set[str]]:
    """The first layer's places, by the last part of the names."""
    first = [(smooth, balance) for smooth, balance, _ in places if ".0." in smooth and ".experts." not in smooth]
    return {smooth.rpartition(".")[2]: {name.rpartition(".")[2] for name in balance} for smooth, balance in first}


QKV, GATED = {"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"input_layernorm": QKV, "post_attention_layernorm": GATED, "up_proj": {"down_proj"}}),
        # The norm after the attention is added to the hidden state: to divide it would change the model.
        ("gemma-2", {"input_layernorm": QKV, "pre_feedforward_layernorm": GATED, "up_proj": {"down_proj"}}),
        # No norm stands before a matrix.
        ("olmo-2", {"up_proj": {"down_proj"}}),
        # Between its two matrices lies a GELU, which no scale passes.
        ("gpt-neox", {"input_layernorm": {"query_key_value"}, "post_attention_layernorm": {"dense_h_to_4h"}}),
        # A ReLU lets scales pass, and every head has keys and values of its own.
        (
            "opt",
            {"self_attn_layer_norm": QKV, "v_proj": {"out_proj"}, "final_layer_norm": {"fc1"}, "fc1": {"fc2"}},
        ),
        # One norm for attention and feed-forward block, which run beside each other.
        ("cohere", {"input_layernorm": QKV | GATED, "up_proj": {"down_proj"}}),
    ],
)
def test_a_place_is_where_nothing_else_reads(family: str, expected: dict[str, set[str]], places) -> None:
    assert kinds(places[family]) == expected


def test_experts_and_their_router_are_one_place_that_smoothquant_leaves_alone(places) -> None:
    norms = [place for place in places["qwen-3-moe"] if place[0].endswith("layers.0.post_attention_layernorm")]
    ((_, balance, suits),) = norms
    assert balance[0].endswith("mlp.gate")
    assert len(balance) == 1 + 4 * 2
    assert not suits
    assert sum(place[0].endswith("up_proj") for place in places["qwen-3-moe"]) == 2 * 4
