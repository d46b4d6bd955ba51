"""Folders of TensorRT-LLM: a compiled engine, or a checkpoint to compile. Read as plain JSON.

TensorRT-LLM 1.2 compares the limits of a request with defaults before it reads those of the engine, so they are read
here and passed to it.

    engine       config.json with `version`, `pretrained_config`, `build_config`; rank0.engine, rank1.engine, …
    checkpoint   config.json with `architecture` and `dtype` at its top; rank0.safetensors, rank1.safetensors, …
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.artifact import ArtifactError
from runtime.defaults import TRT_GROUP_SIZES

# TensorRT-LLM's `QuantAlgo`, and the quantizer's format that leads to it.
METHOD_OF_ALGORITHM = {"W4A16_AWQ": "int4_awq", "FP8": "fp8", "W8A8_SQ_PER_CHANNEL": "int8_sq"}

# TensorRT-LLM's own size of a block of the KV cache.
BLOCK_TOKENS = 32

COMPILE_AGAIN = "compile it again with `yap-pipeline run --trt --force`"


@dataclass(frozen=True, slots=True)
class Weights:
    """The model inside an engine or a checkpoint.

    Attributes:
        architecture: its class in TensorRT-LLM.
        dtype: type of what is not quantized.
        method: how it is quantized, by the quantizer's name: int4_awq, fp8, int8_sq, or none for float.
        group_size: weights that share a scale, for int4_awq.
        parallel: GPUs that share it.
    """

    architecture: str
    dtype: str
    method: str
    group_size: int | None
    parallel: int


@dataclass(frozen=True, slots=True)
class EngineFolder:
    """A compiled engine. Lengths in tokens.

    Attributes:
        folder: where it lies.
        version: of the TensorRT-LLM that compiled it.
        weights: the model inside.
        max_batch_size: sequences that run at once.
        max_input_len: the longest prompt.
        max_seq_len: prompt and reply together.
        max_num_tokens: tokens in one step.
        reuses_blocks: whether its attention can start from cached blocks of a prompt.
        block_tokens: tokens in a block of the KV cache.
    """

    folder: Path
    version: str
    weights: Weights
    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    reuses_blocks: bool
    block_tokens: int

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt at most. It is not cut into chunks, so that all of it runs in one step."""
        return min(self.max_input_len, self.max_num_tokens)

    @classmethod
    def read(cls, folder: Path) -> EngineFolder:
        """Read an engine's limits.

        Raises:
            ArtifactError: it is no engine, a limit is missing, or a rank's file is.
        """
        path = folder / "config.json"
        config = read_config(folder, "a compiled engine")
        if not is_engine(config):
            found = "a checkpoint, which is not compiled yet" if is_checkpoint(config) else "something else"
            raise ArtifactError(f"{path}: expected a compiled engine, found {found}; {COMPILE_AGAIN}")
        try:
            build = config["build_config"]
            plugins = build.get("plugin_config") or {}
            engine = cls(
                folder=folder,
                version=str(config["version"]),
                weights=_weights(config["pretrained_config"]),
                max_batch_size=int(build["max_batch_size"]),
                max_input_len=int(build["max_input_len"]),
                max_seq_len=int(build["max_seq_len"]),
                max_num_tokens=int(build["max_num_tokens"]),
                reuses_blocks=bool(plugins.get("use_paged_context_fmha", False)),
                block_tokens=int(plugins.get("tokens_per_block") or BLOCK_TOKENS),
            )
        except KeyError as missing:
            raise ArtifactError(f"{path}: expected {missing.args[0]}, found none; {COMPILE_AGAIN}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{path}: expected an engine's limits, found {error}; {COMPILE_AGAIN}") from error
        _check_ranks(folder, engine.weights.parallel, "engine")
        return engine


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """A checkpoint: what `trtllm-build` takes."""

    folder: Path
    weights: Weights

    @classmethod
    def read(cls, folder: Path) -> CheckpointFolder:
        """Read a checkpoint's facts.

        Raises:
            ArtifactError: it is none, or a rank's file is missing.
        """
        path = folder / "config.json"
        config = read_config(folder, "a TensorRT-LLM checkpoint")
        if not is_checkpoint(config):
            found = "a compiled engine" if is_engine(config) else "a Hugging Face model or something else"
            raise ArtifactError(f"{path}: expected a TensorRT-LLM checkpoint, found {found}; quantize the model first")
        try:
            weights = _weights(config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: expected a checkpoint's facts, found {type(error).__name__} {error}; quantize the model again"
            ) from error
        _check_ranks(folder, weights.parallel, "safetensors")
        return cls(folder, weights)


def read_config(folder: Path, expected: str) -> Mapping[str, Any]:
    """A folder's `config.json`.

    Raises:
        ArtifactError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: expected {expected}, found no config.json; check the path") from None
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: expected JSON, found {error}; make it again") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: expected a JSON object, found {type(config).__name__}; make it again")
    return config


def is_engine(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is a compiled engine's; TensorRT-LLM tells them apart in the same way."""
    return "pretrained_config" in config and "build_config" in config


def is_checkpoint(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is a TensorRT-LLM checkpoint's; TensorRT-LLM tells them apart in the same way."""
    return not is_engine(config) and "architecture" in config and "dtype" in config


def _weights(config: Mapping[str, Any]) -> Weights:
    quantization = config.get("quantization") or {}
    algorithm = quantization.get("quant_algo")
    method = METHOD_OF_ALGORITHM.get(algorithm, str(algorithm).lower()) if algorithm else "none"
    return Weights(
        architecture=str(config["architecture"]),
        dtype=str(config["dtype"]),
        method=method,
        group_size=int(quantization.get("group_size") or TRT_GROUP_SIZES[0]) if method == "int4_awq" else None,
        parallel=parallel_of(config),
    )


def parallel_of(config: Mapping[str, Any]) -> int:
    """GPUs that share the model of a checkpoint, by its `config.json`."""
    mapping = config.get("mapping") or {}
    return int(mapping.get("world_size") or mapping.get("tp_size") or 1)


def _check_ranks(folder: Path, parallel: int, suffix: str) -> None:
    for rank in range(parallel):
        if not (folder / f"rank{rank}.{suffix}").is_file():
            raise ArtifactError(
                f"{folder}: expected rank{rank}.{suffix} ({parallel} in all), found none; make it again"
            )
