"""The options of each command, and the request that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from pipeline.arguments.flags import (
    Artifact,
    Bounds,
    CacheDir,
    CheckPush,
    Emulated,
    Fallback,
    Force,
    GpuName,
    Lanes,
    Models,
    Out,
    PositiveLabel,
    Push,
    SignKey,
    ToolLabels,
    ToolOnly,
    ToolUtterances,
    TuneFor,
    TuneMinutes,
)
from pipeline.lanes import LANES, gpus
from pipeline.plan import BuildRequest
from pipeline.problem import Problem, WrongRequestError
from runtime.host.machine import Gpu

METHOD_WORDS = frozenset(word for lane in LANES.values() for word in lane.words)


def _misspelt(words: Sequence[str]) -> bool:
    """Whether the first of several words is neither a folder nor a hub id, and nearly a method."""
    word = words[0]
    if len(words) < 2 or not get_close_matches(word.lower(), METHOD_WORDS, cutoff=0.65):
        return False
    return "/" not in word and not Path(word).exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOptions:
    """The options that name the models and the lane."""

    models: Models
    lanes: Lanes

    def request(self, *, tool_only: bool = False) -> BuildRequest:
        """Make the request of the positional words.

        The first word is a method when it is one, or a misspelt one before a model, or when there is one word too many:
        then the plan says what is wrong.

        Raises:
            WrongRequestError: too few or too many words.
        """
        words = list(self.models)
        most = 1 if tool_only else 2
        method = words.pop(0) if words[0] in METHOD_WORDS or len(words) > most or _misspelt(words) else None
        if not 1 <= len(words) <= most:
            expected = "[METHOD] TOOL_MODEL" if tool_only else "[METHOD] CHAT_MODEL [TOOL_MODEL]"
            raise WrongRequestError([Problem("arguments", expected, " ".join(self.models), "see --help")])
        asked = BuildRequest(method=method, lanes=tuple(self.lanes))
        if tool_only:
            return replace(asked, tool=words[0])
        return replace(asked, chat=words[0], tool=words[1] if len(words) == 2 else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """The options of the classifier."""

    tool_only: ToolOnly = False
    positive_label: PositiveLabel = None
    tool_labels: ToolLabels = None
    tool_utterances: ToolUtterances = None

    def within(self, request: BuildRequest) -> BuildRequest:
        """Return a request with what is said of the labels."""
        return replace(
            request,
            positive_label=self.positive_label,
            tool_labels=tuple(self.tool_labels or ()),
            tool_utterances=self.tool_utterances,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactOptions:
    """The options of whatever makes an artifact.

    Attributes:
        lane: the lane, the method and the models.
        out: where the artifact will lie.
        cache_dir: what the stages keep.
        tool: the classifier's.
        allow_emulated: whether a method may be emulated.
        tune: what the engine's options are to make better.
        tune_minutes: that this may take.
    """

    lane: LaneOptions
    out: Out = None
    cache_dir: CacheDir = None
    tool: ToolOptions
    allow_emulated: Emulated = False
    tune: TuneFor = None
    tune_minutes: TuneMinutes = None

    def request(self) -> BuildRequest:
        """Make the request of the options.

        Raises:
            WrongRequestError: too few or too many words.
        """
        return replace(
            self.tool.within(self.lane.request(tool_only=self.tool.tool_only)),
            out=self.out,
            allow_emulated=self.allow_emulated,
            tune=self.tune,
            tune_minutes=self.tune_minutes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions(ArtifactOptions):
    """The options of what is planned, for `plan` and `run`.

    Attributes:
        fallback: methods to take where this one fails its gates.
    """

    fallback: Fallback = None

    def request(self) -> BuildRequest:
        """Make the request of the options.

        Raises:
            WrongRequestError: too few or too many words.
        """
        return replace(ArtifactOptions.request(self), fallback=tuple(self.fallback or ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCommandOptions:
    """The options of `plan` alone: for which machine, and whether publishing is looked at too."""

    plan: PlanOptions
    gpu: GpuName = None
    push_quant: CheckPush = False
    sign_key: SignKey = None

    def chosen_gpu(self) -> Gpu | None:
        """Return the GPU that `--gpu` names; none without it.

        Raises:
            WrongRequestError: no such GPU is known.
        """
        if self.gpu is None:
            return None
        found = gpus.find(self.gpu)
        if found is None:
            expected = f"one of {', '.join(gpus.GPUS)}"
            raise WrongRequestError(
                [Problem("--gpu", expected, self.gpu, "name the one with the same memory and chip")]
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of `run`."""

    plan: PlanOptions
    force: Force = False
    push_quant: Push = False
    sign_key: SignKey = None
    bounds: Bounds

    def request(self) -> BuildRequest:
        """Make the request of the options.

        Raises:
            WrongRequestError: too few or too many words.
        """
        return replace(self.plan.request(), thresholds=self.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of `serve`: those of `run`, but for publishing."""

    plan: PlanOptions
    force: Force = False
    bounds: Bounds

    def run(self) -> RunOptions:
        """Return the options of the `run` that comes first."""
        return RunOptions(plan=self.plan, force=self.force, bounds=self.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """The options of `quantize`; `out` is the folder of the quantized model."""

    lane: LaneOptions
    out: Out = None
    force: Force = False
    cache_dir: CacheDir = None
    allow_emulated: Emulated = False

    def request(self) -> BuildRequest:
        """Make the request of the options: the chat model alone, and no artifact.

        Raises:
            WrongRequestError: too few or too many words.
        """
        return replace(self.lane.request(), tool=None, finishes=False, allow_emulated=self.allow_emulated)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions(ArtifactOptions):
    """The options of `build`.

    Attributes:
        force: whether what is there is replaced.
    """

    force: Force = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions:
    """The options of `validate`."""

    artifact: Artifact
    reference: Annotated[str | None, typer.Option(help="The float model; else the source that the metadata names.")] = (
        None
    )
    cache_dir: CacheDir = None
    tool_utterances: ToolUtterances = None
    bounds: Bounds
