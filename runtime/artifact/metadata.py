"""The artifact: a folder that is complete, checked and self-describing.

Three nouns. `BuildMetadata` is `build_metadata.json`, the contract between the pipeline that writes it and the runtime
that reads it. A `FileEntry` is one file of the folder with its size and SHA-256. The `digest` is one hash over the
sorted entries (`hashes.py`): two artifacts with the same digest hold the same bytes. `docs/artifact.md` describes every
field.

Writers refuse unknown keys, readers tolerate them, so that an older runtime can read what a newer pipeline wrote within
one schema version.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from runtime import defaults
from runtime.artifact.files.opening import ArtifactError, read_document
from runtime.artifact.files.paths import CARD_NAME as CARD_NAME
from runtime.artifact.files.paths import METADATA_NAME as METADATA_NAME
from runtime.artifact.files.paths import SIGNATURE_NAME as SIGNATURE_NAME
from runtime.artifact.files.paths import ArtifactPath, listing_problem

SCHEMA_VERSION: Literal[1] = 1
TOOL_FOLDER = "tool"
# The tool that a client is asked for where the classifier has one alone.
SCREENSHOT_TOOL = "take_screenshot"

LaneName = Literal["trt", "vllm", "cpu"]
Relation = Literal["<=", ">="]

# What vLLM calls an option's values: one word.
OPTION_WORD = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"


class Entry(BaseModel):
    """Base of everything in the metadata: frozen, and strict about unknown keys when written."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Entry):
    """Where a model came from."""

    repo: str = Field(description="hub id, `embedded`, or the name of a local folder")
    revision: str | None = Field(default=None, description="commit on the hub; none for a local folder")
    content_sha256: str = Field(description="hash over the source's own files")
    license: str | None = Field(default=None, description="as the model's card names it")
    license_name: str | None = Field(default=None, description="of a licence that is `other`")
    license_link: str | None = Field(default=None, description="to the text of that one")
    architecture: str | None = Field(default=None, description="`architectures[0]` of config.json")

    @model_serializer(mode="wrap")
    def _without_another_license(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out name and link where there are none, so that the others are written as they always were."""
        fields: dict[str, object] = written(self)
        return {name: value for name, value in fields.items() if value or not name.startswith("license_")}


class Moe(Entry):
    """Mixture of experts, where the model is one."""

    experts: int | None = None
    experts_per_token: int | None = None
    recognized_by: str


class Calibration(Entry):
    """The text that the quantizer looked at."""

    dataset: str = Field(description="its name, or the file that was given")
    digest: str = Field(description="SHA-256 over the token ids of the samples, in order")
    samples: int = Field(ge=1, description="texts that were read")
    sequence_length: int = Field(ge=1, description="tokens a sample at most")
    tokens: int = Field(ge=1, description="tokens in all samples together")
    left_out: int = Field(default=0, ge=0, description="rows that could not be used, such as no conversation")
    held_out_share: float | None = Field(
        default=None, ge=0, le=1, description="part of the held-out texts that is among them; left out where not known"
    )

    @model_serializer(mode="wrap")
    def _without_the_unknown(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out a share that is not known and a count of none, so that such metadata are written as they were."""
        fields: dict[str, object] = written(self)
        untold = {"held_out_share": None, "left_out": 0}
        return {name: value for name, value in fields.items() if name not in untold or value != untold[name]}


class Quantization(Entry):
    """How the chat model's weights are stored."""

    method: str = Field(description="awq, gptq, fp8, int8, int4_awq, int8_sq, or none")
    scheme: str = Field(description="the field's notation, such as W4A16, W8A8, FP8")
    group_size: int | None = Field(default=None, description="weights that share a scale")
    symmetric: bool | None = Field(
        default=None, description="whether there are no zero points; none where the method does not say"
    )
    kept_in_float: tuple[str, ...] = Field(default=(), description="module patterns that were not quantized")
    prequantized: bool = Field(default=False, description="the source came quantized; nothing was done here")
    calibration: Calibration | None = Field(default=None, description="none for methods that look at no text")


class Limits(Entry):
    """Every limit baked in. Lengths in tokens."""

    max_batch_size: int = Field(ge=1, description="sequences that run at once")
    max_input_len: int = Field(ge=1)
    max_output_len: int = Field(ge=1)
    max_model_len: int = Field(ge=1, description="context: input + output + what the chat template adds")
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share every layer")
    pipeline_parallel_size: int = Field(
        default=1, ge=1, description="stages of layers, one after another, each on GPUs of its own; left out where one"
    )

    @model_serializer(mode="wrap")
    def _without_one_stage(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out that there is one stage, so that the others are written as they always were."""
        fields: dict[str, object] = written(self)
        return {name: value for name, value in fields.items() if name != "pipeline_parallel_size" or value != 1}

    @property
    def gpus(self) -> int:
        """GPUs that hold the model together."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class EngineChoices(Entry):
    """Options of vLLM that were chosen by measuring. What is not set is vLLM's own choice; left out then."""

    cudagraph_mode: Literal["FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE", "PIECEWISE"] | None = Field(
        default=None, description="which steps run as one graph of the GPU, and which in pieces"
    )
    capture_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="batches, in tokens, for which graphs are captured"
    )
    attention_backend: str | None = Field(default=None, pattern=OPTION_WORD, description="vLLM's attention kernel")
    linear_backend: str | None = Field(default=None, pattern=OPTION_WORD, description="vLLM's kernel of products")
    fusions: tuple[Annotated[str, Field(pattern=OPTION_WORD)], ...] = Field(
        default=(), description="vLLM's passes over the compiled graph that are switched on"
    )
    max_num_batched_tokens: int | None = Field(default=None, ge=1, description="tokens in one scheduler step")
    kv_cache_dtype: str | None = Field(default=None, pattern=OPTION_WORD, description="type of the KV cache")

    @model_serializer(mode="wrap")
    def _without_the_unset(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what is vLLM's own choice."""
        fields: dict[str, object] = written(self)
        return {name: value for name, value in fields.items() if value}

    @property
    def text(self) -> str:
        """The options in one line, as `name=value`."""
        told = {
            name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in self.model_dump().items()
        }
        return " ".join(f"{name}={value}" for name, value in told.items()) or "vLLM's own"


class TuningKey(Entry):
    """What measured engine options are for. Another value of any of these may have another best."""

    engine: str = Field(description="the engine's package and its version")
    torch: str | None = Field(description="version of PyTorch")
    driver: str | None = Field(description="version of the NVIDIA driver")
    gpu: str | None = Field(description="as the driver names it")
    gpu_memory_bytes: int | None = Field(description="memory of one GPU")
    tensor_parallel_size: int = Field(ge=1, description="GPUs that shared every layer")
    pipeline_parallel_size: int = Field(default=1, ge=1, description="stages of layers")

    def difference(self, other: TuningKey) -> str | None:
        """The first thing that is another there, in words; none where all is the same."""
        for name, mine in self.model_dump().items():
            if mine != (theirs := getattr(other, name)):
                return f"{name} is {theirs}, was {mine}"
        return None


class TunedFigures(Entry):
    """What one run of an engine measured."""

    itl_ms: float = Field(gt=0, allow_inf_nan=False, description="milliseconds between tokens, one stream")
    ttft_ms: float = Field(
        gt=0, allow_inf_nan=False, description="to the first token, median of streams that begin together"
    )
    tokens_per_s: float = Field(gt=0, allow_inf_nan=False, description="of all streams, at the most streams")
    # Not in what the first tuning wrote.
    ttft_one_ms: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="to the first token, one stream; null where not measured"
    )


class TriedOptions(Entry):
    """One candidate of the tuning, and what became of it."""

    name: str = Field(description="of the candidate; `base` and `base again` are the plain options")
    options: EngineChoices = Field(default=EngineChoices(), description="what it set")
    outcome: Literal["base", "won", "better", "slower", "no clear win", "failed", "text", "not tried"] = Field(
        description="`text`: it won, and its replies under load were not those of the plain engine"
    )
    reason: str = Field(default="", description="in one line, for a person")
    runs: tuple[TunedFigures, ...] = Field(default=(), description="every repeat")
    kernels: tuple[str, ...] = Field(default=(), description="of products and attention, as vLLM tells them")


class TunedOptions(Entry):
    """`build --tune`: the engine's options that were measured to be the best, and every candidate's figures."""

    goal: Literal["latency", "throughput"] = Field(description="what was to become better")
    key: TuningKey = Field(description="what they are for; elsewhere the plain options serve")
    choices: EngineChoices = Field(default=EngineChoices(), description="what the runtime sets; nothing where none won")
    noise: float = Field(ge=0, allow_inf_nan=False, description="part by which equal runs differed; a win is more")
    candidates: tuple[TriedOptions, ...] = Field(description="in the order in which they were tried")


class ChatModel(Entry):
    """The chat model: at the artifact's root in the vllm lanes, under `trt-llm/` in the trt lane."""

    source: Source = Field(description="where it came from")
    quantization: Quantization = Field(description="how its weights are stored")
    limits: Limits = Field(description="what a server may ask of it")
    dtype: str = Field(description="type of what is not quantized")
    thinking_max_tokens: int = Field(
        default=defaults.THINKING_TOKENS,
        ge=0,
        description="tokens of the output that thought may take before the reply, as proven; left out where it is 0",
    )
    moe: Moe | None = Field(default=None, description="none where it is no mixture of experts")
    engine_path: ArtifactPath | None = Field(default=None, description="trt lane: folder of the compiled engine")
    compile_cache: ArtifactPath | None = Field(
        default=None, description="vllm lanes: folder of the ahead-of-time caches"
    )
    engine_options: TunedOptions | None = Field(
        default=None, description="the engine's options, as `--tune` measured them; left out where nothing was tuned"
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out a budget of 0 and options that nobody tuned, so that such metadata are written as they were."""
        fields: dict[str, object] = written(self)
        optional = {"thinking_max_tokens", "engine_options"}
        return {name: value for name, value in fields.items() if value or name not in optional}

    @property
    def tuned(self) -> bool:
        """Whether anything is set that is not vLLM's own choice."""
        return self.engine_options is not None and self.engine_options.choices != EngineChoices()


class ToolLabel(Entry):
    """A tool that the classifier can ask for, and the label that asks for it."""

    label: int = Field(ge=0, description="index of the logit")
    name: str = Field(pattern=r"^[\w.:-]{1,64}$", description="of the tool, as `toolcall` says it")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="probability from which it is asked for; none takes the classifier's"
    )


def served_tools(positive_label: int | None, tools: tuple[ToolLabel, ...]) -> tuple[ToolLabel, ...]:
    """The table of tools: the one that was written, or `take_screenshot` alone."""
    if tools or positive_label is None:
        return tools
    return (ToolLabel(label=positive_label, name=SCREENSHOT_TOOL),)


class ToolModel(Entry):
    """The classifier, always in float."""

    source: Source = Field(description="where it came from")
    path: ArtifactPath = Field(default=TOOL_FOLDER, description="its folder")
    # A reader that does not know `tools` refuses null: it would take another tool, or another kind of probability, for
    # the screenshot's.
    positive_label: int | None = Field(
        default=1, ge=0, description="index of the logit that means: take a screenshot; none where only `tools` says it"
    )
    tools: tuple[ToolLabel, ...] = Field(
        default=(), description="the tools of a classifier with several; left out for `take_screenshot` alone"
    )
    max_tokens: int = Field(ge=1, description="the classifier's window")
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="probability from which the decision is yes; none takes the server's default",
    )
    accuracy: float | None = Field(default=None, ge=0, le=1, description="on held-out utterances")

    @model_validator(mode="after")
    def _unmistakable(self) -> ToolModel:
        if self.positive_label is None and not self.tools:
            raise ValueError("expected positive_label, or a table of tools")
        for what, values in (
            ("names", [tool.name for tool in self.tools]),
            ("labels", [tool.label for tool in self.tools]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"expected different {what} of tools, found {values}")
        return self

    @model_serializer(mode="wrap")
    def _without_an_empty_table(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out an empty table, so that metadata with one tool are written as they always were."""
        fields: dict[str, object] = written(self)
        return fields if self.tools else {name: value for name, value in fields.items() if name != "tools"}

    @property
    def served_tools(self) -> tuple[ToolLabel, ...]:
        """The table of tools: the one that was written, or `take_screenshot` alone."""
        return served_tools(self.positive_label, self.tools)

    def threshold_of(self, tool: ToolLabel) -> float:
        """The probability from which a tool is asked for, unless the operator sets another: gated and served alike."""
        return defaults.first_set(tool.threshold, default=self.default_threshold)

    @property
    def default_threshold(self) -> float:
        """The probability from which the decision is yes, unless the operator sets another: gated and served alike."""
        return defaults.first_set(self.threshold, default=defaults.TOOL_THRESHOLD)

    @property
    def default_tokens(self) -> int:
        """The tokens that the classifier sees at most, unless the operator sets fewer: gated and served alike."""
        return min(defaults.TOOL_TOKENS, self.max_tokens)


class Platform(Entry):
    """The machine on which the artifact was built and proven."""

    gpu_name: str | None = Field(default=None, description="as the driver names it; none on a CPU")
    gpu_count: int = Field(default=0, description="GPUs that the process saw")
    sm: int | None = Field(default=None, description="compute capability as an integer: 90 for Hopper; none on a CPU")
    gpu_memory_bytes: int | None = Field(default=None, description="memory of one GPU")
    driver: str | None = Field(default=None, description="version of the NVIDIA driver")
    cuda: str | None = Field(default=None, description="version of CUDA that PyTorch was built for")
    python: str = Field(description="version of Python")
    machine: str = Field(description="processor architecture, such as x86_64")
    packages: dict[str, str] = Field(default_factory=dict, description="versions that decide the result")


class Gate(Entry):
    """One figure, and the bound it had to meet."""

    name: str
    # Strict: true is no 1, and "0.9" no figure.
    value: float = Field(strict=True)
    relation: Relation | None = Field(default=None, description="none: reported, not gated")
    threshold: float | None = Field(default=None, strict=True)
    unit: str = ""

    @model_validator(mode="after")
    def _whole_bound(self) -> Gate:
        if (self.relation is None) != (self.threshold is None):
            raise ValueError(f"expected both a relation and a threshold of {self.name}, or neither")
        return self

    @property
    def passed(self) -> bool:
        """Whether the figure meets its bound. One without a bound passes.

        What is no number, without an end or negative is no figure of any gate, and never passes.
        """
        if not (math.isfinite(self.value) and self.value >= 0):
            return False
        if self.relation is None or self.threshold is None:
            return True
        if not math.isfinite(self.threshold):
            return False
        return self.value <= self.threshold if self.relation == "<=" else self.value >= self.threshold


class Validation(Entry):
    """What `validate` measured. An artifact without it, or with a failed gate, is neither served nor pushed."""

    gates: tuple[Gate, ...] = Field(min_length=1)
    validated_at: str = Field(description="RFC 3339, UTC")
    digest: str = Field(description="the artifact's digest at that moment")
    not_measured: tuple[str, ...] = Field(
        default=(), description="gates of parts that nothing was there to measure by; left out where there are none"
    )
    utterances_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="the user's labelled utterances that the classifier was measured on; left out without any",
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what there is none of, so that the others are written as they always were."""
        fields: dict[str, object] = written(self)
        optional = {"not_measured", "utterances_sha256"}
        return {name: value for name, value in fields.items() if value or name not in optional}

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)


class StageRecord(Entry):
    """One stage of the run that made the artifact."""

    name: str
    key: str
    seconds: float = Field(ge=0)


class FileEntry(Entry):
    """One file: POSIX path relative to the artifact, size in bytes, SHA-256 in hex."""

    path: ArtifactPath
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class BuildMetadata(Entry):
    """`build_metadata.json`, whole."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="readers refuse another one")
    lane: LaneName = Field(description="which locks and images the artifact belongs to")
    engine: str = Field(description="vllm, trt, or trt-pytorch: what loads the chat model")
    created_at: str = Field(description="RFC 3339, UTC")
    chat: ChatModel | None = Field(default=None, description="none in a tool-only artifact")
    tool: ToolModel | None = Field(default=None, description="none in a chat-only artifact")
    platform: Platform = Field(description="the machine on which it was built and proven")
    stages: tuple[StageRecord, ...] = Field(default=(), description="the stages of the run that made it")
    validation: Validation | None = Field(default=None, description="none before it was validated; not served then")
    files: tuple[FileEntry, ...] = Field(description="every file of the artifact, by path")
    digest: str = Field(description="one hash over the sorted files")

    @model_validator(mode="after")
    def _one_folder(self) -> BuildMetadata:
        if problem := listing_problem(entry.path for entry in self.files):
            raise ValueError(problem)
        return self

    def write(self, folder: Path) -> None:
        """Write the file whole or not at all, with its seal.

        Raises:
            OSError: it cannot be written; what was there is there, and nothing beside it.
        """
        document = self.model_dump(mode="json")
        document["seal"] = seal_of(document)
        target = folder / METADATA_NAME
        partial = target.with_suffix(".json.partial")
        partial.unlink(missing_ok=True)  # whatever lies there: a link would be written through
        try:
            with partial.open("xb") as file:
                file.write(encode(document))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def encode(document: dict[str, object]) -> bytes:
    """The metadata as bytes. There is one way to write it, so that a reader notices duplicate keys and cut-off ends."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def seal_of(document: dict[str, object]) -> str:
    """SHA-256 over the metadata itself in canonical JSON, without the seal.

    The digest covers the files; the seal covers what is said about them, so that a limit or a GPU name that was edited
    by hand is noticed. Neither keeps an attacker out: that is what signing is for.
    """
    body = {key: value for key, value in document.items() if key != "seal"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def same(one: BuildMetadata, other: BuildMetadata) -> bool:
    """Whether two read metadata say the same; a figure that is no number is equal to itself here."""
    return encode(one.model_dump(mode="json")) == encode(other.model_dump(mode="json"))


def engine_label(metadata: BuildMetadata) -> str | None:
    """The label of the compiled engine, the last part of its folder's path; none where nothing was compiled."""
    path = metadata.chat.engine_path if metadata.chat else None
    return path.rstrip("/").rpartition("/")[2] if path else None


def read(folder: Path) -> BuildMetadata:
    """Read and check the metadata alone; no other file is opened.

    Raises:
        ArtifactError: the file is missing, is not JSON, has another schema version, or does not fit the schema.
    """
    path = folder / METADATA_NAME
    try:
        return parse(read_document(path), path)
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: expected an artifact with {METADATA_NAME}, found none; make one with `yap-pipeline run`"
        ) from None
    except OSError as error:
        raise ArtifactError(
            f"{path}: expected a file that can be read, found: {error.strerror}; check the path and who may read it"
        ) from error


def parse(content: bytes, path: Path) -> BuildMetadata:
    """Check what stands in the file of metadata at a path.

    Raises:
        ArtifactError: as `read` does.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected JSON, found {error}; fetch or build the artifact again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: expected schema version {SCHEMA_VERSION}, found {version!r:.50}; use the runtime that matches it"
        )
    if raw.get("seal") != seal_of(raw) or encode(raw) != content:
        raise ArtifactError(f"{path}: its seal does not match its content, so it was edited; build the artifact again")
    try:
        return BuildMetadata.model_validate_json(json.dumps(raw), extra="ignore", strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: field {where}: {first['msg'].removeprefix('Value error, ')}; build the artifact again"
        ) from error
