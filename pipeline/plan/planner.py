"""Makes the build plan, from a request and the facts that were read for it.

`make_plan` is pure. It takes a request, the settings, what is known of the models, of the hardware and of the disk, and
returns a frozen `BuildPlan`, or raises every problem at once. `prepare` reads the facts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline import lanes
from pipeline.lanes import CPU, LANES, VLLM, Lane, lane_of
from pipeline.lanes.gate_specs import OPTIONS, Candidate
from pipeline.lanes.gates import Thresholds, default_thresholds, inapplicable_bounds, planned_text
from pipeline.lanes.trt_lane import TrtLane
from pipeline.paths import distinct_name
from pipeline.plan import BuildPlan, BuildRequest, ChatPlan, ToolPlan
from pipeline.plan.build_plan import Tune
from pipeline.plan.chat.chat_plan import ChatPlanner
from pipeline.plan.chat.trt_plan import TrtPlanner
from pipeline.plan.diagnostics import Diagnostics
from pipeline.plan.disk_facts import ARTIFACTS, NEW_ARTIFACT, DiskFacts, PathEntry
from pipeline.plan.estimate import estimate
from pipeline.plan.fallbacks import Attempts, checked_methods
from pipeline.plan.hardware import Hardware
from pipeline.plan.resources import build_size, check_resources, decide_memory
from pipeline.plan.tool_plan import plan_tool
from pipeline.problem import Problem, WrongRequestError
from pipeline.settings import MOST_TUNE_MINUTES, PipelineSettings
from pipeline.source import EMBEDDED, SourceFacts

# The planner of the chat model, where a kind of lane has its own.
CHAT_PLANNERS: dict[type[Lane], type[ChatPlanner]] = {TrtLane: TrtPlanner}

NOTHING_NAMED = DiskFacts()


def make_plan(
    request: BuildRequest,
    settings: PipelineSettings,
    chat: SourceFacts | None,
    tool: SourceFacts | None,
    hardware: Hardware,
    earlier: tuple[Problem, ...] = (),
    disk: DiskFacts = NOTHING_NAMED,
) -> BuildPlan:
    """Make the plan of a build, or raise every problem at once.

    Args:
        request: the command line.
        settings: the environment.
        chat: the chat model's facts; none for an artifact with the classifier alone.
        tool: the classifier's facts; none for an artifact that only chats.
        hardware: this machine.
        earlier: problems that were found on the way here.
        disk: what lies at the paths that the request and the settings name.

    Raises:
        WrongRequestError: with every problem.
        ValueError: the settings name a folder that was not looked at.
    """
    disk.check_complete(settings)
    diagnostics = Diagnostics()
    lane = _lane(request, settings, hardware, diagnostics, engine=chat is not None)
    if chat is None and tool is None:
        diagnostics.problem(
            "arguments", "a chat model, a classifier, or both", "neither", "name one, such as `embedded`"
        )
    for facts in (chat, tool):
        diagnostics.problems.extend(facts.problems if facts else ())
    chat_planner = CHAT_PLANNERS.get(type(lane) if lane else Lane, ChatPlanner)
    planner = chat_planner(request, settings, hardware.machine, disk, lane, hardware.quantizer is not None, diagnostics)
    chat_plan = planner.plan(chat) if chat else None
    tool_plan = plan_tool(tool, request, diagnostics, disk.utterances)
    out = _out(request, chat_plan, chat, tool, lane, disk, diagnostics)
    methods = checked_methods(request, chat_plan, hardware, lane, diagnostics)
    tune = _tune(request, settings, lane, diagnostics, chat=chat is not None)
    minutes = _tune_minutes(request, settings, diagnostics, tune)
    thresholds = _thresholds(request, chat_plan, tool_plan, lane, diagnostics, tune)
    size = replace(build_size(chat_plan, tool_plan, lane), tune_limit_s=60 * minutes if tune != "off" else 0.0)
    cost = estimate(size, cores=hardware.cores)
    decide_memory(size, chat_plan, tool_plan, hardware, diagnostics)
    attempts = Attempts(request, lambda other: make_plan(other, settings, chat, tool, hardware, earlier, disk))
    attempts.make(methods)
    check_resources(cost, attempts.kept_bytes, size.gpus, hardware, lane, disk, diagnostics)
    problems = diagnostics.distinct_problems(earlier)
    problems += attempts.problems_beside(problems)
    if problems or lane is None:
        raise WrongRequestError(problems)
    return BuildPlan(
        lane=lane,
        device=lane.device,
        sm=hardware.machine.sm if lane.on_gpu else None,
        chat=chat_plan,
        tool=tool_plan,
        thresholds=thresholds,
        out=out,
        fallback=request.fallback,
        estimate=cost,
        decisions=tuple(diagnostics.decisions),
        tune=tune,
        tune_kv_fp8=settings.kv_dtype == "fp8",
        tune_minutes=minutes,
    )


def _tune(
    request: BuildRequest, settings: PipelineSettings, lane: Lane | None, diagnostics: Diagnostics, *, chat: bool
) -> Tune:
    """Decide what the engine's options are tuned for."""
    asked = request.tune or settings.tune
    where = "--tune" if request.tune else "TUNE"
    if lane is None or not chat:
        return "off"
    if not lane.tunes:
        if asked not in (None, "off"):
            expected = f"off in the {lane.name} lane, whose engine has nothing to tune"
            diagnostics.problem(where, expected, asked, "leave it out")
        return "off"
    tune: Tune = asked or "latency"
    reason = f"{where} says so" if asked else "vLLM's options are measured on this GPU with this model"
    diagnostics.decide("tuning", tune, reason)
    return tune


