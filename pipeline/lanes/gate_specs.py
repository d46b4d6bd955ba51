"""The table of gates: one entry for each figure that validation takes of an artifact.

Thresholds, the command line's options, the plan, the model card and the report read it. A new gate is an entry in
`SPECS` and the code in `validate/` that measures its figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.lanes.lane import Lane
from pipeline.lanes.methods import METHODS, SMALL_MODEL, Bounds
from runtime.artifact.lanes import LONG_PROMPT_TOKENS
from runtime.artifact.schema.proof import Relation

# The embedded classifier is trained on the spot; less than this means that the training went wrong.
EMBEDDED_TOOL_ACCURACY = 0.93
# Any other one: of the 254 held-out utterances 142 (0.56) want no look, so one that always says the same is right as
# often. Three standard deviations (0.03 each) above that are no chance; an inverted classifier is far below.
LEAST_TOOL_ACCURACY = 0.65
# With more text before it a model is right as often or oftener; of 48 places some 20 are, give or take 4.
LEAST_LONG_PROMPT = 0.6
# By how much less probable, in nats a token, replies under load may be than the plain engine's: all on average, and the
# worst against the worst. Of 1,024 replies of SmolLM2 at 256 streams on an H100, two sound engines differed by 0.003 on
# average and 0.15 at worst.
MOST_MEAN_LOSS = 0.05
MOST_WORST_LOSS = 1.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """The facts about an artifact that decide which gates it has, and how good it must be.

    Attributes:
        lane: what runs it.
        chat: whether it holds a chat model.
        method: how the chat model was quantized here; none for one that came quantized, which has no float model to be
            held against.
        parameters: weights of the chat model.
        prompt_tokens: the longest prompt that it takes.
        classifier: `embedded` for the one that is trained here, `other`, or none.
        tools_measured: whether labelled utterances ask for some of its tools.
        tools_unmeasured: whether they ask for none of some other.
        tuned: whether options of its engine were tuned.
    """

    lane: Lane
    chat: bool = False
    method: str | None = None
    parameters: int = 0
    prompt_tokens: int = 0
    classifier: Literal["embedded", "other"] | None = None
    tools_measured: bool = True
    tools_unmeasured: bool = False
    tuned: bool = False

    @property
    def compared(self) -> bool:
        """Whether there is a float model to compare it with."""
        return self.chat and self.method is not None

    @property
    def quality(self) -> Bounds | None:
        """The bounds of its method at its size; none where no method is known."""
        if self.method not in METHODS:
            return None
        small, large = self.lane.bounds(self.method)
        return small if self.parameters < SMALL_MODEL else large


@dataclass(frozen=True, slots=True)
class BoundOption:
    """The command line's option that replaces a bound.

    Attributes:
        name: as it is typed, such as `--min-top1`.
        help: what `--help` says of it.
        least: the least value that it takes.
        most: the most that it takes; none for no limit.
    """

    name: str
    help: str
    least: float = 0.0
    most: float | None = None

    @property
    def parameter(self) -> str:
        """The option's name as a Python identifier."""
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True, slots=True)
class CardRow:
    """The row of a gate in the model card.

    Attributes:
        section: where it stands.
        text: what the figure is called there.
        task: the hub's task for figures of quality.
    """

    section: Literal["quality", "speed"]
    text: str
    task: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class GateSpec:
    """The specification of one gate: how its figure is bounded, asked for and shown.

    Attributes:
        name: as the metadata has it.
        applies_to: whether an artifact must have the figure.
        unit: of the figure.
        relation: how it must stand to its bound; none for a figure that is only reported.
        default: the bound unless told otherwise, for artifacts that have the figure; none reports it alone.
        option: replaces the bound on the command line.
        label: what the plan calls it.
        card: how the model card shows it; none leaves it out.
        most: the most that its figure can be; none for no limit.
    """

    name: str
    applies_to: Callable[[Candidate], bool]
    unit: str = ""
    relation: Relation | None = None
    default: Callable[[Candidate], float | None] = lambda _: None
    option: BoundOption | None = None
    label: str = ""
    card: CardRow | None = None
    most: float | None = None

    def __str__(self) -> str:
        return self.name


def _chat(candidate: Candidate) -> bool:
    return candidate.chat


def _compared(candidate: Candidate) -> bool:
    return candidate.compared


