"""vLLM's arguments: environment, engine arguments, sampling parameters.

vLLM is imported inside the functions, after the environment was prepared: it reads some of that when it is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from runtime.defaults import first_set
from runtime.engines import EngineOptionError, EngineOptions, Sampling

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # It compiles with nvcc when it is first needed, and there is none in a runtime image. vLLM's other one,
    # in Triton, takes as long.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}


def parameters(sampling: Sampling) -> SamplingParams:
    """vLLM's form of `Sampling`, for any number of requests to one engine.

    vLLM copies it for each request and adds the stop tokens of the model's generation_config.json. A shallow copy will
    do (`skip_clone`): what vLLM changes inside is the same for every request to one model.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,  # 0 means all tokens to vLLM too
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
        ignore_eos=sampling.ignore_eos,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
    )


def preload(options: EngineOptions) -> None:
    """Import what the engine's `start` will import, so that it finds it there."""
    prepare_environment(options)
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm.v1.engine.async_llm")
        importlib.import_module("vllm.v1.executor")


def prepare_environment(options: EngineOptions) -> None:
    """Set what vLLM reads from the environment, where the user has not set it. Call before vLLM is imported.

    On a CPU, the workers are bound to all cores that this process may use: vLLM's own choice takes one thread of each
    physical core.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    cores = sorted(os.sched_getaffinity(0))
    workers = min(first_set(options.tensor_parallel_size, default=1), len(cores))
    share = len(cores) // workers
    groups = [cores[index * share : (index + 1) * share] for index in range(workers)]
    binding = "|".join(",".join(str(core) for core in group) for group in groups)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", binding)


def engine_arguments(folder: Path, options: EngineOptions) -> AsyncEngineArgs:
    """vLLM's engine arguments for a model folder.

    Raises:
        EngineOptionError: `kv_cache_dtype` or `attention_backend` that this vLLM does not know.
    """
    from vllm.config.cache import CacheDType
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    if options.kv_cache_dtype not in (known := get_args(CacheDType)):
        raise EngineOptionError(f"KV_DTYPE: expected one of {', '.join(known)}, found {options.kv_cache_dtype!r}")
    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": "chat",
        "gpu_memory_utilization": options.gpu_fraction,
        "tensor_parallel_size": first_set(options.tensor_parallel_size, default=1),
        "kv_cache_dtype": options.kv_cache_dtype,
        "enforce_eager": on_cpu if options.enforce_eager is None else options.enforce_eager,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_model_len": options.max_model_len,
        "attention_backend": _attention_backend(options.attention_backend),
        "worker_extension_cls": "runtime.engines.vllm.worker.Worker",
    }
    if on_cpu:
        arguments["kv_cache_memory_bytes"] = int(options.cpu_kv_cache_gib * 2**30)
    return AsyncEngineArgs(**{name: value for name, value in arguments.items() if value is not None})


def _attention_backend(name: str | None) -> Any:  # noqa: ANN401 - an enum that only vLLM can name
    if name is None:
        return None
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    if name.upper() not in AttentionBackendEnum.__members__:
        known = ", ".join(AttentionBackendEnum.__members__)
        raise EngineOptionError(f"VLLM_ATTENTION_BACKEND: expected one of {known}, found {name!r}")
    return AttentionBackendEnum[name.upper()]