def _tune_minutes(request: BuildRequest, settings: PipelineSettings, diagnostics: Diagnostics, tune: Tune) -> float:
    """Decide how long tuning may take."""
    minutes = settings.tune_minutes if request.tune_minutes is None else request.tune_minutes
    if tune == "off" and request.tune_minutes is not None:
        diagnostics.problem("--tune-minutes", "nothing, where nothing is tuned", f"{minutes:g}", "leave it out")
    elif not 0 < minutes <= MOST_TUNE_MINUTES:  # the settings' own value was checked
        expected = f"more than 0, at most {MOST_TUNE_MINUTES:g}"
        diagnostics.problem("--tune-minutes", expected, f"{minutes:g}")
    elif tune != "off":
        reason = "what is measured until then decides; --tune-minutes says another, --tune off leaves it out"
        diagnostics.decide("tuning's time", f"{minutes:g} minutes", reason)
    return minutes


def _lane(
    request: BuildRequest, settings: PipelineSettings, hardware: Hardware, diagnostics: Diagnostics, *, engine: bool
) -> Lane | None:
    machine, asked = hardware.machine, request.lanes
    if len(asked) > 1:
        *others, last = (lane.flag for lane in LANES.values())
        flags = " and ".join(LANES[name].flag for name in asked)
        diagnostics.problem("lane", f"one of {', '.join(others)} and {last}", flags, "keep one")
        return None
    name = asked[0] if asked else settings.inference_engine
    lane = lane_of(name, settings.trt_backend)
    where = lane.flag if asked else "INFERENCE_ENGINE"
    diagnostics.decide("lane", name, "asked for" if asked else "INFERENCE_ENGINE")
    if lane.on_gpu:
        if not machine.gpus and not asked and CPU.packages[0] in machine.packages:
            # Nobody asked for this lane, and another one runs here: that it lacks all the rest too helps nobody.
            next_step = f"pass {CPU.flag}, which runs here, or plan for a GPU elsewhere with --gpu"
            diagnostics.problem(where, f"an NVIDIA GPU for the lane {name}", "none", next_step)
            return None
        if not machine.gpus:
            next_step = f"pass {CPU.flag}, or plan for a GPU elsewhere with --gpu"
            diagnostics.problem(where, "an NVIDIA GPU", "none", next_step)
        elif machine.sm is not None and machine.sm < lanes.OLDEST_SM:
            found = f"sm{machine.sm} ({machine.gpus[0].name})"
            diagnostics.problem(where, f"sm{lanes.OLDEST_SM} or newer", found, f"use a newer GPU, or {CPU.flag}")
    if engine and not any(package in machine.packages for package in lane.packages):
        other = "" if asked else f", or pass {(VLLM if machine.gpus else CPU).flag}"
        diagnostics.problem(
            where, f"{lane.packages[0]} to be installed", "none", f"use the {name} lane's environment{other}"
        )
    return lane


