"""The plan: everything decided and checked before any work starts.

`planner.make` makes it from a request, the settings, what is known of the models, and the hardware. Nothing later
decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.lanes import Lane
from pipeline.lanes.gates import Thresholds
from pipeline.plan.estimate import Estimate
from pipeline.source import SourceFacts
from pipeline.source.prequantized import Prequantized
from runtime.artifact import Limits, Moe

SEED = 20251122


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What the user asked for on the command line. `chat` and `tool` are models as named there."""

    chat: str | None = None
    tool: str | None = None
    lanes: tuple[str, ...] = ()
    method: str | None = None
    fallback: tuple[str, ...] = ()
    out: Path | None = None
    allow_emulated: bool = False
    thresholds: Thresholds = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanDecision:
    """One thing that the plan settled, and why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """The text to calibrate on: data set, samples, and tokens of a sample at most."""

    dataset: str
    samples: int
    sequence_length: int


@dataclass(frozen=True, slots=True)
class TrtPlan:
    """What only TensorRT-LLM needs to know.

    Attributes:
        label: of the engine that this GPU needs; none where nothing is compiled.
        checkpoint: one that exists already, so that nothing is quantized.
        engine: one that exists already, so that nothing is compiled either.
    """

    label: str | None
    checkpoint: Path | None = None
    engine: Path | None = None


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """What happens to the chat model. `calibration` is none where nothing looks at text; `trt` belongs to its lane."""

    source: SourceFacts
    method: str
    scheme: str
    group_size: int | None
    symmetric: bool
    kept_in_float: tuple[str, ...]
    prequantized: Prequantized | None
    calibration: CalibrationPlan | None
    limits: Limits
    dtype: str
    moe: Moe | None
    parameters: int
    trt: TrtPlan | None = None

    @property
    def given(self) -> Path | None:
        """A folder that holds the model quantized already, for this lane; none where it is quantized here."""
        return (self.trt.engine or self.trt.checkpoint) if self.trt else None


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """What happens to the classifier, which always stays in float. `max_tokens` is its window."""

    source: SourceFacts
    max_tokens: int
    positive_label: int


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that the stages need to know.

    Attributes:
        lane: trt, vllm or cpu.
        engine: what loads the chat model.
        device: cpu or cuda.
        sm: compute capability of the GPU that it is built for.
        eager: whether the engine runs without compiling.
        out: folder of the artifact.
        fallback: methods to try in turn when the gates fail.
    """

    lane: Lane
    device: str
    sm: int | None
    chat: ChatPlan | None
    tool: ToolPlan | None
    thresholds: Thresholds
    out: Path
    fallback: tuple[str, ...]
    estimate: Estimate
    decisions: tuple[PlanDecision, ...]
    seed: int = SEED

    @property
    def engine(self) -> str:
        """What loads the chat model."""
        return self.lane.engine

    @property
    def eager(self) -> bool:
        """Whether the engine runs without compiling."""
        return self.lane.eager
