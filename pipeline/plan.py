"""The plan: everything decided and checked before any work starts.

`make` is pure. It takes a request, the settings, what is known of the models, and the hardware, and returns a frozen
`BuildPlan`, or raises every problem at once. Nothing later decides anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import lanes
from pipeline.estimate import Estimate, Work, estimate
from pipeline.gates import Thresholds
from pipeline.hardware import Hardware
from pipeline.lanes import LANES, METHODS, Lane
from pipeline.prequantized import Prequantized, recognize
from pipeline.problem import Problem, WrongRequestError
from pipeline.settings import Settings
from pipeline.shape import Shape, mixture_of_experts
from pipeline.source import EMBEDDED, SourceFacts
from runtime.artifact import Limits, Moe

SEED = 20251122

# What a chat template adds around persona, history and utterance.
TEMPLATE_TOKENS = 128
# Tokens in a block of the KV cache, which the context is rounded to.
CACHE_BLOCK = 16

# Below this many parameters a model loses so much to 4 bits that a small group's extra scales are worth their size.
SMALL_MODEL = 1_000_000_000

HEADS = ("re:.*lm_head",)
MOE_GATES = (
    r"re:.*mlp\.gate$",
    r"re:.*block_sparse_moe\.gate$",
    r"re:.*shared_expert_gate$",
    r"re:.*router.*",
)
POSITIVE_LABEL = re.compile(r"screen|yes|positive|true", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for on the command line. `chat` and `tool` are models as named there."""

    chat: str | None = None
    tool: str | None = None
    lanes: tuple[str, ...] = ()
    method: str | None = None
    fallback: tuple[str, ...] = ()
    out: Path | None = None
    allow_emulated: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
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
class ChatPlan:
    """What happens to the chat model. `calibration` is none where nothing looks at text."""

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
        lane: vllm or cpu.
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
    decisions: tuple[Decision, ...]
    seed: int = SEED

    @property
    def engine(self) -> str:
        """What loads the chat model."""
        return self.lane.engine

    @property
    def eager(self) -> bool:
        """Whether the engine runs without compiling."""
        return self.lane.eager


def make(
    request: Request,
    settings: Settings,
    chat: SourceFacts | None,
    tool: SourceFacts | None,
    hardware: Hardware,
    earlier: tuple[Problem, ...] = (),
) -> BuildPlan:
    """Decide everything.

    Args:
        request: the command line.
        settings: the environment.
        chat: the chat model's facts; none for an artifact with the classifier alone.
        tool: the classifier's facts; none for an artifact that only chats.
        hardware: this machine.
        earlier: problems that were found on the way here.

    Raises:
        WrongRequestError: with every problem.
    """
    return _Planner(request, settings, hardware, list(earlier)).plan(chat, tool)


