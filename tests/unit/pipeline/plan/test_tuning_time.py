"""Tuning is told before it begins: what it is for, how long it takes at most, and how to leave it out."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.plan import BuildPlan
from pipeline.problem import WrongRequestError
from pipeline.publish.reports.plan_report import steps
from tests.harness.builds.plans import HOPPER, Row, make, model


def planned(env: dict[str, str] | None = None, lane: str = "vllm", **request: Any) -> BuildPlan:
    on = {"on": HOPPER} if lane == "vllm" else {}
    return make(Row("", lane, "fp8" if lane == "vllm" else "awq", chat=model(), env=env or {}, request=request, **on))


def decided(plan: BuildPlan) -> dict[str, str]:
    return {one.name: one.value for one in plan.decisions}


def test_on_a_gpu_a_plan_says_that_it_tunes_and_for_how_long() -> None:
    plan = planned()
    assert (decided(plan)["tuning"], decided(plan)["tuning's time"]) == ("latency", "15 minutes")
    (line,) = (step for step in steps(plan) if step.startswith("tune:"))
    assert "15 minutes at most" in line
    assert "--tune off" in next(one.reason for one in plan.decisions if one.name == "tuning's time")


def test_the_estimate_counts_tuning_to_its_bound() -> None:
    off, short, long = (planned(tune=tune, tune_minutes=m) for tune, m in (("off", None), (None, 4), (None, 600)))
    assert short.estimate.seconds - off.estimate.seconds == pytest.approx(240)
    assert 240 < long.estimate.seconds - off.estimate.seconds < 3600
    assert "tuning's time" not in decided(off)


def test_the_variable_says_it_and_the_option_wins() -> None:
    assert planned({"TUNE_MINUTES": "7"}).tune_minutes == 7
    assert planned({"TUNE_MINUTES": "7"}, tune_minutes=2.5).tune_minutes == 2.5


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf"), 601.0])
def test_minutes_that_are_no_bound_are_refused(minutes: float) -> None:
    with pytest.raises(WrongRequestError, match="--tune-minutes: expected more than 0, at most 600"):
        planned(tune_minutes=minutes)


def test_minutes_where_nothing_is_tuned_are_refused() -> None:
    for lane, request in (("cpu", {}), ("vllm", {"tune": "off"})):
        with pytest.raises(WrongRequestError, match="--tune-minutes: expected nothing"):
            planned(lane=lane, tune_minutes=5.0, **request)
