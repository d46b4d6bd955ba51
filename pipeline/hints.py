"""Hints for a person after a gate has failed: what failed, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from pipeline.lanes.gate_specs import (
    CLASSIFIERS,
    ITL,
    KNOWN_PROMPTS,
    LONG_PROMPT,
    OPTIONS,
    PERPLEXITY_RATIO,
    REPLIES_END,
    THROUGHPUT,
    TOP1_AGREEMENT,
    TTFT,
)
from pipeline.plan import CalibrationPlan
from pipeline.plan.prepare import Prepared
from pipeline.plan.tool_plan import POSITIVE_OPTION
from pipeline.source import EMBEDDED
from runtime.artifact import Gate


def print_failures(method: str, failures: list[str]) -> None:
    """Print which gates failed, and by how much."""
    for line in failures:
        typer.echo(f"gate failed: {method}: {line}", err=True)


# What quantizing decides; what the machine and its load decide; what the model itself decides.
QUALITY = frozenset({PERPLEXITY_RATIO.name, TOP1_AGREEMENT.name, LONG_PROMPT.name})
SPEED = frozenset({TTFT.name, ITL.name, THROUGHPUT.name})
MODEL = frozenset({KNOWN_PROMPTS.name, REPLIES_END.name})


def print_next_step(prepared: Prepared, gates: Iterable[Gate]) -> None:
    """Print what can help against the gates that failed, and nothing that cannot."""
    names = [gate.name.partition(":")[0] for gate in gates]
    ways = list(dict.fromkeys(way for name in names for way in _ways(prepared, name)))
    bounds = sorted({option.name for spec, option in OPTIONS.items() if spec.name in names})
    if bounds:
        ways.append(f"or set {' and '.join(bounds)} where that is good enough for you")
    typer.echo(f"next: {', '.join(ways)}; see `yap-pipeline run --help`", err=True)


def _ways(prepared: Prepared, name: str) -> list[str]:
    chat, tool = prepared.plan.chat, prepared.plan.tool
    if name in CLASSIFIERS:
        own = tool is not None and tool.source.kind != EMBEDDED
        return ["name another TOOL_MODEL", *([f"another label with {POSITIVE_OPTION}"] if own else [])]
    quantized = chat is not None and not chat.prequantized and chat.method != "none"
    if name in QUALITY and chat is not None and quantized:
        return [
            *(f"try {way}" for way in other_methods(prepared, chat.method)),
            *more_samples(prepared, chat.calibration),
        ]
    if name in SPEED:
        smaller = f"fewer bits than {chat.scheme}" if chat is not None and quantized else "a quantized method"
        return ["let nothing else use this machine and run again", f"a smaller model, {smaller} or a faster GPU"]
    if name in MODEL and chat is not None and quantized:
        return [
            "try the method `none`: where it fails too, the model or its chat template is what fails",
            *(f"try {way}" for way in other_methods(prepared, chat.method)),
        ]
    return ["choose another model"]


def other_methods(prepared: Prepared, method: str) -> list[str]:
    """Return the options for another method than one that failed: the first that can run here and quantizes too."""
    lane, sm = prepared.plan.lane, prepared.plan.sm
    runs = [name for name in lane.methods if not lane.refusal(name, sm, allow_emulated=False)]
    return [f"`--fallback {name}`" for name in runs if name not in {method, "none"}][:1]


def more_samples(prepared: Prepared, calibration: CalibrationPlan | None) -> list[str]:
    """Return the hint to calibrate on more samples, where the method is calibrated."""
    name = prepared.plan.lane.samples_variable
    return [f"more samples ({name}; there were {calibration.samples})"] if calibration else []
