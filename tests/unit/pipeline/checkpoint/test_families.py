"""What the plan says of a family's layers is what its quantizer's worker does with them."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from pipeline.checkpoint.float_layers import FloatRule
from pipeline.checkpoint.layers import layer_table
from pipeline.checkpoint.tensors import Tensor
from tests.harness.models.families import FAMILIES, Family

EXPERTS = re.compile(r"expert|input_linear|output_linear")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.slug)
def test_plan_and_worker_keep_the_same_layers_in_float(family: Family) -> None:
    auto = AutoModelForCausalLM if family.outer is None else AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto.from_config(family.config())
    config = model.config.to_dict()
    tensors = {name: Tensor("BF16", tuple(value.shape), 0) for name, value in model.named_parameters()}
    table = layer_table(config, tensors)
    assert table.from_headers
    planned = {layer.name for layer in table.linear}
    rule = FloatRule.of(config, (name for name, _ in model.named_modules()))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    rounded = {
        re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
        for name, module in linears.items()
        if rule.why(name, tuple(module.weight.shape)) is None
    }
    assert table.conv1d == (not rounded)
    if not table.conv1d:
        # Experts that come in one tensor are taken apart only when they are quantized.
        assert {name for name in planned if not EXPERTS.search(name)} == {
            name for name in rounded if not EXPERTS.search(name)
        }
