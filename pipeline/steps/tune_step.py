"""The step that tunes: engine options are tried on this GPU; where that fails, the plain options serve."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.plan import BuildPlan, ChatPlan
from pipeline.problem import LONGEST_FOUND, printable
from pipeline.stages.recipes import recipe_of
from pipeline.stages.stage import StageError
from pipeline.steps.stage_runner import FetchedModel, StageRunner, tokenizing
from pipeline.tuning.choosing import Goal
from pipeline.tuning.trials import TuningRequest, tune_here
from runtime.artifact import TunedOptions


def tune(plan: BuildPlan, chat: ChatPlan, model: FetchedModel, runner: StageRunner) -> TunedOptions | None:
    """Try the table of engine options on this GPU; none where nothing is tuned.

    What was measured is kept for the same engine, driver and GPU, and for nothing else.
    """
    goal = plan.tune
    if goal == "off":
        return None
    try:
        return _tuned(goal, plan, chat, model, runner)
    except Exception as error:  # noqa: BLE001 - whatever it is: the plain options serve too
        # Where these do not either, the stages that follow say so.
        why = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
        told = printable(why, LONGEST_FOUND)
        runner.progress.step(f"tune: {told}; nothing is tuned, and the engine's plain options are built")
        return None


def _tuned(goal: Goal, plan: BuildPlan, chat: ChatPlan, model: FetchedModel, runner: StageRunner) -> TunedOptions:
    request = TuningRequest(
        goal=goal,
        folder=model.folder,
        engine=plan.engine,
        limits=chat.limits,
        method=chat.method,
        kv_fp8=plan.tune_kv_fp8,
        minutes=plan.tune_minutes,
    )
    inputs = {
        "model": model.content,
        "goal": goal,
        "engine": request.engine,
        "limits": chat.limits.model_dump(),
        "method": chat.method,
        "kv_fp8": request.kv_fp8,
        "minutes": request.minutes,
        "machine": runner.engine_identity(),
        "packages": tokenizing(),
        "code": recipe_of("tune", plan.engine),
    }

    def work(out: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory(prefix="yap-tune-", dir=out.parent) as scratch:
            tuned = tune_here(request, runner.machine, Path(scratch), runner.progress)
        return tuned.model_dump(mode="json")

    done = runner.stage("tune", inputs, work)
    return TunedOptions.model_validate_json(json.dumps(done.result))
