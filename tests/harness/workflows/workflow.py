"""A workflow: its jobs, one for each cell of their matrices, and their steps as scripts with their environment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.harness.workflows.expressions import evaluate, expand, shown

FOLDER = Path(__file__).parents[3] / ".github/workflows"


@dataclass(frozen=True)
class Step:
    """A step of a job that runs a script.

    Attributes:
        name: as the workflow calls it, or the script's first line.
        script: what its shell runs.
        environment: the variables that the workflow sets, and no others.
        identity: what later steps know its outputs by.
    """

    name: str
    script: str
    environment: dict[str, str]
    identity: str | None


@dataclass(frozen=True)
class Job:
    """A job in one cell of its matrix.

    Attributes:
        name: of the job.
        cell: the matrix's values.
        definition: as the workflow has it.
        environment: the variables that the workflow and the job set.
        contexts: what its expressions may name.
    """

    name: str
    cell: Mapping[str, Any]
    definition: Mapping[str, Any]
    environment: dict[str, str]
    contexts: Mapping[str, Any]

    def steps(self, outputs: Mapping[str, Any] | None = None) -> Iterator[Step]:
        """The steps that run a script, in order; those whose condition does not hold are left out.

        `outputs` are those of earlier steps; the caller may add to it between two steps.
        """
        for step in self.definition["steps"]:
            contexts = {**self.contexts, "steps": outputs or {}, "env": self.environment}
            if "if" in step and not evaluate(step["if"], contexts):
                continue
            if "run" in step:
                own = {name: shown(expand(str(value), contexts)) for name, value in step.get("env", {}).items()}
                script = shown(expand(step["run"], contexts))
                name = step.get("name") or script.splitlines()[0]
                yield Step(name, script, {**self.environment, **own}, step.get("id"))


@dataclass(frozen=True)
class Workflow:
    """A workflow as its file has it."""

    name: str
    document: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> Workflow:
        """Read one of this repository's."""
        return cls(name, yaml.safe_load((FOLDER / name).read_text("utf-8")))

    @property
    def triggers(self) -> Mapping[str, Any]:
        """What starts it. YAML 1.1 takes the key `on` for a truth value."""
        return self.document.get("on") or self.document[True]  # type: ignore[index]

    def inputs(self, **given: str) -> dict[str, str]:
        """The inputs of a run by hand: those that are given, else their defaults."""
        declared = self.triggers["workflow_dispatch"]["inputs"]
        if unknown := given.keys() - declared.keys():
            raise ValueError(f"expected inputs among {sorted(declared)}, found {sorted(unknown)}")
        return {name: given.get(name, str(about.get("default", ""))) for name, about in declared.items()}

    def jobs(self, **contexts: Mapping[str, Any]) -> Iterator[Job]:
        """The jobs, one for each cell of a matrix; those whose condition does not hold are left out."""
        known = {"github": {}, "inputs": {}, "vars": {}, "secrets": {}, "needs": {}, "env": {}, **contexts}
        for name, job in self.document["jobs"].items():
            if "if" in job and not evaluate(job["if"], known):
                continue
            for cell in _cells(job.get("strategy", {}).get("matrix", {}), known):
                here = {**known, "matrix": cell}
                variables = {**self.document.get("env", {}), **job.get("env", {})}
                environment = {key: shown(expand(str(value), here)) for key, value in variables.items()}
                yield Job(name, cell, job, environment, here)


def _cells(matrix: Mapping[str, Any], contexts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    axes = {name: expand(values, contexts) if isinstance(values, str) else values for name, values in matrix.items()}
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))