FILES = GateSpec("files_verified", lambda _: True, unit="files")
KNOWN_PROMPTS = GateSpec(
    "known_prompts",
    _chat,
    relation=">=",
    default=lambda _: 0.5,
    option=BoundOption("--min-known-prompts", "Part of the known prompts answered right.", most=1.0),
    label="known prompts",
    card=CardRow("quality", "Known prompts answered right", "text-generation"),
    most=1.0,
)
REPLIES_END = GateSpec(
    "replies_end",
    _chat,
    relation=">=",
    default=lambda _: 0.5,
    option=BoundOption("--min-replies-end", "Part of the known prompts whose answer ends by itself.", most=1.0),
    label="replies that end",
    card=CardRow("quality", "Answers that end by themselves", "text-generation"),
    most=1.0,
)
PERPLEXITY = GateSpec("perplexity", lambda candidate: candidate.chat and candidate.lane.perplexity)
PERPLEXITY_RATIO = GateSpec(
    "perplexity_ratio",
    lambda candidate: candidate.compared and candidate.lane.perplexity,
    relation="<=",
    default=lambda candidate: candidate.quality.perplexity_ratio if candidate.quality else None,
    option=BoundOption("--max-perplexity-ratio", "Perplexity over that of the float model.", least=1.0),
    label="perplexity ratio",
    card=CardRow("quality", "Perplexity over that of the original", "text-generation"),
)
TOP1_AGREEMENT = GateSpec(
    "top1_agreement",
    _compared,
    relation=">=",
    default=lambda candidate: candidate.quality.top1_agreement if candidate.quality else None,
    option=BoundOption("--min-top1", "Same first choice as the float model.", most=1.0),
    label="top-1 agreement",
    card=CardRow("quality", "Same first choice as the original", "text-generation"),
    most=1.0,
)
LONG_PROMPT = GateSpec(
    "long_prompt_ratio",
    lambda candidate: candidate.chat and candidate.prompt_tokens > LONG_PROMPT_TOKENS,
    relation=">=",
    default=lambda _: LEAST_LONG_PROMPT,
    option=BoundOption("--min-long-prompt", "Next tokens right at a full prompt's end, over those with a short one."),
    label="long prompt",
    card=CardRow("quality", "Next tokens right at the end of a full prompt, over a short one", "text-generation"),
)
TEXT_UNDER_LOAD = GateSpec(
    "text_under_load",
    lambda candidate: candidate.tuned,
    unit="nats",
    relation="<=",
    default=lambda _: MOST_MEAN_LOSS,
    option=BoundOption("--max-text-loss", "Nats a token that replies under load may be less probable, tuned options."),
    label="text under load",
    card=CardRow("quality", "Nats a token that replies under load are less probable than the plain engine's"),
)
WORST_UNDER_LOAD = GateSpec(
    "text_under_load_worst",
    lambda candidate: candidate.tuned,
    unit="nats",
    relation="<=",
    default=lambda _: MOST_WORST_LOSS,
    option=BoundOption("--max-worst-text-loss", "The same of the worst reply's worst stretch."),
    label="worst text under load",
)
HELD_OUT_TOKENS = GateSpec("held_out_tokens", _chat, unit="tokens")
TTFT = GateSpec(
    "ttft_p50",
    _chat,
    unit="ms",
    relation="<=",
    default=lambda candidate: candidate.lane.latency.ttft_ms,
    option=BoundOption("--max-ttft-ms", "Time to the first token, one stream."),
    label="TTFT",
    card=CardRow("speed", "Time to the first token, median, one stream"),
)
ITL = GateSpec(
    "itl_p50",
    _chat,
    unit="ms",
    relation="<=",
    default=lambda candidate: candidate.lane.latency.itl_ms,
    option=BoundOption("--max-itl-ms", "Time between tokens, one stream."),
    label="ITL",
    card=CardRow("speed", "Time between tokens, median, one stream"),
)
THROUGHPUT = GateSpec(
    "throughput",
    _chat,
    unit="tokens/s",
    relation=">=",
    default=lambda candidate: candidate.lane.latency.tokens_per_s,
    option=BoundOption("--min-tokens-per-s", "All streams together."),
    label="throughput",
    card=CardRow("speed", "All streams together"),
)
THROUGHPUT_STREAMS = GateSpec("throughput_streams", _chat, unit="streams")
TOOL_ACCURACY = GateSpec(
    "tool_accuracy",
    lambda candidate: candidate.classifier is not None and candidate.tools_measured,
    relation=">=",
    default=lambda candidate: EMBEDDED_TOOL_ACCURACY if candidate.classifier == "embedded" else LEAST_TOOL_ACCURACY,
    option=BoundOption("--min-tool-accuracy", "Each tool of the classifier, on labelled utterances.", most=1.0),
    label="tool accuracy",
    card=CardRow("quality", "Decisions of the classifier that are right", "text-classification"),
    most=1.0,
)
# Of a tool that no utterance asks for: that it stays silent where it should is all that can be bounded.
TOOL_SILENCE = GateSpec(
    "tool_silence",
    lambda candidate: candidate.classifier is not None and candidate.tools_unmeasured,
    relation=">=",
    default=lambda _: LEAST_TOOL_ACCURACY,
    label="tool silence",
    most=1.0,
)

# In the order in which a person reads them.
SPECS = (
    FILES,
    KNOWN_PROMPTS,
    REPLIES_END,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    TOP1_AGREEMENT,
    LONG_PROMPT,
    TEXT_UNDER_LOAD,
    WORST_UNDER_LOAD,
    HELD_OUT_TOKENS,
    TTFT,
    ITL,
    THROUGHPUT,
    THROUGHPUT_STREAMS,
    TOOL_ACCURACY,
    TOOL_SILENCE,
)

BY_NAME = {spec.name: spec for spec in SPECS}

# Those whose bound can be asked for.
OPTIONS = {spec: spec.option for spec in SPECS if spec.option}
# Gates of the classifier alone.
CLASSIFIERS = frozenset({TOOL_ACCURACY.name, TOOL_SILENCE.name})