class _Planner:
    """Collects decisions and problems; each method settles one matter."""

    def __init__(self, request: Request, settings: Settings, hardware: Hardware, problems: list[Problem]) -> None:
        self.request, self.settings, self.hardware, self.problems = request, settings, hardware, problems
        self.decisions: list[Decision] = []

    def plan(self, chat: SourceFacts | None, tool: SourceFacts | None) -> BuildPlan:
        lane = self._lane(needed=chat is not None)
        if chat is None and tool is None:
            self._problem("MODEL", "a chat model, a classifier, or both", "neither", "name a model, such as `embedded`")
        for facts in (chat, tool):
            self.problems.extend(facts.problems if facts else ())
        chat_plan = self._chat(chat, lane) if chat and lane else None
        tool_plan = self._tool(tool) if tool else None
        out = self._out(chat_plan, chat or tool, lane)
        self._fallbacks(chat_plan, lane)
        thresholds = self._thresholds(chat_plan, lane)
        cost = estimate(self._work(chat_plan, tool_plan, lane), cores=self.hardware.cores)
        self._resources(cost, lane)
        if self.problems or lane is None:
            raise WrongRequestError(tuple(dict.fromkeys(self.problems)))
        return BuildPlan(
            lane=lane,
            device=lane.device,
            sm=self.hardware.machine.sm if lane.device == "cuda" else None,
            chat=chat_plan,
            tool=tool_plan,
            thresholds=thresholds,
            out=out,
            fallback=self.request.fallback,
            estimate=cost,
            decisions=tuple(self.decisions),
        )

    def _problem(self, where: str, expected: str, found: str, next_step: str = "") -> None:
        self.problems.append(Problem(where, expected, found, next_step))

    def _decide(self, name: str, value: object, reason: str) -> None:
        self.decisions.append(Decision(name, str(value), reason))

    def _lane(self, *, needed: bool) -> Lane | None:
        asked = self.request.lanes
        machine = self.hardware.machine
        if len(asked) > 1:
            flags = " and ".join(f"--{name}" for name in asked)
            self._problem("lane", "one of --trt, --vllm and --cpu", flags, "keep one")
            return None
        name = asked[0] if asked else self.settings.inference_engine
        where = f"--{name}" if asked else "INFERENCE_ENGINE"
        advice = "pass --vllm" if machine.gpus else "pass --cpu: this machine has no GPU"
        if name not in LANES:
            self._problem(where, f"one of the lanes {', '.join(LANES)}", name, advice)
            return None
        lane = LANES[name]
        self._decide("lane", name, "asked for" if asked else "INFERENCE_ENGINE")
        if lane.device == "cuda":
            if not machine.gpus:
                self._problem(where, "an NVIDIA GPU", "none", "pass --cpu")
            elif machine.sm is not None and machine.sm < lanes.OLDEST_SM:
                found = f"sm{machine.sm} ({machine.gpus[0].name})"
                self._problem(where, f"sm{lanes.OLDEST_SM} or newer", found, "use a newer GPU, or --cpu")
        if needed and not any(package in machine.packages for package in lane.packages):
            self._problem(where, f"{lane.packages[0]} to be installed", "none", f"use the {name} lane's environment")
        return lane

    def _chat(self, facts: SourceFacts, lane: Lane) -> ChatPlan | None:
        if facts.problems:
            # Its method can still be checked, so that this mistake too is told now.
            self._method(lane)
            return None
        try:
            shape = Shape.of(facts.config)
        except KeyError as missing:
            found = f"none in the config.json of {facts.ref}"
            self._problem("CHAT_MODEL", f"{missing.args[0]}", found, "name a causal language model")
            self._method(lane)
            return None
        self._architecture(facts)
        moe = mixture_of_experts(facts.config, facts.name)
        if moe:
            self._decide("mixture of experts", moe.experts or "yes", f"recognized by {moe.recognized_by}")
        per_weight = facts.weight_bytes / shape.parameters if facts.weight_bytes else None
        prequantized = recognize(facts.config, facts.name, bytes_per_weight=per_weight)
        method: str | None
        kept: tuple[str, ...]
        if prequantized:
            method, scheme = self._take_over(prequantized, lane), prequantized.scheme
            group, symmetric, kept = prequantized.group_size, True, ()
            calibration = None
        else:
            method = self._method(lane)
            scheme = METHODS[method].scheme if method else ""
            group, symmetric, kept = self._grouping(method, shape, moe)
            calibration = self._calibration(method, facts)
            if self.hardware.quantizer is None:
                next_step = "run `make setup`, or name its interpreter in QUANTIZE_PYTHON"
                self._problem("QUANTIZE_PYTHON", "an environment with llm-compressor", "none", next_step)
        dtype = shape.dtype
        if dtype == "float32":
            dtype = "bfloat16"
            self._decide("arithmetic", dtype, "the source is in float32, which costs twice the memory for nothing")
        return ChatPlan(
            source=facts,
            method=method or "",
            scheme=scheme,
            group_size=group,
            symmetric=symmetric,
            kept_in_float=kept,
            prequantized=prequantized,
            calibration=calibration,
            limits=self._limits(shape, lane),
            dtype=dtype,
            moe=moe,
            parameters=shape.parameters,
        )

    def _architecture(self, facts: SourceFacts) -> None:
        architecture = facts.architecture
        if architecture and not re.search(r"CausalLM|LMHead|ConditionalGeneration", architecture):
            self._problem("CHAT_MODEL", "a causal language model", f"{architecture} in {facts.ref}", "swap the models?")

    def _method(self, lane: Lane) -> str | None:
        asked = self.request.method
        word, where = (asked, "METHOD") if asked else (self.settings.quantization.lower(), "QUANTIZATION")
        if word not in lane.words:
            self._problem(where, f"one of {', '.join(lane.words)} in the {lane.name} lane", repr(word))
            return None
        method, reason = lane.resolve(word, self.hardware.machine.sm)
        refusal = lane.refusal(method, self.hardware.machine.sm, allow_emulated=self.request.allow_emulated)
        if refusal:
            self._problem(where, f"a method that {lane.name} can run here", method, refusal)
        source = "" if asked else "; QUANTIZATION" + (" is 4bit by default" if word == "4bit" else "")
        self._decide("method", f"{method} ({METHODS[method].scheme})", reason + source)
        return method

    def _take_over(self, found: Prequantized, lane: Lane) -> str:
        if found.format not in lane.loads or (found.method == "fp8" and lane.device == "cpu"):
            loads = ", ".join(lane.loads)
            self._problem("CHAT_MODEL", f"a source in float, or one of {loads}", found.format, "name the float model")
        reason = f"the source is quantized already, by {found.recognized_by}; it is not quantized again"
        if self.request.method:
            reason += f", and {self.request.method} is not used"
        self._decide("method", f"{found.method} ({found.scheme})", reason)
        return found.method

    def _grouping(self, method: str | None, shape: Shape, moe: Moe | None) -> tuple[int | None, bool, tuple[str, ...]]:
        kept = HEADS + (MOE_GATES if moe else ())
        self._decide("kept in float", ", ".join(kept), "heads and gates lose most and weigh least")
        if method is None or not METHODS[method].grouped:
            return None, True, kept
        small = shape.parameters < SMALL_MODEL
        size = shape.group_size(32 if small else 128)
        widths = ", ".join(map(str, shape.widths))
        if size is None:
            self._problem("CHAT_MODEL", "widths that 32 divides, for groups of weights", widths, "use 8bit")
            return None, True, kept
        why = "a small model loses least with it" if small else f"the largest up to 128 that divides {widths}"
        self._decide("group size", size, f"{why}; it must divide the widths {widths}" if small else why)
        # AWQ shifts weights away from zero, so a zero point pays; GPTQ rounds against a symmetric grid as it is used.
        symmetric = method != "awq"
        self._decide("zero point", "no" if symmetric else "yes", f"as {method} does best")
        return size, symmetric, kept

    def _calibration(self, method: str | None, facts: SourceFacts) -> CalibrationPlan | None:
        if method is None or not METHODS[method].calibrated:
            if method:
                self._decide("calibration", "none", f"{method} scales activations as they come")
            return None
        named = self.settings.awq_calib_dataset
        dataset = named or (EMBEDDED if facts.kind == "embedded" else "open_platypus")
        reason = "AWQ_CALIB_DATASET" if named else f"default for {'the embedded' if dataset == EMBEDDED else 'a'} model"
        file = Path(dataset).expanduser()
        if file.suffix in {".txt", ".jsonl"}:
            if not file.is_file():
                self._problem("AWQ_CALIB_DATASET", "a text or JSONL file", f"no file {dataset}")
        elif file.exists():
            self._problem("AWQ_CALIB_DATASET", "a .txt or .jsonl file", f"{dataset}", "rename or convert it")
        elif dataset not in {EMBEDDED, "open_platypus"} and not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):
            expected = "open_platypus, embedded, a hub data set (org/name), or a .txt or .jsonl file"
            self._problem("AWQ_CALIB_DATASET", expected, repr(dataset))
        samples, length = self.settings.awq_nsamples, self.settings.awq_seqlen
        self._decide("calibration", f"{dataset}, {samples} × {length} tokens at most", f"{reason}; seed {SEED}")
        return CalibrationPlan(dataset, samples, length)

    def _limits(self, shape: Shape, lane: Lane) -> Limits:
        settings, parallel = self.settings, self.settings.tensor_parallel_size
        needed = settings.chat_max_len + settings.chat_max_out + TEMPLATE_TOKENS
        length = -(-needed // CACHE_BLOCK) * CACHE_BLOCK
        if shape.context and length > shape.context:
            most = shape.context // CACHE_BLOCK * CACHE_BLOCK - TEMPLATE_TOKENS - settings.chat_max_out
            next_step = f"set CHAT_MAX_LEN to {most} or less" if most >= 16 else "choose a model with a longer context"
            self._problem("CHAT_MAX_LEN", f"{length} tokens of context", f"a model made for {shape.context}", next_step)
        if parallel > 1:
            gpus = len(self.hardware.machine.gpus)
            if lane.device == "cpu" or parallel > gpus:
                self._problem("TENSOR_PARALLEL_SIZE", f"at most {max(1, gpus)}, the GPUs here", str(parallel))
            elif shape.hidden % parallel:
                self._problem("TENSOR_PARALLEL_SIZE", f"a divisor of the width {shape.hidden}", str(parallel))
        batch = settings.max_num_seqs or lane.batch
        self._decide("batch", batch, "MAX_NUM_SEQS" if settings.max_num_seqs else f"default on {lane.device}")
        reason = f"CHAT_MAX_LEN {settings.chat_max_len} + CHAT_MAX_OUT {settings.chat_max_out} + template"
        self._decide("context", f"{length} tokens", f"{reason}, rounded to the cache's block")
        return Limits(
            max_batch_size=batch,
            max_input_len=settings.chat_max_len,
            max_output_len=settings.chat_max_out,
            max_model_len=length,
            tensor_parallel_size=parallel,
        )

    def _tool(self, facts: SourceFacts) -> ToolPlan | None:
        if facts.problems:
            return None
        if not (facts.architecture or "").endswith("ForSequenceClassification"):
            found = f"{facts.architecture or 'no architecture'} in {facts.ref}"
            self._problem("TOOL_MODEL", "a ForSequenceClassification checkpoint", found, "name a classifier")
        labels = facts.config.get("id2label") or {}
        count = len(labels) or int(facts.config.get("num_labels", 2))
        if count != 2:
            self._problem("TOOL_MODEL", "two labels (no, yes)", f"{count}", "train the classifier on two labels")
        positive = next((int(index) for index, label in labels.items() if POSITIVE_LABEL.search(str(label))), 1)
        if facts.config.get("quantization_config"):
            self._problem("TOOL_MODEL", "a classifier in float", "a quantized one", "name the float classifier")
        window = classifier_window(facts.config)
        self._decide("classifier", facts.architecture or facts.name, f"kept in float; window of {window} tokens")
        return ToolPlan(facts, window, positive)

    def _out(self, chat: ChatPlan | None, facts: SourceFacts | None, lane: Lane | None) -> Path:
        name = re.sub(r"[^a-z0-9.-]+", "-", facts.name.lower().rpartition("/")[2]) if facts else "artifact"
        if facts and facts.kind == "embedded":
            name = "smollm2-135m-instruct" if chat else "screenshot-intent"
        parts = [name, chat.method if chat else "tool", lane.name if lane else ""]
        out = self.request.out or Path("artifacts") / "-".join(part for part in parts if part)
        self._decide("artifact", out, "--out" if self.request.out else "named after model, method and lane")
        if out.exists() and not out.is_dir():
            self._problem("--out", "a folder, or nothing", f"a file at {out}", "choose another --out")
        elif out.is_dir() and any(out.iterdir()) and not (out / "build_metadata.json").is_file():
            self._problem("--out", "an empty folder, an artifact or nothing", f"other files in {out}", "choose another")
        return out

    def _fallbacks(self, chat: ChatPlan | None, lane: Lane | None) -> None:
        for method in self.request.fallback:
            if lane is None:
                continue
            if method not in lane.methods:
                self._problem("--fallback", f"one of {', '.join(lane.methods)}", repr(method))
            elif chat and method == chat.method:
                self._problem("--fallback", f"another method than {chat.method}", method)
            elif refusal := lane.refusal(method, self.hardware.machine.sm, allow_emulated=self.request.allow_emulated):
                self._problem("--fallback", f"a method that {lane.name} can run here", method, refusal)

    def _thresholds(self, chat: ChatPlan | None, lane: Lane | None) -> Thresholds:
        method = chat.method if chat and not chat.prequantized else None
        bounds = default_thresholds(method, chat.parameters if chat else 0, lane)
        for name, value in self.request.thresholds.items():
            bounds = replace(bounds, **{name: value})
        shown = ", ".join(
            f"{name} {relation} {value:g}"
            for name, relation, value in (
                ("perplexity ratio", "≤", bounds.perplexity_ratio),
                ("top-1 agreement", "≥", bounds.top1_agreement),
                ("known prompts", "≥", bounds.known_prompts),
            )
        )
        if chat:
            asked = ", ".join(sorted(self.request.thresholds))
            self._decide("gates", shown, f"defaults for {chat.method}" + (f", and as asked: {asked}" if asked else ""))
        return bounds

    def _work(self, chat: ChatPlan | None, tool: ToolPlan | None, lane: Lane | None) -> Work:
        if chat is None or lane is None:
            return Work(tool_bytes=sum(tool.source.sizes.values()) if tool else 0)
        shape = Shape.of(chat.source.config)
        calibration = chat.calibration
        typical = (
            min(calibration.sequence_length, 180 if calibration.dataset == EMBEDDED else 512) if calibration else 0
        )
        return Work(
            parameters=shape.linear_parameters,
            float_bytes=chat.source.weight_bytes or shape.parameters * 2,
            quantized_bytes=self._stored_bytes(chat, shape),
            downloaded=chat.source.kind == "hub" and chat.source.path is None,
            tool_bytes=sum(tool.source.sizes.values()) if tool else 0,
            calibration_tokens=calibration.samples * typical if calibration else 0,
            method=METHODS.get(chat.method),
            prequantized=chat.prequantized is not None,
            device=lane.device,
            cache_bytes=shape.cache_bytes_per_token * chat.limits.max_model_len,
            parallel=chat.limits.tensor_parallel_size,
        )

    @staticmethod
    def _stored_bytes(chat: ChatPlan, shape: Shape) -> int:
        if chat.prequantized or chat.method not in METHODS:
            return chat.source.weight_bytes
        # A group's scale takes two bytes and its zero point half of one.
        scales = 2.5 / chat.group_size if chat.group_size else 0.01
        return int(shape.linear_parameters * (METHODS[chat.method].bits / 8 + scales) + shape.embedding_parameters * 2)

    def _resources(self, cost: Estimate, lane: Lane | None) -> None:
        machine, gib = self.hardware.machine, 2**30
        if cost.disk_bytes > self.hardware.free_disk:
            found, next_step = f"{self.hardware.free_disk / gib:.1f} GiB", "free some, or set AWQ_CACHE_DIR elsewhere"
            self._problem("disk", f"{cost.disk_bytes / gib:.1f} GiB free", found, next_step)
        if machine.memory_bytes and cost.memory_bytes > machine.memory_bytes:
            found, next_step = f"{machine.memory_bytes / gib:.1f} GiB", "use a larger machine or a smaller model"
            self._problem("memory", f"{cost.memory_bytes / gib:.1f} GiB", found, next_step)
        if lane and lane.device == "cuda" and machine.gpus:
            gpu = machine.gpus[0]
            if cost.gpu_bytes > gpu.memory_bytes:
                found, next_step = (
                    f"{gpu.memory_bytes / gib:.1f} GiB on {gpu.name}",
                    "use a larger GPU or a smaller model",
                )
                self._problem("GPU memory", f"{cost.gpu_bytes / gib:.1f} GiB", found, next_step)
            elif cost.gpu_bytes > gpu.free_bytes:
                found, next_step = f"{gpu.free_bytes / gib:.1f} GiB free on {gpu.name}", "end what else uses it"
                self._problem("GPU memory", f"{cost.gpu_bytes / gib:.1f} GiB", found, next_step)


def default_thresholds(method: str | None, parameters: int, lane: Lane | None) -> Thresholds:
    """The gates' bounds unless told otherwise.

    Args:
        method: how the weights were quantized here; none for a source that came quantized, which has no float model
            to be held against, so that its quality is reported alone.
        parameters: weights of the model.
        lane: its latency's bounds are taken.
    """
    bounds = Thresholds(perplexity_ratio=math.inf, top1_agreement=0.0)
    if method in METHODS:
        least = METHODS[method].small if parameters < SMALL_MODEL else METHODS[method].large
        bounds = Thresholds(least.perplexity_ratio, least.top1_agreement)
    if lane is None:
        return bounds
    speed = lane.latency
    return replace(bounds, ttft_ms=speed.ttft_ms, itl_ms=speed.itl_ms, tokens_per_s=speed.tokens_per_s)


def classifier_window(config: Mapping[str, object]) -> int:
    """Tokens that a classifier reads at most. RoBERTa's family, Longformer too, numbers positions from `pad + 1`."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return 512
    kind = str(config.get("model_type", ""))
    pad = config.get("pad_token_id")
    offset = (pad if isinstance(pad, int) else 1) + 1 if re.search(r"roberta|longformer|camembert", kind) else 0
    return positions - offset