def _out(
    request: BuildRequest,
    chat: ChatPlan | None,
    chat_facts: SourceFacts | None,
    tool_facts: SourceFacts | None,
    lane: Lane | None,
    disk: DiskFacts,
    diagnostics: Diagnostics,
) -> Path:
    models = [facts for facts in (chat_facts, tool_facts) if facts]
    # The embedded classifier goes along with any chat model and is not named.
    named = [facts for facts in models if facts is models[0] or facts.kind != EMBEDDED]
    parts = [
        *(_folder_name(facts, chat=facts is chat_facts) for facts in named),
        chat.method if chat else "tool",
        lane.name if lane else "",
    ]
    out = request.out or ARTIFACTS / "-".join(part for part in parts if part)
    diagnostics.decide("artifact", out, "--out" if request.out else "named after model, method and lane")
    place = disk.entries.get(out, PathEntry.NOTHING)
    looked_at = out if out in disk.entries else NEW_ARTIFACT
    if refusal := disk.refusals.get(looked_at):
        diagnostics.problems.append(refusal)
    elif place is PathEntry.FILE:
        diagnostics.problem("--out", "a folder, or nothing", f"a file at {out}", "choose another --out")
    elif place is PathEntry.UNREADABLE:
        diagnostics.problem("--out", "a folder, or nothing", f"what cannot be read at {out}", "choose another --out")
    elif place is PathEntry.OTHER_FOLDER:
        diagnostics.problem(
            "--out", "an empty folder, an artifact or nothing", f"other files in {out}", "choose another"
        )
    return out


def _folder_name(facts: SourceFacts, *, chat: bool) -> str:
    """Return a model's part in the name of its artifact's folder; two models never share it."""
    if facts.kind == "embedded":
        return "smollm2-135m-instruct" if chat else "screenshot-intent"
    if facts.kind == "hub":
        # No name on the hub holds two dashes.
        name = facts.ref.replace("/", "--", 1)
        return distinct_name(name, name)
    return distinct_name(facts.name, str(facts.path or facts.ref))


def _thresholds(
    request: BuildRequest,
    chat: ChatPlan | None,
    tool: ToolPlan | None,
    lane: Lane | None,
    diagnostics: Diagnostics,
    tune: Tune,
) -> Thresholds:
    if lane is None or (request.chat and chat is None) or (request.tool and tool is None):
        return {}  # what is in the way is told already
    candidate = Candidate(
        lane,
        chat=chat is not None,
        method=chat.method if chat and not chat.prequantized else None,
        parameters=chat.parameters if chat else 0,
        prompt_tokens=chat.limits.max_input_len if chat else 0,
        classifier=None if tool is None else "embedded" if tool.source.kind == EMBEDDED else "other",
        tools_measured=tool is None or tool.coverage.measured,
        tools_unmeasured=tool is not None and bool(tool.coverage.missing),
        # Whether anything wins shows when it is built; its text has a bound then.
        tuned=tune != "off",
    )
    diagnostics.problems.extend(inapplicable_bounds(candidate, request.thresholds))
    bounds = {**default_thresholds(candidate), **request.thresholds}
    if bounds:
        reason = f"defaults for {chat.method if chat else 'the classifier'}"
        if chat and not candidate.compared:
            reason = "no float model to be held against"
        asked = ", ".join(option.name for spec, option in OPTIONS.items() if spec in request.thresholds)
        diagnostics.decide("gates", planned_text(bounds), reason + (f"; as asked: {asked}" if asked else ""))
    return bounds
