"""A run on stand-ins whose tuned options some stage refuses: in this process, or in one that is killed on its way.

`python -m tests.harness.faults.refusing FOLDER STAGE` makes an artifact there; `CALLS` and `DIE_AT` as in
`builds.standins`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pipeline.run
from pipeline.lanes import gate_specs
from pipeline.lanes.gates import gates_of
from pipeline.plan import BuildPlan, BuildRequest
from pipeline.plan.prepare import prepare
from pipeline.run import Run
from pipeline.steps import quantize_step, stage_runner
from runtime.artifact import BuildMetadata, EngineChoices, TriedOptions, TunedOptions, TuningKey, Validation
from tests.harness.builds import standins
from tests.harness.builds.progress import RecordedProgress
from tests.hub.golden import proof_of

FULL = EngineChoices(cudagraph_mode="FULL")
KEY = TuningKey(engine="vllm 0", torch=None, driver=None, gpu=None, gpu_memory_bytes=None, tensor_parallel_size=1)
WON = TunedOptions(
    goal="latency",
    key=KEY,
    choices=FULL,
    noise=0.0,
    candidates=(TriedOptions(name="full", options=FULL, outcome="won", reason="it is faster"),),
)

# Called with the stage's name and its options; raises what is to fail there. A gate fails where it returns true.
Refuse = Callable[[str, EngineChoices], bool]


def replaced(refuse: Refuse) -> list[tuple[Any, str, Any]]:
    """What to set where, so that a run takes no model, no engine, and options that won."""

    def build(model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Any) -> None:
        refuse("build", plan.choices)
        standins.build(model_dir, out, source=source, plan=plan, progress=progress)
        (out / "compiled.txt").write_text(plan.choices.text)

    def validate(folder: Path, metadata: BuildMetadata, *, thresholds: Any, **_: Any) -> Validation:
        assert metadata.chat is not None
        assert metadata.chat.engine_options is not None
        options = metadata.chat.engine_options.choices
        assert (folder / "compiled.txt").read_text() == options.text
        bad = refuse("validate", options)
        standins.record("validate")
        figures = {gate_specs.PERPLEXITY_RATIO: 9.0 if bad else 1.0, gate_specs.TOOL_ACCURACY: 0.97}
        return proof_of(metadata, *gates_of(figures, thresholds))

    return [
        *standins.REPLACED,
        (pipeline.run, "BUILDERS", {"vllm": build}),
        (pipeline.run, "validate", validate),
        (pipeline.run, "tune", lambda *_: WON),
        # What code a stage runs is no matter here, and reading it takes longer than all of the rest.
        *((module, "recipe_of", lambda *_: "code") for module in (pipeline.run, quantize_step, stage_runner)),
    ]


def run_in(folder: Path, *, force: bool = False) -> tuple[Run, RecordedProgress]:
    """A run of which everything lies in one folder; the stand-ins are to be set."""
    request = BuildRequest(chat="embedded", lanes=("cpu",), method="awq", out=folder / "artifact")
    told = RecordedProgress()
    return Run(prepare(request, folder / "cache", {}), told, force=force), told


def main(folder: str, stage: str) -> None:
    """Make an artifact whose tuned options a stage refuses."""

    def refuse(name: str, options: EngineChoices) -> bool:
        if name == stage and options == FULL:
            raise RuntimeError("no kernel image")
        return False

    for module, name, standin in replaced(refuse):
        setattr(module, name, standin)
    run, _ = run_in(Path(folder))
    run.finish(*run.validate())


if __name__ == "__main__":
    main(*sys.argv[1:])
