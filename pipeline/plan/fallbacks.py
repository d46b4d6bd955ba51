"""The chain of methods that `--fallback` names: each is planned before the first one is tried.

A run may come to the last of them after hours, so what stands in its way is told before anything starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from pipeline.lanes import METHODS, Lane
from pipeline.plan import BuildPlan, BuildRequest, ChatPlan
from pipeline.plan.diagnostics import Diagnostics
from pipeline.plan.hardware import Hardware
from pipeline.problem import Problem, WrongRequestError

# What a machine has too little of is told once, for the first method that lacks it.
RESOURCES = frozenset({"disk", "memory", "GPU memory"})


def checked_methods(
    request: BuildRequest, chat: ChatPlan | None, hardware: Hardware, lane: Lane | None, diagnostics: Diagnostics
) -> list[str]:
    """Check the words of a chain of methods, and return those that can be planned."""
    methods = lane.methods if lane else tuple(METHODS)
    good: list[str] = []
    if not request.fallback:
        return good
    if request.chat is None:
        found, next_step = "a classifier, which stays in float", "leave it out"
        diagnostics.problem("--fallback", "a chat model, for another method", found, next_step)
        return good
    if chat and (chat.prequantized or chat.prebuilt):
        found = f"{chat.prebuilt or chat.source.ref}, which comes as {chat.scheme}"
        diagnostics.problem("--fallback", "a model that is quantized here", found, "leave it out")
        return good
    tried = [chat.method] if chat else []
    for method in request.fallback:
        if method not in methods:
            diagnostics.problem("--fallback", f"one of {', '.join(methods)}", repr(method))
        elif method in tried:
            found = f"{method} again" if method in good else method
            diagnostics.problem("--fallback", f"another method than {', '.join(tried)}", found)
        elif lane and (refusal := lane.refusal(method, hardware.machine.sm, allow_emulated=request.allow_emulated)):
            diagnostics.problem("--fallback", f"a method that {lane.name} can run here", method, str(refusal))
        else:
            good.append(method)
        tried.append(method)
    return good


@dataclass(slots=True)
class Attempts:
    """The plans of a chain of methods, made before the first one is tried.

    Attributes:
        request: what they are asked by, but for the method.
        plan: makes a plan of a request.
        problems: what stands in their way, by method.
        kept_bytes: disk that is taken when the last method begins.
    """

    request: BuildRequest
    plan: Callable[[BuildRequest], BuildPlan]
    problems: dict[str, tuple[Problem, ...]] = field(default_factory=dict)
    kept_bytes: int = 0

    def make(self, methods: Iterable[str]) -> None:
        """Make the plan of each method, without those behind it."""
        for method in methods:
            try:
                made = self.plan(replace(self.request, method=method, fallback=()))
            except WrongRequestError as error:
                self.problems[method] = error.problems
            else:
                self.kept_bytes += made.estimate.attempt_bytes

    def problems_beside(self, known: Iterable[Problem]) -> tuple[Problem, ...]:
        """Return what is wrong with these methods alone, each problem once."""
        told = set(known)
        resources = {problem.where for problem in told} & RESOURCES
        found: list[Problem] = []
        for method, problems in self.problems.items():
            for problem in problems:
                if problem not in told and problem.where not in resources:
                    told.add(problem)
                    found.append(replace(problem, where=f"--fallback {method}: {problem.where}"))
        return tuple(found)
