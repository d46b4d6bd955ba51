"""The modules that quantize and build, by engine.

Their names stand in the lanes' records, so that a new lane changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pipeline.lanes import STYLES
from pipeline.plan import BuildPlan
from pipeline.progress import Progress
from pipeline.quantize import QuantizeJob
from pipeline.stages import recipes
from runtime.artifact import Quantization


class Quantizer(Protocol):
    """What a lane's module in `quantize/` offers as `quantize`."""

    def __call__(self, job: QuantizeJob, *, python: Path | None, progress: Progress) -> Quantization:
        """Write the quantized model to `job.out`."""


class Builder(Protocol):
    """What a lane's module in `build/` offers."""

    def __call__(self, model_dir: Path, out: Path, *, source: Path, plan: BuildPlan, progress: Progress) -> None:
        """Fill `out` with what the runtime loads."""


def _offered(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


QUANTIZERS: dict[str, Quantizer] = {engine: _offered(name, "quantize") for engine, name in recipes.QUANTIZERS.items()}
BUILDERS: dict[str, Builder] = {lane.engine: _offered(recipes.BUILDERS[lane.engine], lane.builder) for lane in STYLES}
