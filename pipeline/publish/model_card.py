"""The model card: what an artifact is, how it was made, what was measured, and how to serve it.

Every figure comes out of the artifact's metadata; what the metadata does not hold is not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pipeline.lanes import lane_of_artifact
from pipeline.lanes.gate_specs import BY_NAME, CardRow
from pipeline.lanes.gates import bound_text
from pipeline.publish.reports.printing import GIB, NOT_MEASURED, duration, measured
from pipeline.source import EMBEDDED, licenses
from runtime.artifact import METADATA_NAME, BuildMetadata, ChatModel, Gate, Platform, Source
from runtime.defaults import PORT

# What bake.hcl calls an image unless it is told otherwise.
IMAGE_PREFIX, IMAGE_TAG = "yap", "dev"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def card(metadata: BuildMetadata, repo: str, others: Sequence[BuildMetadata] = ()) -> str:
    """Write the card as Markdown with its front matter.

    Args:
        metadata: of the artifact that is published.
        repo: the repository that it goes to, `org/name`.
        others: metadata of the engines for other GPUs that the repository holds already.
    """
    sections = [
        _opening(metadata, repo),
        _origin(metadata),
        _quality(metadata),
        _speed(metadata),
        _limits(metadata),
        _machines(metadata, others),
        _serving(metadata, repo),
        _integrity(metadata),
    ]
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{_front_matter(metadata, repo).to_yaml()}\n---\n\n{body}\n"))


def base_model_of(source: Source) -> str | None:
    """Return the hub id of a source, where it has one."""
    if source.repo == EMBEDDED:
        from pipeline.embedded.chat import BASE_MODEL

        return BASE_MODEL if source.architecture and "CausalLM" in source.architecture else None
    return source.repo if HUB_ID.fullmatch(source.repo) else None


def _front_matter(metadata: BuildMetadata, repo: str) -> ModelCardData:
    main = metadata.chat.source if metadata.chat else metadata.tool.source if metadata.tool else None
    base = base_model_of(main) if main else None
    tags = ["yap-text-inference", metadata.engine]
    if metadata.chat:
        tags.append(metadata.chat.quantization.method)
    return ModelCardData(
        license=(licenses.hub_id(main.license) or main.license) if main else None,
        license_name=main.license_name if main else None,
        license_link=main.license_link if main else None,
        base_model=base,
        library_name=lane_of_artifact(metadata.lane, metadata.engine).library,
        pipeline_tag="text-generation" if metadata.chat else "text-classification",
        tags=tags,
        model_name=repo.rpartition("/")[2],
        eval_results=list(_results(metadata)) or None,
        base_model_relation="quantized" if base and metadata.chat else None,
    )


def _results(metadata: BuildMetadata) -> Iterable[EvalResult]:
    for name, gate, row in _shown(metadata):
        if row.task:
            yield EvalResult(
                task_type=row.task,
                dataset_type="held-out",
                dataset_name="Held-out texts of the pipeline",
                metric_type=gate.name,
                metric_name=name,
                metric_value=gate.value,
            )


def _opening(metadata: BuildMetadata, repo: str) -> str:
    title = f"# {repo.rpartition('/')[2]}"
    parts = []
    if chat := metadata.chat:
        stored = chat.quantization
        how = f"quantized to {stored.scheme} ({stored.method})" if stored.method != "none" else "unquantized"
        parts.append(f"{_name(chat.source)}, {how}, for the engine `{metadata.engine}`")
    if metadata.tool:
        parts.append("a classifier in float that decides whether an utterance asks to look at the screen")
    proven = metadata.validation.validated_at if metadata.validation else None
    told = f" It passed its gates on {proven}." if proven else ""
    return f"{title}\n\nThis is {', with '.join(parts)}.{told}"


def _name(source: Source) -> str:
    base = base_model_of(source)
    revision = f" at revision `{source.revision}`" if source.revision else ""
    return f"[{base}](https://huggingface.co/{base}){revision}" if base else f"`{source.repo}`"


def _origin(metadata: BuildMetadata) -> str:
    rows: list[tuple[str, str]] = []
    if chat := metadata.chat:
        rows += _chat_rows(chat)
    if tool := metadata.tool:
        accuracy = f"; {tool.accuracy:.1%} right on held-out utterances" if tool.accuracy is not None else ""
        tools = f"; tools {', '.join(f'`{entry.name}`' for entry in tool.tools)}" if tool.tools else ""
        rows.append(("classifier", f"{_name(tool.source)}, window of {tool.max_tokens} tokens{accuracy}{tools}"))
    rows.append(("made", f"{metadata.created_at} on {_machine(metadata.platform)}"))
    if metadata.stages:
        rows.append(("time", duration(sum(stage.seconds for stage in metadata.stages))))
    versions = metadata.platform.packages.items()
    if versions:
        rows.append(("packages", ", ".join(f"{name} {version}" for name, version in sorted(versions))))
    return "## How it was made\n\n" + _table(("", ""), rows)


def _chat_rows(chat: ChatModel) -> Iterable[tuple[str, str]]:
    stored = chat.quantization
    yield "source", f"{_name(chat.source)}, content `{chat.source.content_sha256[:12]}…`"
    yield "method", f"{stored.method} ({stored.scheme})"
    if stored.group_size:
        zero = "" if stored.symmetric is None else ", symmetric" if stored.symmetric else ", with zero points"
        yield "group size", f"{stored.group_size}{zero}"
    if stored.kept_in_float:
        yield "kept in float", ", ".join(f"`{name}`" for name in stored.kept_in_float)
    if used := stored.calibration:
        yield (
            "calibration",
            f"{used.samples} samples of {used.dataset}, at most {used.sequence_length} tokens each, "
            f"{used.tokens:,} tokens in all, digest `{used.digest}`",
        )
    if chat.moe:
        yield "experts", f"{chat.moe.experts or '?'}, {chat.moe.experts_per_token or '?'} for each token"


def _quality(metadata: BuildMetadata) -> str:
    text = f"Measured by the engine that serves it, on held-out text{_seen(metadata)}."
    return _gates(metadata, "quality", f"## Quality against the original\n\n{text}")


def _seen(metadata: BuildMetadata) -> str:
    """What calibration knew of the held-out text; nothing is said where that is not known."""
    stored = metadata.chat.quantization if metadata.chat else None
    if stored is None or stored.prequantized:
        return ""
    used = stored.calibration
    if used is None:
        return "; nothing was calibrated"
    if used.held_out_share is None:
        return ""
    if not used.held_out_share:
        return " that calibration never saw"
    return f", of which {used.held_out_share:.1%} was in the calibration text: the figures flatter"


def _speed(metadata: BuildMetadata) -> str:
    return _gates(metadata, "speed", f"## Speed\n\nOn {_machine(metadata.platform)}.")


def _gates(metadata: BuildMetadata, section: str, head: str) -> str:
    shown = [(name, gate, row) for name, gate, row in _shown(metadata) if row.section == section]
    rows = [(name, measured(gate), bound_text(gate)) for name, gate, _ in shown]
    for name in metadata.validation.not_measured if metadata.validation else ():
        spec, _, part = name.partition(":")
        if (row := _row(spec)) and row.section == section:
            rows.append((f"{row.text}: `{part}`", NOT_MEASURED, ""))
    return f"{head}\n\n{_table(('', 'measured', 'required'), rows)}" if rows else ""


def _shown(metadata: BuildMetadata) -> Iterable[tuple[str, Gate, CardRow]]:
    """Return the gates that the card shows, each with what it is called and its row; those of tools too."""
    for gate in metadata.validation.gates if metadata.validation else ():
        spec, _, part = gate.name.partition(":")
        if row := _row(spec):
            yield (f"{row.text}: `{part}`" if part else row.text), gate, row


def _row(spec: str) -> CardRow | None:
    return BY_NAME[spec].card if spec in BY_NAME else None


def _limits(metadata: BuildMetadata) -> str:
    if metadata.chat is None:
        return ""
    limits = metadata.chat.limits
    rows = [
        ("sequences at once", f"{limits.max_batch_size}"),
        ("prompt", f"{limits.max_input_len} tokens"),
        ("reply", f"{limits.max_output_len} tokens"),
        ("context", f"{limits.max_model_len} tokens"),
        ("GPUs a model", f"{limits.gpus}"),
    ]
    return "## Limits baked in\n\n" + _table(("", ""), rows)


def _machines(metadata: BuildMetadata, others: Sequence[BuildMetadata]) -> str:
    lines = [f"- {where}" for where in dict.fromkeys(_runs_on(entry) for entry in (metadata, *others))]
    return "## Runs on\n\n" + "\n".join(lines)


def _runs_on(metadata: BuildMetadata) -> str:
    machine = metadata.platform
    path = metadata.chat.engine_path if metadata.chat else None
    shared = f" for {metadata.chat.limits.gpus} GPUs" if metadata.chat and metadata.chat.limits.gpus > 1 else ""
    engine = f", engine `{path}`{shared}" if path else ""
    if metadata.chat is None:
        return "any machine: the classifier is in float"
    return f"{_machine(machine)}{engine}"


def _machine(machine: Platform) -> str:
    if not machine.gpu_name:
        return f"a CPU ({machine.machine})"
    memory = f", {machine.gpu_memory_bytes / GIB:.0f} GiB" if machine.gpu_memory_bytes else ""
    driver = f", driver {machine.driver}" if machine.driver else ""
    cuda = f", CUDA {machine.cuda}" if machine.cuda else ""
    count = f"{machine.gpu_count} × " if machine.gpu_count > 1 else ""
    return f"{count}{machine.gpu_name} (sm{machine.sm}{memory}{driver}{cuda})"


def _serving(metadata: BuildMetadata, repo: str) -> str:
    lane = lane_of_artifact(metadata.lane, metadata.engine)
    image = f"runtime-{metadata.lane}" if metadata.chat else "runtime-tool"
    options = ["--gpus all"] if lane.on_gpu and metadata.chat else []
    # The engine's processes share memory where there are several GPUs or none; Docker's 64 MiB are too little.
    if metadata.chat and (not lane.on_gpu or metadata.chat.limits.gpus > 1):
        options.append("--shm-size 1g")
    flags = "".join(f"{option} " for option in options)
    text = (
        "## How to serve it\n\nWith its own runtime, over WebSocket. `docker buildx bake -f bake.hcl "
        f"{image}` makes the image. Pin the commit that you tried in place of `main`.\n\n"
        "```\nexport TEXT_API_KEY=$(openssl rand -hex 32)\n"
        f"docker run --rm {flags}-p {PORT}:{PORT} -v yap-cache:/cache \\\n"
        f"    -e ARTIFACT=hf:{repo}@main -e HF_TOKEN -e TEXT_API_KEY {IMAGE_PREFIX}/{image}:{IMAGE_TAG}\n```"
    )
    if metadata.chat and (plain := lane.plain_server):
        command = plain.command.format(repo=repo, context=metadata.chat.limits.max_model_len)
        text += f"\n\nWith plain {plain.name}, over HTTP:\n\n```\n{command}\n```"
    return text


def _integrity(metadata: BuildMetadata) -> str:
    total = sum(entry.size for entry in metadata.files)
    return (
        f"## Integrity\n\n`{METADATA_NAME}` lists {len(metadata.files)} files, {total / 2**20:,.1f} MiB, each with "
        f"its SHA-256; the digest over the list is `{metadata.digest}`. The runtime checks all of it before it loads."
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
