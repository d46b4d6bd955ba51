"""The build plan: everything that is decided and checked before any work starts.

`planner.make_plan` makes it from a request, the settings, what is known of the models, and the hardware. Nothing later
decides anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.checkpoint.layers import LayerTable
from pipeline.checkpoint.prequantized import Prequantized
from pipeline.lanes import Lane
from pipeline.lanes.gates import Thresholds
from pipeline.plan.estimate import Estimate
from pipeline.source import SourceFacts
from pipeline.source.utterance_file import NO_UTTERANCES, ToolCoverage, UtteranceSet, coverage_of
from runtime.artifact import EngineChoices, Limits, Moe, ToolLabel, served_tools
from runtime.defaults import TUNE_MINUTES

Tune = Literal["latency", "throughput", "off"]

SEED = 20251122


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The request of a command line.

    Attributes:
        chat: the chat model, as it was named.
        tool: the classifier, as it was named.
        lanes: those whose flags were given; more than one is a problem.
        method: the word for one; none leaves it to QUANTIZATION.
        fallback: methods to try in turn when the gates fail.
        out: folder of the artifact; none has one made up.
        finishes: whether an artifact will be put there; where none will, nothing can be in its way.
        allow_emulated: whether slow emulated arithmetic may be used.
        thresholds: bounds that replace the defaults.
        positive_label: the classifier's label that means yes, by name or index; none reads it from the labels' names.
        tool_labels: the table of several tools, a `LABEL=TOOL[@THRESHOLD]` each; empty for what the names say.
        tool_utterances: file of labelled utterances to measure the classifier on; none takes TOOL_UTTERANCES.
        tune: what the engine's options are tuned for, or `off`; none takes TUNE.
        tune_minutes: that this may take; none takes TUNE_MINUTES.
    """

    chat: str | None = None
    tool: str | None = None
    lanes: tuple[str, ...] = ()
    method: str | None = None
    fallback: tuple[str, ...] = ()
    out: Path | None = None
    finishes: bool = True
    allow_emulated: bool = False
    thresholds: Thresholds = field(default_factory=dict)
    positive_label: str | None = None
    tool_labels: tuple[str, ...] = ()
    tool_utterances: Path | None = None
    tune: Tune | None = None
    tune_minutes: float | None = None


@dataclass(frozen=True, slots=True)
class PlanDecision:
    """A choice that the plan made.

    Attributes:
        name: what was decided, for a person.
        value: the choice.
        reason: why.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """The text to calibrate on.

    Attributes:
        dataset: as the settings name it.
        samples: how many.
        sequence_length: tokens of a sample, at most.
    """

    dataset: str
    samples: int
    sequence_length: int


@dataclass(frozen=True, slots=True)
class TrtPlan:
    """The part of a chat model's plan that TensorRT-LLM alone needs.

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
    """The plan for the chat model.

    Attributes:
        source: where it comes from.
        method: how it is or was quantized.
        scheme: the field's notation for it.
        group_size: weights that share a scale; none for methods without groups.
        symmetric: whether no zero point is stored.
        kept_in_float: names of modules, or patterns behind `re:`, that are not quantized.
        prequantized: how it came quantized; none for a float model.
        calibration: none where the method looks at no text.
        limits: what is baked in.
        dtype: of what is not quantized.
        moe: the mixture of experts; none for a dense model.
        parameters: how many weights it has.
        trt: what only TensorRT-LLM needs; none in the other lanes.
        thinking: tokens that thought may take beside the reply.
        layers: its linear layers, as the headers of the weights list them.
    """

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
    thinking: int = 0
    layers: LayerTable | None = None

    @property
    def prebuilt(self) -> Path | None:
        """The folder that holds the model quantized already, for this lane; none where it is quantized here."""
        return (self.trt.engine or self.trt.checkpoint) if self.trt else None


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """The plan for the classifier, which always stays in float.

    Attributes:
        source: where it comes from.
        max_tokens: its window.
        positive_label: index of the label that means yes; none where only `tools` says it.
        tools: the label table of a classifier with several tools; empty for one.
        utterances: the user's, to measure it on beside the embedded ones.
    """

    source: SourceFacts
    max_tokens: int
    positive_label: int | None
    tools: tuple[ToolLabel, ...] = ()
    utterances: UtteranceSet = NO_UTTERANCES

    @property
    def coverage(self) -> ToolCoverage:
        """Which tools are measured, and on what."""
        return coverage_of(served_tools(self.positive_label, self.tools), self.utterances.utterances)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """The plan of a build: everything that the stages need to know.

    Attributes:
        lane: what runs the models.
        device: cpu or cuda.
        sm: compute capability of the GPU that it is built for.
        chat: none for an artifact with the classifier alone.
        tool: none for an artifact that only chats.
        thresholds: bounds of the gates.
        out: folder of the artifact.
        fallback: methods to try in turn when the gates fail.
        estimate: what the build takes.
        decisions: every choice with its reason.
        seed: of every random number generator.
        tune: what the engine's options are tuned for, or `off`.
        tune_kv_fp8: whether a KV cache in FP8 may be tried.
        tune_minutes: that tuning may take.
        choices: the options that tuning chose; none before it ran.
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
    tune: Tune = "off"
    tune_kv_fp8: bool = False
    tune_minutes: float = TUNE_MINUTES
    choices: EngineChoices | None = None

    @property
    def engine(self) -> str:
        """The engine that loads the chat model."""
        return self.lane.engine

    @property
    def eager(self) -> bool:
        """Whether the engine runs without compiling."""
        return self.lane.eager
