"""Prepares a command: reads the environment, the models' facts, the machine and the disk, then makes the plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import lanes, settings, source
from pipeline.plan import BuildPlan, BuildRequest, disk_facts, hardware, planner
from pipeline.plan.hardware import Hardware
from pipeline.settings import PipelineSettings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan, with what the stages need beside it.

    Attributes:
        plan: what was decided.
        hardware: what it was decided for.
        settings: the environment.
        cache: folder of finished stages.
    """

    plan: BuildPlan
    hardware: Hardware
    settings: PipelineSettings
    cache: Path


def prepare(request: BuildRequest, cache: Path | None, environment: Mapping[str, str] = os.environ) -> Prepared:
    """Make the plan of a request; configs are read, no weights are downloaded, and nothing is written.

    Raises:
        WrongRequestError: with every problem.
    """
    loaded = settings.load(environment)
    folder = cache or cache_folder(loaded.settings, environment)
    chat = source.read_facts(request.chat, "CHAT_MODEL") if request.chat else None
    if chat is not None:
        chat = source.with_prompt_format(chat, think=loaded.settings.thinking_max_tokens > 0)
    tool = source.read_facts(request.tool, "TOOL_MODEL") if request.tool else None
    lane = request.lanes[0] if len(request.lanes) == 1 else loaded.settings.inference_engine
    needs = lanes.lane_of(lane, loaded.settings.trt_backend).quantizer
    here = hardware.describe(folder, loaded.settings.quantize_python, needs)
    found = disk_facts.read(request, loaded.settings)
    made = planner.make_plan(request, loaded.settings, chat, tool, here, loaded.problems, found)
    return Prepared(made, here, loaded.settings, folder)


def cache_folder(values: PipelineSettings, environment: Mapping[str, str]) -> Path:
    """Return the folder where finished stages are kept."""
    if values.awq_cache_dir:
        return values.awq_cache_dir.expanduser()
    base = environment.get("XDG_CACHE_HOME", "").strip()
    return (Path(base) if base else Path.home() / ".cache") / "yap-pipeline"
