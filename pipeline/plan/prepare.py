"""Prepares a command: reads the environment, the models' facts, the machine and the disk, then makes the plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import lanes, paths, settings, source
from pipeline.datasets import dataset_problem
from pipeline.plan import BuildPlan, BuildRequest, disk_facts, hardware, planner
from pipeline.plan.hardware import Hardware
from pipeline.problem import Problem, WrongRequestError
from pipeline.settings import PipelineSettings
from runtime.host.machine import Gpu


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


def prepare(
    request: BuildRequest,
    cache: Path | None,
    environment: Mapping[str, str] = os.environ,
    *,
    gpu: Gpu | None = None,
) -> Prepared:
    """Make the plan of a request; configs are read, no weights are downloaded, and nothing is written.

    Args:
        request: the command line.
        cache: folder of finished stages, where one is named.
        environment: the variables.
        gpu: plans for a machine with as many of this one as the plan needs, rather than for this machine.

    Raises:
        WrongRequestError: with every problem.
    """
    loaded = settings.load(environment)
    request, values, problems = _named_paths(request, loaded.settings)
    folder, wrong = cache_place(cache, values, environment)
    problems += wrong
    chat = source.read_facts(request.chat, "CHAT_MODEL") if request.chat else None
    if chat is not None:
        chat = source.with_known_config(chat, "CHAT_MODEL")
        chat = source.with_prompt_format(chat, think=loaded.settings.thinking_max_tokens > 0)
    tool = source.read_facts(request.tool, "TOOL_MODEL") if request.tool else None
    if tool is not None:
        tool = source.with_known_config(tool, "TOOL_MODEL")
    lane = request.lanes[0] if len(request.lanes) == 1 else loaded.settings.inference_engine
    needs = lanes.lane_of(lane, loaded.settings.trt_backend).quantizer
    here = hardware.describe(folder, values.quantize_python, needs)
    if gpu is not None:
        count = loaded.settings.tensor_parallel_size * loaded.settings.pipeline_parallel_size
        here = hardware.elsewhere(gpu, count, here, needs)
    found = disk_facts.read(request, values, None if wrong else folder)
    # Behind a link, what is to be made lies where it leads.
    place = Path(os.path.realpath(disk_facts.ARTIFACTS if request.out is None else request.out))
    if not paths.same_file_system(place, folder):
        found = replace(found, free_at_out=paths.free_bytes(place))
    if values.awq_calib_dataset:
        found = replace(found, dataset_problem=dataset_problem(values.awq_calib_dataset))
    made = planner.make_plan(request, values, chat, tool, here, (*loaded.problems, *problems), found)
    return Prepared(made, here, values, folder)


def prepare_beside(request: BuildRequest, cache: Path | None, check: Callable[[Path], Problem | None]) -> Prepared:
    """Make the plan of a request, and check something else that a command needs, so that all problems are told at once.

    Args:
        request: the command line.
        cache: folder of finished stages, where it was named.
        check: tells what is wrong beside the plan, from the folder of finished stages.

    Raises:
        WrongRequestError: with every problem of both.
    """
    folder, _ = cache_place(cache, settings.load(os.environ).settings, os.environ)
    problem = check(folder)
    beside = (problem,) if problem else ()
    try:
        prepared = prepare(request, cache)
    except WrongRequestError as error:
        raise WrongRequestError([*error.problems, *beside]) from None
    if beside:
        raise WrongRequestError(beside)
    return prepared


def cache_place(
    named: Path | None, values: PipelineSettings, environment: Mapping[str, str]
) -> tuple[Path, list[Problem]]:
    """Return the folder where finished stages are kept, and why it cannot be."""
    where, folder = _cache_folder(named, values, environment)
    found = paths.named(where, folder)
    if isinstance(found, Problem):
        # Something has to stand in its place while the rest is checked.
        return Path("/"), [found]
    problem = paths.folder_problem(where, found)
    return found, [problem] if problem else []


def _cache_folder(named: Path | None, values: PipelineSettings, environment: Mapping[str, str]) -> tuple[str, Path]:
    """Return which option or variable names the folder of finished stages, and the folder."""
    if named:
        return "--cache-dir", named
    if values.awq_cache_dir:
        return "AWQ_CACHE_DIR", values.awq_cache_dir
    base = environment.get("XDG_CACHE_HOME", "").strip()
    # By its specification a path there that is not absolute is not read.
    if base.startswith(("/", "~")):
        return "XDG_CACHE_HOME", Path(base) / "yap-pipeline"
    return "AWQ_CACHE_DIR", Path("~/.cache/yap-pipeline")


def _named_paths(
    request: BuildRequest, values: PipelineSettings
) -> tuple[BuildRequest, PipelineSettings, list[Problem]]:
    """Return the request and the settings with every path as the system takes it, and what is wrong with the others."""
    problems: list[Problem] = []

    def checked(where: str, path: Path | None) -> Path | None:
        found = paths.named(where, path) if path else None
        if isinstance(found, Problem):
            problems.append(found)
            return None
        return found

    changed = {
        name: checked(name.upper(), value)
        for name in PipelineSettings.model_fields
        # The folder of finished stages may be named otherwise, and is checked where it is chosen.
        if name != "awq_cache_dir" and isinstance(value := getattr(values, name), Path)
    }
    asked = replace(
        request,
        out=checked("--out", request.out),
        tool_utterances=checked("--tool-utterances", request.tool_utterances),
    )
    return asked, values.model_copy(update=changed), problems
