"""The modules and data files that each stage runs; `recipe` hashes them into the stage's key.

Names are full dotted ones. What a module imports comes along by itself; what is named beside is chosen by a lane: the
quantizer, the builder, and the engine that is started. A test follows the stages' work and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pipeline.lanes import STYLES
from pipeline.stages.recipe import recipe

# The lanes' modules, by the engine that the metadata names. `ENGINES`: what is started to compile ahead of time and to
# measure.
ENGINES = {lane.engine: f"runtime.engines.{lane.module}.engine" for lane in STYLES}
QUANTIZERS = {lane.engine: f"pipeline.quantize.{lane.module}" for lane in STYLES}
BUILDERS = {lane.engine: f"pipeline.build.{lane.module}" for lane in STYLES}

HELD_OUT_TEXTS = "pipeline.embedded:data/heldout.txt"
HELD_OUT_UTTERANCES = "pipeline.embedded:data/utterances_heldout.jsonl"
TRAINING_UTTERANCES = "pipeline.embedded:data/utterances_train.jsonl"


@dataclass(frozen=True, slots=True)
class RecipeInputs:
    """The inputs of a recipe.

    Attributes:
        modules: full dotted names; what they import counts too.
        data: data files, as `package:pattern`.
    """

    modules: tuple[str, ...]
    data: tuple[str, ...] = ()


def recipe_inputs(stage: str, engine: str | None = None) -> RecipeInputs:
    """Return the modules and data files that a stage runs.

    Args:
        stage: its name.
        engine: what will load the chat model; none for an artifact without one.
    """
    started = (ENGINES[engine],) if engine else ()
    if stage == "source":
        return RecipeInputs(("pipeline.embedded.chat",))
    if stage == "tool":
        return RecipeInputs(("pipeline.embedded.tool",), (TRAINING_UTTERANCES, HELD_OUT_UTTERANCES))
    if stage == "calibration":
        # Its texts are in the key by their content, whichever data set it is.
        return RecipeInputs(("pipeline.quantize.calibration",), (HELD_OUT_TEXTS,))
    if stage == "quantize" and engine:
        return RecipeInputs((QUANTIZERS[engine],))
    if stage == "build":
        # Only vLLM's builder starts an engine, and imports it itself.
        return RecipeInputs(("pipeline.build.assemble", *((BUILDERS[engine],) if engine else ())))
    if stage == "tune" and engine:
        # The worker is a process of its own, which the trials start by its name.
        return RecipeInputs(("pipeline.tuning.trials", "pipeline.tuning.worker", *started), (HELD_OUT_TEXTS,))
    if stage == "reference" and engine:
        return RecipeInputs(("pipeline.validate.chat_figures", *started), (HELD_OUT_TEXTS,))
    if stage == "validate":
        return RecipeInputs(("pipeline.validate.validation", *started), (HELD_OUT_TEXTS, HELD_OUT_UTTERANCES))
    raise KeyError(f"expected a stage that works with the engine {engine}, found {stage}")


@cache
def recipe_of(stage: str, engine: str | None = None) -> str:
    """Return the recipe of a stage, for its key: of the source as it was when this process first asked.

    Raises:
        MissingSourceError: a module or a file is missing.
    """
    inputs = recipe_inputs(stage, engine)
    return recipe(*inputs.modules, data=inputs.data)
