"""The pipeline's environment variables, checked all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.lanes import CPU, VLLM
from pipeline.lanes.table import TRT
from pipeline.problem import Problem
from runtime import defaults
from runtime.artifact import LaneName
from runtime.host import variables

LARGE, SMALL = defaults.TRT_GROUP_SIZES
MOST_TUNE_MINUTES = 600.0


def _without_spaces(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


Word = Annotated[str, BeforeValidator(_without_spaces)]


class PipelineSettings(BaseModel):
    """Every variable that the pipeline reads; a field's name in capitals is the variable."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    inference_engine: LaneName = Field(TRT.name, description="the lane, unless `--trt`, `--vllm` or `--cpu` is given")
    quantization: Word = Field(
        defaults.QUANTIZATION, description="`4bit`, `8bit` or a method, unless one is given as an argument"
    )
    awq_calib_dataset: Word | None = Field(
        None,
        description=f"calibration text: `{defaults.CALIBRATION_DATASET}`, `embedded`, a hub data set, or a `.txt` or "
        f"`.jsonl` file; none means `{defaults.CALIBRATION_DATASET}`, or `embedded` for the embedded model",
    )
    awq_nsamples: int = Field(
        defaults.CALIBRATION_SAMPLES,
        ge=1,
        le=65536,
        json_schema_extra={"unit": "samples"},
        description="calibration samples",
    )
    awq_seqlen: int = Field(
        2048, ge=8, json_schema_extra={"unit": "tokens"}, description="length of a calibration sample, at most"
    )
    awq_cache_dir: Path | None = Field(
        None, description="folder of finished stages; none means `$XDG_CACHE_HOME/yap-pipeline` or `~/.cache/…`"
    )
    force_rebuild: bool = Field(False, description="do every stage again, as `--force` does")
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "sequences"},
        description=f"sequences that run at once, baked in; none means {VLLM.batch} on a GPU and {CPU.batch} on a CPU",
    )
    chat_max_len: int = Field(
        defaults.INPUT_TOKENS,
        ge=16,
        json_schema_extra={"unit": "tokens"},
        description="length of the prompt, at most; baked in",
    )
    chat_max_out: int = Field(
        defaults.OUTPUT_TOKENS,
        ge=1,
        json_schema_extra={"unit": "tokens"},
        description="length of a reply, at most; baked in",
    )
    thinking_max_tokens: int = Field(
        defaults.THINKING_TOKENS,
        ge=0,
        json_schema_extra={"unit": "tokens"},
        description="length of the thought before a reply, beside `CHAT_MAX_OUT`, for a model that always "
        "thinks; baked in; 0: such a model is refused",
    )
    tool_utterances: Path | None = Field(
        None,
        description="JSONL file of labelled utterances (`text`, `label` or `labels`) to measure the classifier's tools "
        "on, unless `--tool-utterances` is given; none means the embedded ones, which know the screenshot alone",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share every layer of one model; baked in")
    pipeline_parallel_size: int = Field(
        1,
        ge=1,
        description="vLLM: stages of one model's layers, each on `TENSOR_PARALLEL_SIZE` GPUs of one host; baked in",
    )
    tune: Literal["latency", "throughput", "off"] | None = Field(
        None,
        description="vLLM on a GPU: what the engine's options are tuned for, unless `--tune` is given; `off`: vLLM's "
        "own choices; none means `latency` on a GPU",
    )
    tune_minutes: float = Field(
        defaults.TUNE_MINUTES,
        gt=0,
        le=MOST_TUNE_MINUTES,
        description="time that tuning may take, unless `--tune-minutes` is given; what is measured until then decides",
        json_schema_extra={"unit": "minutes"},
    )
    kv_dtype: Literal["auto", "fp8"] = Field(
        "auto", description="`fp8`: tuning tries a KV cache in FP8 too, and bakes it where it wins and says the same"
    )
    hf_push_repo_id: Word | None = Field(
        None, description="repository that `--push-quant` and `push` publish to, such as `acme/llama-8b-awq`"
    )
    # Text, and checked where something is published: nothing else may fail over it.
    hf_push_private: Word = Field(
        "1", description="1: a new repository is private, and a public one is refused; 0: not"
    )
    artifact_trust: Literal["signed", "unsigned"] = Field(
        "signed",
        description="`unsigned`: `validate` runs an artifact's compile cache too; otherwise the engine compiles anew. "
        "`run` trusts what it built",
    )
    quantize_python: Path | None = Field(
        None,
        description="interpreter of the quantizer environment; none means `.venv-quantize/bin/python`, or this "
        "interpreter where the quantizer is installed beside the engine",
    )

    # The TensorRT-LLM lane
    trt_backend: Literal["engine", "pytorch"] = Field(
        "engine",
        description="`engine` compiles; `pytorch` serves the quantized Hugging Face folder, for models that cannot be "
        "compiled",
    )
    trt_max_batch_size: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "sequences"},
        description="sequences that run at once, baked in; required to compile an engine",
    )
    trt_max_input_len: int | None = Field(
        None,
        ge=16,
        json_schema_extra={"unit": "tokens"},
        description="length of the prompt, at most; baked in; none means `CHAT_MAX_LEN`",
    )
    trt_max_output_len: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "tokens"},
        description="length of a reply, at most; baked in; none means `CHAT_MAX_OUT`",
    )
    trt_dtype: Literal["float16", "bfloat16"] = Field("float16", description="type of what is not quantized")
    trt_awq_block_size: int | None = Field(
        None,
        ge=1,
        json_schema_extra={"unit": "weights"},
        description=f"weights that share a scale; none means {LARGE}, or {SMALL} where {LARGE} does not divide the "
        "model's widths",
    )
    trt_calib_size: int = Field(
        defaults.CALIBRATION_SAMPLES,
        ge=1,
        le=65536,
        json_schema_extra={"unit": "samples"},
        description="calibration samples",
    )
    trt_calib_seqlen: int | None = Field(
        None,
        ge=8,
        json_schema_extra={"unit": "tokens"},
        description="length of a calibration sample, at most; none means input + output",
    )
    trt_checkpoint_dir: Path | None = Field(
        None, description="a TensorRT-LLM checkpoint to compile; nothing is quantized"
    )
    trtllm_engine_dir: Path | None = Field(
        None, description="an engine that was compiled already; nothing is quantized nor compiled"
    )
    trtllm_repo_dir: Path | None = Field(
        None, description="obsolete and not read: the installed package quantizes, no checkout of its examples"
    )


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, with the problems found while reading them.

    Attributes:
        settings: defaults stand in place of what was wrong.
        problems: every one that was found.
    """

    settings: PipelineSettings
    problems: tuple[Problem, ...]


def load(environment: Mapping[str, str]) -> LoadedSettings:
    """Read the settings from an environment; empty variables count as unset."""
    given = {
        name: value
        for name in PipelineSettings.model_fields
        if (value := environment.get(name.upper(), "")).strip() != ""
    }
    try:
        return LoadedSettings(PipelineSettings.model_validate(given), ())
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            name = str(detail["loc"][0])
            field = PipelineSettings.model_fields[name]
            expected, found = variables.expected(detail, field), variables.found(given.pop(name, ""), field)
            problems.append(Problem(name.upper(), expected, found))
        return LoadedSettings(PipelineSettings.model_validate(given), tuple(problems))
