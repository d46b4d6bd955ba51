"""What a build needs of the machine: how large it is, and whether disk and memory hold it."""

from __future__ import annotations

from pipeline.checkpoint.shape import Shape
from pipeline.checkpoint.sharing import cache_share, layers_a_stage
from pipeline.lanes import METHODS, Lane
from pipeline.plan import ChatPlan, ToolPlan
from pipeline.plan.diagnostics import Diagnostics
from pipeline.plan.disk_facts import DiskFacts
from pipeline.plan.estimate import BuildSize, Estimate, serving_memory
from pipeline.plan.hardware import Hardware
from pipeline.source import EMBEDDED

# Tokens of a calibration sample, on average: the embedded texts, and instructions as the hub's data sets hold them.
EMBEDDED_SAMPLE_TOKENS, USUAL_SAMPLE_TOKENS = 180, 512


def build_size(chat: ChatPlan | None, tool: ToolPlan | None, lane: Lane | None) -> BuildSize:
    """Return what an estimate is made of."""
    tool_bytes = sum(tool.source.sizes.values()) if tool else 0
    trained = tool is not None and tool.source.kind == "embedded"
    if chat is None or lane is None:
        return BuildSize(tool_bytes=tool_bytes, trained=trained)
    shape, calibration = Shape.of(chat.source.config), chat.calibration
    rounded = chat.layers.linear_parameters if chat.layers else shape.linear_parameters
    whole = chat.layers.parameters if chat.layers else shape.parameters
    tokens = 0
    if calibration:
        usual = EMBEDDED_SAMPLE_TOKENS if calibration.dataset == EMBEDDED else USUAL_SAMPLE_TOKENS
        tokens = calibration.samples * min(calibration.sequence_length, usual)
    return BuildSize(
        parameters=rounded,
        float_bytes=chat.source.weight_bytes or whole * 2,
        quantized_bytes=_stored_bytes(chat, rounded, whole - rounded),
        downloaded=chat.source.kind == "hub" and chat.source.path is None,
        exported=chat.source.kind == "embedded",
        trained=trained,
        tool_bytes=tool_bytes,
        calibration_tokens=tokens,
        method=METHODS.get(chat.method),
        prequantized=chat.prequantized is not None,
        on_gpu=lane.on_gpu,
        cache_bytes=shape.cache_bytes_per_token * chat.limits.max_model_len,
        parallel=chat.limits.tensor_parallel_size,
        stages=chat.limits.pipeline_parallel_size,
        stage_share=layers_a_stage(shape.layers, chat.limits.pipeline_parallel_size) / shape.layers,
        outside_bytes=shape.embedding_parameters * 2,
        cache_share=cache_share(shape, chat.limits.tensor_parallel_size),
    )


def decide_memory(
    size: BuildSize, chat: ChatPlan | None, tool: ToolPlan | None, hardware: Hardware, diagnostics: Diagnostics
) -> None:
    """Say how many conversations fit, which is what a GPU is chosen by."""
    gpus, gib = hardware.machine.gpus, 2**30
    if chat is None or not size.cache_bytes or (size.on_gpu and not gpus):
        return
    found = serving_memory(size, gpu_bytes=gpus[0].memory_bytes if gpus else 0, beside_tool=tool is not None)
    where = f"{len(gpus[: size.gpus])} × {gpus[0].name}" if size.on_gpu else "main memory"
    shared = f" ({found.gpu_weight_bytes / gib:.1f} GiB on the fullest GPU)" if size.gpus > 1 else ""
    diagnostics.decide(
        "memory",
        f"{found.weight_bytes / gib:.1f} GiB of weights{shared} and {found.cache_bytes / gib:.1f} GiB of KV cache: "
        f"about {found.conversations} conversations of {chat.limits.max_model_len} tokens at once",
        f"{where}, {found.conversation_bytes / gib:.2f} GiB a conversation at full length; more where they are shorter "
        "or begin alike",
    )


def _stored_bytes(chat: ChatPlan, rounded: int, in_float: int) -> int:
    if chat.prequantized:
        return chat.source.weight_bytes
    # A group's scale takes two bytes and its zero point half of one.
    scales = 2.5 / chat.group_size if chat.group_size else 0.01
    return int(rounded * (METHODS[chat.method].bits / 8 + scales) + in_float * 2)


def check_resources(
    cost: Estimate,
    kept: int,
    gpus: int,
    hardware: Hardware,
    lane: Lane | None,
    disk: DiskFacts,
    diagnostics: Diagnostics,
) -> None:
    """Tell what the machine lacks: disk, memory, the GPU's memory."""
    machine, gib = hardware.machine, 2**30
    if cost.disk_bytes + kept > hardware.free_disk:
        found, next_step = f"{hardware.free_disk / gib:.1f} GiB", "free some, or set AWQ_CACHE_DIR elsewhere"
        diagnostics.problem("disk", f"{(cost.disk_bytes + kept) / gib:.1f} GiB free", found, next_step)
    told = any(problem.where == "--out" for problem in diagnostics.problems)
    if not told and disk.free_at_out is not None and cost.artifact_bytes > disk.free_at_out:
        expected, found = f"{cost.artifact_bytes / gib:.1f} GiB free there", f"{disk.free_at_out / gib:.1f} GiB"
        diagnostics.problem("--out", expected, found, "free some, or choose another --out")
    if machine.memory_bytes and cost.memory_bytes > machine.memory_bytes:
        found, next_step = f"{machine.memory_bytes / gib:.1f} GiB", "use a larger machine or a smaller model"
        diagnostics.problem("memory", f"{cost.memory_bytes / gib:.1f} GiB", found, next_step)
    if lane and lane.on_gpu and machine.gpus:
        # The one with the least room; `check_sharing` tells of those that are not alike.
        gpu = min(machine.gpus[:gpus], key=lambda gpu: gpu.free_bytes)
        if cost.gpu_bytes > gpu.memory_bytes:
            found, next_step = (
                f"{gpu.memory_bytes / gib:.1f} GiB on {gpu.name}",
                "use a larger GPU, several by TENSOR_PARALLEL_SIZE, or a smaller model",
            )
            diagnostics.problem("GPU memory", f"{cost.gpu_bytes / gib:.1f} GiB", found, next_step)
        elif cost.gpu_bytes > gpu.free_bytes:
            found, next_step = f"{gpu.free_bytes / gib:.1f} GiB free on {gpu.name}", "end what else uses it"
            diagnostics.problem("GPU memory", f"{cost.gpu_bytes / gib:.1f} GiB", found, next_step)
