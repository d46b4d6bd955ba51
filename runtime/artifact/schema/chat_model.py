"""The chat model: how it is stored, and what may be asked of it."""

from __future__ import annotations

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from runtime import defaults
from runtime.artifact.files.paths import ArtifactPath
from runtime.artifact.schema.entry import Entry, Source
from runtime.artifact.schema.tuned_options import EngineChoices, TunedOptions


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
