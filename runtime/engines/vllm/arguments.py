"""vLLM's arguments: environment, engine arguments, sampling parameters."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.defaults import first_set
from runtime.engines import EngineOptionError, EngineOptions, Sampling
from runtime.engines.vllm import contract
from runtime.host.machine import host_memory_bytes, installed_packages

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs

# What is added to vLLM's workers, by its name: they import it themselves.
WORKER = "runtime.engines.vllm.worker.Worker"

# Which cores each rank has, on a CPU.
BIND = "VLLM_CPU_OMP_THREADS_BIND"
NO_DYNAMO = "TORCHDYNAMO_DISABLE"

# A package that reads weights on many cores at once: 36 GB a second out of the file cache, where one core makes 6.5.
FAST_LOADER = "instanttensor"

# Of the host's memory, what KV cache may take: it is pinned, and the engine's processes need some themselves.
OFFLOAD_PART = 0.8

# Tells the engine's process that some graphs will do for readiness. vLLM's own variables count into the key of its
# compile cache.
FEW_GRAPHS, ANY_GRAPHS, FULL_GRAPHS = "YAP_FEW_GRAPHS", "any", "full"

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # It compiles with nvcc when it is first needed, and there is none in a runtime image. vLLM's other one,
    # in Triton, takes as long.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # So does DeepGEMM, which vLLM would take on Hopper and later for FP8 that is scaled in blocks; CUTLASS and Triton
    # have products for it, too.
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    # By the system's file cache, out of which the same files are hashed at that moment, and which a next start finds.
    "INSTANTTENSOR_BACKEND": "BUFFERED",
    # Bars among the lines of the log are for nobody.
    "TQDM_DISABLE": "1",
}


def parameters(sampling: Sampling) -> SamplingParams:
    """vLLM's form of `Sampling`, for any number of requests to one engine."""
    return contract.delta_parameters(
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
        stop_token_ids=None if sampling.ignore_eos else list(sampling.stop_token_ids),
        skip_special_tokens=not sampling.show_special_tokens,
    )


def preload(options: EngineOptions) -> None:
    """Import what the engine's `start` will import, so that it finds it there."""
    prepare_environment(options)
    with contextlib.suppress(ImportError):
        contract.preload()


