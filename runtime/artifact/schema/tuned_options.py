"""Options of the engine that were chosen by measuring, what they are for, and every candidate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from runtime.artifact.schema.entry import Entry

# What vLLM calls an option's values: one word.
OPTION_WORD = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"


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
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="to the first token, one stream, out of silence; null where not measured",
    )
    ttft_long_ms: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="to the first token of a long prompt that is all new; null where not measured",
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


class RefusedOptions(Entry):
    """Tuned options that the build did without, since one of its stages failed with them and not without."""

    stage: str = Field(description="the stage that failed, such as `validate`")
    options: EngineChoices = Field(description="what was tuned")
    reason: str = Field(description="in one line, for a person")


class TunedOptions(Entry):
    """`build --tune`: the engine's options that were measured to be the best, and every candidate's figures."""

    goal: Literal["latency", "throughput"] = Field(description="what was to become better")
    key: TuningKey = Field(description="what they are for; elsewhere the plain options serve")
    choices: EngineChoices = Field(default=EngineChoices(), description="what the runtime sets; nothing where none won")
    noise: float = Field(ge=0, allow_inf_nan=False, description="part by which equal runs differed; a win is more")
    candidates: tuple[TriedOptions, ...] = Field(description="in the order in which they were tried")
    # Not in what was written before there were any.
    refused: RefusedOptions | None = Field(
        default=None, description="what won, and failed in a later stage; nothing is set then. null where none did"
    )
