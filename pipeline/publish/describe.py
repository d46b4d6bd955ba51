"""The metadata of a build, made of its plan and its results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pipeline.plan import ChatPlan, ToolPlan
from pipeline.plan.hardware import Hardware
from pipeline.source import SourceFacts
from runtime.artifact import ChatModel, Platform, Quantization, Source, ToolModel


def chat_model(plan: ChatPlan, content: str, quantization: Quantization) -> ChatModel:
    """Describe the chat model; `content` is the hash of its source."""
    return ChatModel(
        source=source(plan.source, content),
        quantization=quantization,
        limits=plan.limits,
        dtype=plan.dtype,
        thinking_max_tokens=plan.thinking,
        moe=plan.moe,
    )


def tool_model(plan: ToolPlan, content: str, evaluation: Mapping[str, Any]) -> ToolModel:
    """Describe the classifier; `evaluation` is empty for one that was not trained here."""
    return ToolModel(
        source=source(plan.source, content),
        max_tokens=plan.max_tokens,
        positive_label=plan.positive_label,
        tools=plan.tools,
        threshold=evaluation.get("threshold"),
        accuracy=evaluation.get("accuracy"),
    )


def source(facts: SourceFacts, content: str) -> Source:
    """Describe where a model came from."""
    return Source(
        repo=facts.name,
        revision=facts.revision,
        content_sha256=content,
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        architecture=facts.architecture,
    )


def platform(hardware: Hardware) -> Platform:
    """Describe the machine that the artifact was built on.

    The engine's versions are what must match when the artifact is loaded, so they win over the quantizer's.
    """
    machine = hardware.machine
    quantizer = hardware.quantizer.packages if hardware.quantizer else {}
    gpu = machine.gpus[0] if machine.gpus else None
    return Platform(
        gpu_name=gpu.name if gpu else None,
        gpu_count=len(machine.gpus),
        sm=machine.sm,
        gpu_memory_bytes=gpu.memory_bytes if gpu else None,
        driver=machine.driver,
        cuda=machine.torch_cuda,
        python=machine.python,
        machine=machine.processor,
        packages=quantizer | machine.packages,
    )


def now() -> str:
    """Return the time as RFC 3339, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