def prepare_environment(options: EngineOptions) -> None:
    """Set what vLLM reads from the environment, where the user has not set it. Call before vLLM is imported.

    On a CPU, the workers are bound to all cores that this process may use: vLLM's own choice takes one thread of each
    physical core. Nowhere else: vLLM counts the variable into the key of its compile cache, which then would be found
    on machines with the same cores alone.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.pop(FEW_GRAPHS, None)
    if options.graphs_after_readiness is not False:
        os.environ[FEW_GRAPHS] = ANY_GRAPHS if options.graphs_after_readiness else FULL_GRAPHS
    if built_for_cpu():
        # vLLM's sampler would be compiled at the first token: 4 s of a start, and a compiler is needed.
        _compile(options.enforce_eager is False)
        _bind(binding(sorted(os.sched_getaffinity(0)), _ranks(options)))


_disabled: list[str] = []  # what `_compile` has set


def _compile(graphs: bool) -> None:
    """Have nothing compiled without graphs, unless the user has set it; with them, as if no engine had been without."""
    if graphs and os.environ.get(NO_DYNAMO) in _disabled:
        del os.environ[NO_DYNAMO]
    elif not graphs and NO_DYNAMO not in os.environ:
        os.environ[NO_DYNAMO] = "1"
        _disabled[:] = ["1"]


_bound: list[str] = []  # what `_bind` has set, the newest last: another engine of this process may have other ranks


def _bind(cores: str) -> None:
    """Bind the ranks to cores, unless the user has."""
    if os.environ.get(BIND) in (None, *_bound):
        os.environ[BIND] = cores
        _bound[:] = [cores]


def built_for_cpu() -> bool:
    """Whether the vLLM that is installed was built for a CPU; told by its package, because it is not imported yet."""
    packages = installed_packages()
    return "vllm-cpu" in packages or "cpu" in packages.get("vllm", "")


def binding(cores: Sequence[int], ranks: int) -> str:
    """Cores for each rank, as vLLM reads them: as many each, and the same ones again where there are too few.

    >>> binding([2, 3, 6, 7], 2), binding([0, 1], 3), binding([0, 1, 2], 2)
    ('2,3|6,7', '0|1|0', '0|1')
    """
    share = max(1, len(cores) // ranks)
    starts = [rank * share % len(cores) for rank in range(ranks)]
    return "|".join(",".join(str(core) for core in cores[start : start + share]) for start in starts)


def _ranks(options: EngineOptions) -> int:
    tensor, stages = options.tensor_parallel_size, options.pipeline_parallel_size
    return first_set(tensor, default=1) * first_set(stages, default=1)


def engine_arguments(folder: Path, options: EngineOptions) -> AsyncEngineArgs:
    """vLLM's engine arguments for a model folder.

    Raises:
        EngineOptionError: an option that this vLLM does not know, or more host memory than the machine has.
    """
    known = contract.cache_types()
    if known is not None and options.kv_cache_dtype not in known:
        raise EngineOptionError(f"KV_DTYPE: expected one of {', '.join(known)}, found {options.kv_cache_dtype!r}")
    on_cpu = contract.on_cpu()
    arguments: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": "chat",
        "gpu_memory_utilization": options.gpu_fraction,
        "tensor_parallel_size": first_set(options.tensor_parallel_size, default=1),
        "pipeline_parallel_size": first_set(options.pipeline_parallel_size, default=1),
        # Processes of this host: the checked files are handed over by what this process holds open. vLLM would take
        # Ray's where it finds itself in Ray's hands, or too few GPUs.
        "distributed_executor_backend": "mp" if _ranks(options) > 1 else None,
        "kv_cache_dtype": options.kv_cache_dtype,
        "enforce_eager": on_cpu if options.enforce_eager is None else options.enforce_eager,
        "enable_prefix_caching": True,
        "use_tqdm_on_load": False if contract.seams.holds("no bars") else None,
        "disable_log_stats": not options.own_metrics,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_model_len": options.max_model_len,
        "attention_backend": _attention_backend(options.attention_backend),
        "load_format": _load_format(options, on_cpu=on_cpu),
        **_tuned(options),
        **_offloading(options.kv_offload_gib, on_cpu=on_cpu),
    }
    if on_cpu:
        arguments["kv_cache_memory_bytes"] = int(options.cpu_kv_cache_gib * 2**30)
    chosen = {name: value for name, value in arguments.items() if value is not None}
    return contract.engine_arguments(chosen, WORKER)


def _load_format(options: EngineOptions, *, on_cpu: bool) -> str | None:
    """vLLM's name for what reads the weights; none leaves it to vLLM, which reads them on one core.

    Not by itself where ranks share a model: there they would read for one another.
    """
    if on_cpu:
        if options.weights_loader == FAST_LOADER:
            raise EngineOptionError(f"WEIGHTS_LOADER: expected auto or safetensors on a CPU, found {FAST_LOADER}")
        return None
    known = contract.seams.holds("weights on many cores") and importlib.util.find_spec(FAST_LOADER) is not None
    if options.weights_loader == FAST_LOADER and not known:
        raise EngineOptionError(f"WEIGHTS_LOADER: expected safetensors or auto, for {FAST_LOADER} is not here")
    fast = options.weights_loader == FAST_LOADER or (options.weights_loader == "auto" and _ranks(options) == 1)
    return FAST_LOADER if known and fast else None


def _attention_backend(name: str | None) -> Any:  # noqa: ANN401 - an enum that only vLLM can name
    if name is None or (known := contract.attention_backends()) is None:
        return name
    if name.upper() not in known:
        raise EngineOptionError(f"VLLM_ATTENTION_BACKEND: expected one of {', '.join(known)}, found {name!r}")
    return known[name.upper()]


def _tuned(options: EngineOptions) -> dict[str, object]:
    """Arguments for the options that only tuning sets, each held against what this vLLM knows."""
    mode, sizes, passes, linear = (
        options.cudagraph_mode,
        options.capture_sizes,
        options.fusions,
        options.linear_backend,
    )
    if not (mode or sizes or passes or linear):
        return {}
    if not contract.seams.holds("tuned options"):
        raise EngineOptionError(f"{contract.seams.release} does not take the options that were tuned; build again")
    for name, found, known in (
        ("cudagraph_mode", mode, contract.graph_modes()),
        ("linear_backend", linear, contract.linear_backends()),
        *(("fusions", one, sorted(contract.fusions())) for one in passes),
    ):
        if found is not None and found not in known:
            raise EngineOptionError(f"{name}: expected one of {', '.join(known)}, found {found!r}")
    compilation = contract.compilation(mode, sizes, passes)
    return {"compilation_config": compilation or None, "linear_backend": linear}


def _offloading(gib: float, *, on_cpu: bool) -> dict[str, object]:
    """Arguments for KV cache in host memory.

    vLLM takes the size of all tensor-parallel ranks together, and pins it: it is gone for everything else.
    """
    if gib == 0:
        return {}
    if on_cpu:
        raise EngineOptionError(f"KV_OFFLOAD_GIB: expected 0 on a CPU, whose KV cache is host memory, found {gib:g}")
    if not contract.seams.holds("host memory"):
        raise EngineOptionError(f"KV_OFFLOAD_GIB: expected 0 with {contract.seams.release}, found {gib:g}")
    most = offload_limit(host_memory_bytes())
    if gib > most:
        raise EngineOptionError(
            f"KV_OFFLOAD_GIB: expected at most {most:.1f} ({OFFLOAD_PART:.0%} of this machine's memory), found {gib:g}"
        )
    return {"kv_offloading_size": gib, "kv_offloading_backend": "native"}


def offload_limit(memory_bytes: int) -> float:
    """The most host memory, in GiB, that KV cache may take.

    >>> offload_limit(100 * 2**30)
    80.0
    """
    return OFFLOAD_PART * memory_bytes / 2**30
