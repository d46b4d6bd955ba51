"""The plan as a person reads it: what will be done, why, and what it takes."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from pipeline.plan import BuildPlan
from pipeline.problem import printable
from pipeline.publish.reports.printing import GIB, duration, print_whole


def show_plan(plan: BuildPlan, console: Console) -> None:
    """Print what will be done, why, and what it takes."""
    console.print("What will be done", style="bold")
    for number, step in enumerate(steps(plan), 1):
        console.print(f"  {number}. {printable(step)}", soft_wrap=True)
    console.print()
    table = Table("what", "choice", "why", box=None, title="Decisions", title_justify="left", title_style="bold")
    rows = [tuple(map(printable, (one.name, one.value, one.reason))) for one in plan.decisions]
    print_whole(table, rows, console)
    cost = plan.estimate
    gpu = f", {cost.gpu_bytes / GIB:.1f} GiB on the GPU" if cost.gpu_bytes else ""
    console.print(
        f"\nIt takes about {cost.disk_bytes / GIB:.1f} GiB of disk, {cost.memory_bytes / GIB:.1f} GiB of memory{gpu}, "
        f"and {duration(cost.seconds)} when nothing is done yet{_not_counted(plan)}.",
        highlight=False,
    )


def _not_counted(plan: BuildPlan) -> str:
    compiles = plan.chat and plan.chat.trt and plan.chat.trt.label and not plan.chat.trt.engine
    return "; compiling the engine comes on top, some minutes" if compiles else ""


def steps(plan: BuildPlan) -> Iterable[str]:
    """Describe the stages of a plan, one line each."""
    if chat := plan.chat:
        verb = {"hub": "download", "folder": "read", "embedded": "unpack"}[chat.source.kind]
        size = f" ({chat.source.weight_bytes / GIB:.1f} GiB)" if chat.source.weight_bytes else ""
        yield f"source: {verb} {chat.source.ref}{size}, {chat.parameters / 1e6:,.0f} million parameters"
        if chat.calibration:
            yield f"calibration: tokenize {chat.calibration.samples} samples of {chat.calibration.dataset}"
        if chat.prequantized:
            yield f"quantize: nothing, it comes as {chat.scheme}"
        elif chat.prebuilt:
            yield f"quantize: nothing, {chat.prebuilt} holds {chat.scheme}"
        elif chat.method == "none":
            yield "quantize: nothing, the weights stay in float"
        else:
            group = f", groups of {chat.group_size}" if chat.group_size else ""
            yield f"quantize: {chat.method} ({chat.scheme}{group}) on {plan.device}"
    if plan.tool:
        verb = "train" if plan.tool.source.kind == "embedded" else "copy"
        yield f"tool: {verb} the classifier {plan.tool.source.ref}, in float"
    if plan.tune != "off":
        yield (
            f"tune: measure a table of vLLM's options for {plan.tune}, each in a process of its own, "
            f"for {plan.tune_minutes:g} minutes at most"
        )
    yield f"build: lay out the artifact{_compiling(plan)}"
    if plan.chat and not plan.chat.prequantized:
        yield "reference: score held-out text with the float model"
    yield "validate: load it with the runtime's engine and hold it against its gates"
    yield f"finish: move it to {plan.out}"
    for method in plan.fallback:
        yield f"where the gates fail: the same with {method}"


def _compiling(plan: BuildPlan) -> str:
    chat = plan.chat
    if chat is None or plan.eager:
        return ""
    if chat.trt is None:
        return " and compile ahead of time"
    if chat.trt.label is None:
        return ""
    return f" and take the engine {chat.trt.engine}" if chat.trt.engine else f" and compile {chat.trt.label}"
