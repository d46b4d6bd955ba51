"""Prints for a person: the plan before the work, the artifact after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from pipeline.lanes.gates import bound_text
from pipeline.plan import BuildPlan
from pipeline.problem import printable
from runtime.artifact import BuildMetadata, ChatModel, Gate, Source, ToolModel, TunedOptions
from runtime.artifact.checks.gates import gate_problem

GIB = 2**30
# What stands for the figure of a tool that no utterance asks for.
NOT_MEASURED = "not measured"


class PlainConsole(Console):
    """A console that prints names and paths as they are: brackets and colons in them are no markup."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)

    def on_broken_pipe(self) -> None:
        """Leave it to the command how it ends when nobody reads."""
        raise BrokenPipeError


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


def print_whole(table: Table, rows: Sequence[tuple[str, ...]], console: Console) -> None:
    """Print a table whose cells are broken at spaces alone, so that a path can be copied.

    Where that needs it, the table is wider than the terminal.
    """
    for row in rows:
        table.add_row(*row)
    for column, cells in zip(table.columns, zip(*rows, strict=True), strict=True):
        column.min_width = max((len(word) for cell in cells for word in cell.split()), default=0)
    needed = sum(column.min_width or 0 for column in table.columns) + 2 * len(table.columns)
    console.print(table, width=max(console.width, needed), crop=False)


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


@dataclass(frozen=True, slots=True)
class ValidationStatus:
    """Whether an artifact may be served, with the reason.

    Attributes:
        valid: it passed its gates, and its files did not change since.
        reason: since when, or why not.
    """

    valid: bool
    reason: str

    def __str__(self) -> str:
        return f"yes, {self.reason}" if self.valid else f"no: {self.reason}"


def validation_status(metadata: BuildMetadata) -> ValidationStatus:
    """Tell whether an artifact may be served, and since when or why not."""
    if metadata.validation is None:
        return ValidationStatus(False, "never validated")
    if not metadata.validation.passed:
        return ValidationStatus(
            False, "failed " + ", ".join(gate.name for gate in metadata.validation.gates if not gate.passed)
        )
    if problem := gate_problem(metadata):
        return ValidationStatus(False, problem)
    if metadata.validation.digest != metadata.digest:
        return ValidationStatus(False, "its files changed after validation")
    return ValidationStatus(True, f"on {metadata.validation.validated_at}")


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


def measured(gate: Gate) -> str:
    """Return a gate's figure with its unit."""
    return f"{gate.value:.4g} {gate.unit}".rstrip()


def duration(seconds: float) -> str:
    """Word a number of seconds for a person.

    >>> duration(0.2), duration(75), duration(4000)
    ('0.2 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
