"""Hints for a person after a gate has failed: what failed, and what to do next."""

from __future__ import annotations

import typer

from pipeline.lanes.gate_specs import OPTIONS, TOOL_ACCURACY
from pipeline.plan import CalibrationPlan
from pipeline.plan.prepare import Prepared
from pipeline.plan.tool_plan import POSITIVE_OPTION
from pipeline.source import EMBEDDED


def print_failures(method: str, failures: list[str]) -> None:
    """Print which gates failed, and by how much."""
    for line in failures:
        typer.echo(f"gate failed: {method}: {line}", err=True)


def print_next_step(prepared: Prepared, *, classifier: bool) -> None:
    """Print what to do after a failed gate."""
    chat, tool = prepared.plan.chat, prepared.plan.tool
    if classifier:
        inverted = tool is not None and tool.source.kind != EMBEDDED
        other = f", another label with {POSITIVE_OPTION}" if inverted else ""
        ways = f"name another TOOL_MODEL{other}, or set {OPTIONS[TOOL_ACCURACY].name}"
    elif chat is None or chat.prequantized:
        ways = "choose another model, or set the bound"
    else:
        ways = ", ".join([*other_methods(prepared, chat.method), *more_samples(prepared, chat.calibration)])
        ways = f"try {ways}, or set the bound" if ways else "choose another model, or set the bound"
    typer.echo(f"next: {ways}; see `yap-pipeline run --help`", err=True)


def other_methods(prepared: Prepared, method: str) -> list[str]:
    """Return the options for another method than one that failed: the first that can run here and quantizes too."""
    lane, sm = prepared.plan.lane, prepared.plan.sm
    runs = [name for name in lane.methods if not lane.refusal(name, sm, allow_emulated=False)]
    return [f"`--fallback {name}`" for name in runs if name not in {method, "none"}][:1]


def more_samples(prepared: Prepared, calibration: CalibrationPlan | None) -> list[str]:
    """Return the hint to calibrate on more samples, where the method is calibrated."""
    name = prepared.plan.lane.samples_variable
    return [f"more samples ({name}; there were {calibration.samples})"] if calibration else []
