"""The artifact as a person reads it: its facts, its gates, and what was tried for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from pipeline.lanes.gates import bound_text
from pipeline.problem import printable
from pipeline.publish.reports.printing import NOT_MEASURED, duration, measured, print_whole
from pipeline.publish.reports.validation_status import validation_status
from runtime.artifact import BuildMetadata, ChatModel, Source, ToolModel, TunedOptions


def show_artifact(metadata: BuildMetadata, console: Console, here: Sequence[str] = ()) -> None:
    """Print the metadata as a person would read it.

    Args:
        here: what becomes of its tuned options on this machine, a line each.
    """
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    facts = [*_facts(metadata), *((("options here", "; ".join(here)),) if here else ())]
    print_whole(table, [(name, printable(value)) for name, value in facts], console)
    if metadata.validation:
        gates = Table("gate", "measured", "bound", "", box=None, title="Validation", title_justify="left")
        for gate in metadata.validation.gates:
            bound = bound_text(gate)
            # What has no bound was measured, and has passed nothing.
            verdict = ("pass" if gate.passed else "FAIL") if bound else ""
            gates.add_row(gate.name, measured(gate), bound, verdict)
        for name in metadata.validation.not_measured:
            gates.add_row(name, NOT_MEASURED, "", "")
        console.print()
        console.print(gates)
    if metadata.chat and (tuned := metadata.chat.engine_options):
        console.print()
        _show_tuning(tuned, console)


# What a candidate was measured by: the heading and the field.
TUNED_FIGURES = (
    ("ITL ms", "itl_ms"),
    ("TTFT ms, 1 stream", "ttft_one_ms"),
    ("together", "ttft_ms"),
    ("long", "ttft_long_ms"),
    ("tokens/s", "tokens_per_s"),
)


def _show_tuning(tuned: TunedOptions, console: Console) -> None:
    """Print every candidate with the medians of its runs, and what became of it."""
    title = f"Tuned for {tuned.goal} (equal runs differ by {tuned.noise:.1%})"
    heads = ("candidate", *(head for head, _ in TUNED_FIGURES), "")
    tried = Table(*heads, box=None, title=title, title_justify="left")
    for one in tuned.candidates:
        told = [[getattr(run, name) for run in one.runs] for _, name in TUNED_FIGURES]
        known = [[value for value in values if value is not None] for values in told]
        figures = [f"{median(values):.4g}" if values else "" for values in known]
        verdict = f"{one.outcome}: {printable(one.reason)}" if one.reason else one.outcome
        tried.add_row(printable(one.name), *figures, verdict)
    console.print(tried)
    if (refused := tuned.refused) is not None:
        console.print(
            f"the plain options serve: {refused.stage} failed with {printable(refused.options.text)}: "
            f"{printable(refused.reason)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _facts(metadata: BuildMetadata) -> Iterable[tuple[str, str]]:
    yield "lane", f"{metadata.lane} (engine {metadata.engine})"
    if metadata.chat:
        yield from _chat_facts(metadata.chat)
    if metadata.tool:
        yield "tool model", _tool_fact(metadata.tool)
    machine = metadata.platform
    gpu = f"{machine.gpu_count} × {machine.gpu_name} (sm{machine.sm})" if machine.gpu_name else "no GPU"
    cuda = f", driver {machine.driver}, CUDA {machine.cuda}" if machine.gpu_name else ""
    yield "made on", f"{gpu}{cuda}, {machine.machine}, Python {machine.python}"
    yield "packages", ", ".join(f"{name} {version}" for name, version in sorted(machine.packages.items()))
    yield "created", metadata.created_at
    if metadata.stages:
        yield "stages", ", ".join(f"{stage.name} {duration(stage.seconds)}" for stage in metadata.stages)
    total = sum(entry.size for entry in metadata.files)
    yield "files", f"{len(metadata.files)}, {total / 2**20:,.1f} MiB"
    yield "digest", metadata.digest
    yield "proven", str(validation_status(metadata))


def _chat_facts(chat: ChatModel) -> Iterable[tuple[str, str]]:
    yield "chat model", _source_name(chat.source)
    quantization, limits = chat.quantization, chat.limits
    parts = [f"{quantization.method} ({quantization.scheme})"]
    if quantization.group_size:
        parts.append(f"groups of {quantization.group_size}")
    if quantization.prequantized:
        parts.append("came quantized")
    if quantization.kept_in_float:
        parts.append(f"in float: {', '.join(quantization.kept_in_float)}")
    yield "weights", "; ".join(parts)
    if calibration := quantization.calibration:
        yield "calibration", f"{calibration.samples} samples of {calibration.dataset}, {calibration.tokens:,} tokens"
    if chat.thinking_max_tokens > 0:
        yield "thought", f"{chat.thinking_max_tokens} tokens at most, of those that it gives out"
    if tuned := chat.engine_options:
        key = tuned.key
        yield (
            "engine options",
            f"{tuned.choices.text}, tuned for {tuned.goal} with {key.engine}, torch {key.torch}, driver {key.driver} "
            f"on {key.gpu or 'a CPU'}; elsewhere the plain ones serve",
        )
    if chat.moe:
        yield "experts", f"{chat.moe.experts or '?'}, {chat.moe.experts_per_token or '?'} for each token"
    yield (
        "limits",
        f"{limits.max_batch_size} sequences; {limits.max_input_len} tokens in, {limits.max_output_len} out, "
        f"{limits.max_model_len} in all; {limits.gpus} GPU(s) a model",
    )


def _tool_fact(tool: ToolModel) -> str:
    accuracy = f", {tool.accuracy:.1%} right on held-out utterances" if tool.accuracy is not None else ""
    tools = f", tools {', '.join(entry.name for entry in tool.tools)}" if tool.tools else ""
    return f"{_source_name(tool.source)}, window {tool.max_tokens} tokens{accuracy}{tools}"


def _source_name(source: Source) -> str:
    revision = f"@{source.revision[:12]}" if source.revision else ""
    return (
        f"{source.repo}{revision} ({source.architecture or 'unknown architecture'}, {source.license or 'no licence'})"
    )
