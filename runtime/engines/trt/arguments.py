"""TensorRT-LLM's arguments: those of `LLM`, `KvCacheConfig` and `SamplingParams`.

TensorRT-LLM 1.2 refuses names that it does not know, and has defaults that surprise: everything that decides a reply or
a limit is passed, none left to it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import structlog

from runtime.artifact import ArtifactError
from runtime.defaults import KV_DTYPE, first_set
from runtime.engines import EngineOptionError, EngineOptions, Sampling
from runtime.engines.trt.folders import EngineFolder
from runtime.engines.trt.tokens import SpecialTokens

Backend = Literal["engine", "pytorch"]

# TensorRT-LLM's own number of tokens in one step; a whole prompt must fit.
STEP_TOKENS = 8192
PYTORCH_KV_TYPES = ("auto", "fp8", "nvfp4")

log = structlog.get_logger(__name__)


def sampling_arguments(sampling: Sampling, special: SpecialTokens) -> dict[str, Any]:
    """TensorRT-LLM's form of `Sampling`, with every field that decides a reply set: unset ones have surprises.

    `top_k` 0 means all tokens, as in the protocol; −1, vLLM's word for it, is refused. The most probable token is asked
    for by `top_k` 1. Without a seed TensorRT-LLM uses the same one for every request, so that one is drawn.
    """
    greedy = sampling.temperature == 0
    # Each once, in order; the end has a field of its own.
    stops = [token for token in dict.fromkeys((*special.stop_ids, *sampling.stop_token_ids)) if token != special.end_id]
    return {
        "end_id": special.end_id,
        "pad_id": special.pad_id,
        "stop_token_ids": None if sampling.ignore_eos else stops or None,
        "ignore_eos": sampling.ignore_eos,
        "max_tokens": sampling.max_tokens,
        "stop": None,  # looked for in speech alone (`text.replies.stops`)
        "temperature": 1.0 if greedy else sampling.temperature,
        "top_k": 1 if greedy else sampling.top_k,
        "top_p": 1.0 if greedy else sampling.top_p,
        "min_p": 0.0 if greedy else sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": random.getrandbits(63) if sampling.seed is None else sampling.seed,
        "n": 1,
        "use_beam_search": False,
        "logprobs": None,
        "prompt_logprobs": None,
        "detokenize": True,
        "skip_special_tokens": not sampling.show_special_tokens,
        "add_special_tokens": False,
        "exclude_input_from_output": True,
    }


def llm_arguments(model: Path, options: EngineOptions, *, tokenizer: Path, backend: Backend) -> dict[str, Any]:
    """TensorRT-LLM's `LLM` arguments, without the KV cache's.

    Raises:
        ArtifactError: the folder is no engine, or was compiled for less than the options ask for.
        EngineOptionError: `kv_cache_dtype` that this backend does not know.
    """
    arguments: dict[str, Any] = {
        "model": str(model),
        "tokenizer": str(tokenizer),
        "trust_remote_code": False,
        "tensor_parallel_size": first_set(options.tensor_parallel_size, default=1),
        "max_beam_width": 1,
    }
    if backend == "pytorch":
        if options.kv_cache_dtype not in PYTORCH_KV_TYPES:
            known, found = ", ".join(PYTORCH_KV_TYPES), options.kv_cache_dtype
            raise EngineOptionError(f"KV_DTYPE: expected one of {known}, found {found!r}")
        length = options.max_model_len
        step = first_set(options.max_num_batched_tokens, default=STEP_TOKENS)
        limits = {
            "max_batch_size": options.max_num_seqs,
            "max_seq_len": length,
            "max_input_len": None if length is None else length - 1,
            "max_num_tokens": max(step, first_set(length, default=0)),
        }
        arguments["dtype"] = options.dtype
        if options.enforce_eager:
            arguments["cuda_graph_config"] = None
        return arguments | {name: value for name, value in limits.items() if value is not None}
    if options.kv_cache_dtype != KV_DTYPE:
        raise EngineOptionError(
            f"KV_DTYPE: expected {KV_DTYPE} (a compiled engine's cache has the type it was built with), "
            f"found {options.kv_cache_dtype!r}; unset it"
        )
    engine = EngineFolder.read(model)
    batch = first_set(options.max_num_seqs, default=engine.max_batch_size)
    if batch > engine.max_batch_size:
        raise ArtifactError(
            f"expected a batch size of at most {engine.max_batch_size} (compiled into the engine), found {batch}; "
            "lower TRT_BATCH_SIZE or compile an engine with a larger TRT_MAX_BATCH_SIZE"
        )
    if arguments["tensor_parallel_size"] != engine.weights.parallel:
        raise ArtifactError(
            f"expected TENSOR_PARALLEL_SIZE {engine.weights.parallel} (compiled into the engine), "
            f"found {arguments['tensor_parallel_size']}; unset it"
        )
    log.info("trt_limits", batch_size=batch, baked_batch_size=engine.max_batch_size, max_seq_len=engine.max_seq_len)
    # Passed explicitly: TensorRT-LLM 1.2 compares its defaults with each other before it reads the engine's limits.
    return arguments | {
        "max_batch_size": batch,
        "max_input_len": engine.max_input_len,
        "max_seq_len": engine.max_seq_len,
        "max_num_tokens": min(
            first_set(options.max_num_batched_tokens, default=engine.max_num_tokens), engine.max_num_tokens
        ),
    }


def kv_cache_arguments(options: EngineOptions, engine: EngineFolder | None) -> dict[str, Any]:
    """TensorRT-LLM's `KvCacheConfig` arguments; `engine` is none for its PyTorch backend.

    Its fraction is of the memory that is free once the weights are loaded, so that the whole stays below the same
    fraction of the GPU.
    """
    arguments: Mapping[str, Any] = {
        "free_gpu_memory_fraction": first_set(options.kv_free_fraction, default=options.gpu_fraction),
        "enable_block_reuse": options.kv_block_reuse,
    }
    if engine is None:
        return {**arguments, "dtype": options.kv_cache_dtype}
    # A compiled engine insists on its own type, and cannot start from cached blocks unless it was built to.
    if options.kv_block_reuse and not engine.reuses_blocks:
        log.warning("trt_no_block_reuse", reason="the engine was built without use_paged_context_fmha")
    return {**arguments, "enable_block_reuse": options.kv_block_reuse and engine.reuses_blocks}


def check_version(engine: EngineFolder, installed: str | None) -> None:
    """Refuse an engine that another version compiled.

    Raises:
        ArtifactError: expected, found, and what to do.
    """
    if installed != engine.version:
        raise ArtifactError(
            f"expected tensorrt-llm {engine.version} (it compiled the engine), found {installed or 'none'}; "
            "use the matching image, or compile an engine with `yap-pipeline run --trt`"
        )
