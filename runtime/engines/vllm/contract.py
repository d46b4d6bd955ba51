"""The contract with vLLM: every name of it that is used, what for, and what is lost where one is missing.

vLLM promises little of what a server needs for speed. So each use is a seam: named in `SEAMS` with what it needs,
looked at before an engine starts (`seams.check`), and used through the functions below, so that the names stand in this
file alone. A required seam that is broken is a refusal; any other is a warning, and vLLM's own way is gone instead.

`tests/data/vllm_api.json` has all needs as several releases meet them. vLLM is imported inside the functions: it reads
the environment when it is imported, and that is prepared first.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from itertools import count
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from runtime.engines import EngineOptionError
from runtime.engines.vllm import threads
from runtime.engines.vllm.seams import Seam, Seams

if TYPE_CHECKING:
    from tokenizers.decoders import DecodeStream
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.executor import Executor

log = logging.getLogger(__name__)

# The releases whose signatures were recorded; every one between them may be expected to do.
RECORDED = ("0.25.1", "0.30.0", "0.31.0")

# The file in which vLLM lists the graphs that it compiled, and the entry's field that names a graph's file.
GRAPH_LIST = "vllm_compile_cache.py"
GRAPH_FIELD = "graph_handle"

# Variables of vLLM's that say where something lies, which nothing compiled depends on.
PLACES_IN_KEY = frozenset({"VLLM_CONFIG_ROOT", "VLLM_XLA_CACHE_PATH"})

# What vLLM's two model runners for GPUs call the event after which a step's tokens have arrived.
EVENTS = ("copy_event", "async_copy_ready_event")

# How vLLM starts its processes. Its platform for CPUs says "spawn" whatever was said.
METHOD, FORK = "VLLM_WORKER_MULTIPROC_METHOD", "fork"

# Libraries that this process was started with; vLLM adds its own to the variable, for processes that it spawns.
PRELOADED = os.environ.get("LD_PRELOAD", "")

# A request that nobody has: ending it makes vLLM's processes look up, and says nothing.
UNKNOWN_REQUEST = "unknown"

# vLLM's handler of outputs is told to end, and has nothing more to do.
HANDLER_ENDS_S = 5.0

LLM = "vllm.v1.engine.async_llm:AsyncLLM"
CLIENT = "vllm.v1.engine.core_client:AsyncMPClient"
OUTPUTS = "vllm.v1.engine.output_processor:OutputProcessor"
COLLECTOR = "vllm.v1.engine.output_processor:RequestOutputCollector"
TEXT = "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer"
CORE = "vllm.v1.engine.core:EngineCore"
SCHEDULER = "vllm.v1.core.sched.interface:SchedulerInterface"
MODEL = "vllm.config.model:ModelConfig"
RENDERERS, POOL = "vllm.renderers.hf", "maybe_make_thread_pool"
LOADER = "vllm.model_executor.model_loader.default_loader"
MANY_CORES, ONE_CORE = "instanttensor_weights_iterator", "safetensors_weights_iterator"
CUDA, PLATFORM = "vllm.platforms.cuda", "CudaPlatformBase"
VALID, PRIORITIES = "get_valid_backends", "_get_backend_priorities"
INT8_ON_CPU = "vllm.model_executor.kernels.linear.scaled_mm.cpu:CPUInt8ScaledMMLinearKernel"


SEAMS = (
    Seam(
        "engine",
        "server",
        (
            f"{LLM}(_, _, log_stats=_, log_requests=_)",
            f"{LLM}.generate(_, _, _)",
            f"{LLM}.abort(_)",
            f"{LLM}.reset_prefix_cache()",
            f"{LLM}.shutdown()",
            f"{LLM}.errored",
            "vllm.engine.arg_utils:AsyncEngineArgs(model=_, served_model_name=_, gpu_memory_utilization=_, "
            "tensor_parallel_size=_, pipeline_parallel_size=_, distributed_executor_backend=_, kv_cache_dtype=_, "
            "enforce_eager=_, enable_prefix_caching=_, disable_log_stats=_, max_num_seqs=_, max_num_batched_tokens=_, "
            "max_model_len=_, attention_backend=_, kv_cache_memory_bytes=_)",
            "vllm.engine.arg_utils:AsyncEngineArgs.create_engine_config(_)",
            "vllm.usage.usage_lib:UsageContext.ENGINE_CONTEXT",
            "vllm.v1.executor.abstract:Executor.get_class(_)",
            "vllm.platforms.interface:Platform.is_cpu()",
            "vllm.v1.engine.exceptions:EngineDeadError",
        ),
        "no engine can be started",
        required=True,
    ),
    Seam(
        "requests",
        "server",
        (
            "vllm.sampling_params:SamplingParams(temperature=_, top_p=_, top_k=_, min_p=_, repetition_penalty=_, "
            "presence_penalty=_, frequency_penalty=_, max_tokens=_, seed=_, ignore_eos=_, output_kind=_, "
            "prompt_logprobs=_, detokenize=_)",
            "vllm.sampling_params:RequestOutputKind.DELTA",
            "vllm.sampling_params:RequestOutputKind.FINAL_ONLY",
            "vllm.inputs.engine:TokensInput.type",
            "vllm.inputs.engine:TokensInput.prompt_token_ids",
            "vllm.inputs.engine:TokensInput.cache_salt",
            "vllm.outputs:RequestOutput.outputs",
            "vllm.outputs:RequestOutput.finished",
            "vllm.outputs:RequestOutput.num_cached_tokens",
            "vllm.outputs:RequestOutput.prompt_logprobs",
            "vllm.outputs:CompletionOutput.text",
            "vllm.outputs:CompletionOutput.token_ids",
            "vllm.outputs:CompletionOutput.finish_reason",
            "vllm.logprobs:Logprob.logprob",
            "vllm.logprobs:Logprob.rank",
        ),
        "no reply can be asked for or read",
        required=True,
    ),
    Seam(
        "block size",
        "server",
        (
            f"{LLM}.vllm_config",
            "vllm.config.vllm:VllmConfig.cache_config",
            "vllm.config.cache:CacheConfig.block_size",
        ),
        "`warmed` counts a prefix's last tokens too, which no prompt finds in the cache",
    ),
    Seam(
        "refusals",
        "server",
        ("vllm.exceptions:VLLMValidationError",),
        "a request that vLLM refuses may look like a failure of the server",
    ),
    Seam(
        "known options",
        "server",
        ("vllm.config.cache:CacheDType", "vllm.v1.attention.backends.registry:AttentionBackendEnum"),
        "a wrong KV_DTYPE or VLLM_ATTENTION_BACKEND is told by vLLM itself, in many lines",
    ),
    Seam(
        "tuned options",
        "server",
        (
            "vllm.engine.arg_utils:AsyncEngineArgs(compilation_config=_, linear_backend=_)",
            "vllm.config.compilation:CUDAGraphMode.FULL",
            "vllm.config.compilation:CUDAGraphMode.FULL_DECODE_ONLY",
            "vllm.config.compilation:CUDAGraphMode.FULL_AND_PIECEWISE",
            "vllm.config.compilation:CUDAGraphMode.PIECEWISE",
            "vllm.config.compilation:CompilationConfig.cudagraph_mode",
            "vllm.config.compilation:CompilationConfig.cudagraph_capture_sizes",
            "vllm.config.compilation:CompilationConfig.pass_config",
            "vllm.config.compilation:PassConfig.fuse_norm_quant",
            "vllm.config.compilation:PassConfig.fuse_act_quant",
            "vllm.config.compilation:PassConfig.fuse_attn_quant",
            "vllm.config.compilation:PassConfig.enable_qk_norm_rope_fusion",
            "vllm.config.kernel:LinearBackend",
        ),
        "options that `build --tune` measured are left at vLLM's own",
    ),
    Seam(
        "no bars",
        "server",
        ("vllm.engine.arg_utils:AsyncEngineArgs(use_tqdm_on_load=_)",),
        "a bar of what is loaded stands among the lines of the log",
    ),
    Seam(
        "host memory",
        "server",
        ("vllm.engine.arg_utils:AsyncEngineArgs(kv_offloading_size=_, kv_offloading_backend=_)",),
        "KV_OFFLOAD_GIB is refused: KV cache that the GPU drops is gone",
    ),
    Seam(
        "environment",
        "server",
        tuple(
            f"vllm.envs:environment_variables[{name}]"
            for name in (
                "VLLM_USE_FLASHINFER_SAMPLER",
                "VLLM_NO_USAGE_STATS",
                "VLLM_LOGGING_LEVEL",
                "VLLM_LOGGING_STREAM",
                "VLLM_CPU_OMP_THREADS_BIND",
                "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
                "VLLM_CACHE_ROOT",
                METHOD,
            )
        ),
        "a variable that this runtime sets changes nothing: perhaps a compiler is needed, or a CPU's cores stay idle",
        upstream="vllm-project/vllm#49497 (FlashInfer's sampler), #43240 (binding to cores)",
    ),
    Seam(
        "shared parameters",
        "server",
        ("vllm.sampling_params:SamplingParams(skip_clone=_)",),
        "vLLM copies the sampling parameters deeply for every request",
        upstream="vllm-project/vllm#31041 (merged: the argument itself)",
    ),
    Seam(
        "one tokenizer",
        "server",
        (f"{RENDERERS}:{POOL}(_, _)",),
        "a start copies the tokenizer twice, 0.1 s for each 50,000 tokens of its vocabulary",
    ),
    Seam(
        "quiet end",
        "server",
        (f"{LLM}.__del__()",),
        "nothing: vLLM has no finalizer that could fail at the interpreter's end",
        upstream="vllm-project/vllm#25048 (closed; for executors)",
    ),
    Seam(
        "direct tokens",
        "server",
        (
            f"{LLM}.add_request(_, _, _)",
            f"{COLLECTOR}.put(_)",
            f"{COLLECTOR}.get_nowait()",
            f"{OUTPUTS}.process_outputs(_) 'put'",
        ),
        "a task is woken for every token, and a request that is cancelled while it is added stays in memory",
        upstream="vllm-project/vllm#57061, #57062 (the cancelled request); none known for the wake-ups",
    ),
    Seam(
        "prompt text",
        "server",
        (
            f"{LLM}.output_processor",
            f"{OUTPUTS}.request_states",
            f"{COLLECTOR}.request_id",
            "vllm.v1.engine.output_processor:RequestState.detokenizer",
            f"{TEXT}.skip_special_tokens",
            f"{TEXT}.tokenizer",
            f"{TEXT}.stream",
        ),
        "the whole prompt is made text on the event loop before a reply's first token",
        upstream="vllm-project/vllm#51281, #57330; with a caution in #48853",
    ),
    Seam(
        "waking",
        "server",
        (
            f"{LLM}.engine_core",
            f"{LLM}.output_processor",
            f"{OUTPUTS}.has_unfinished_requests()",
            f"{CLIENT}.abort_requests_async(_)",
        ),
        "a reply out of silence begins up to half a millisecond later",
        upstream="vllm-project/vllm#43702",
    ),
    Seam(
        "end of requests",
        "server",
        (f"{LLM}.output_processor", f"{LLM}.output_handler", f"{OUTPUTS}.propagate_error(_)"),
        "requests that run when the engine is shut down end only when they are cancelled",
        upstream="vllm-project/vllm#48745, #49000",
    ),
    Seam(
        "load",
        "engine",
        (
            f"{LLM}.engine_core",
            f"{CLIENT}.call_utility_async(_)",
            "vllm.v1.engine.core:EngineCoreProc._handle_client_request(_, _)",
            f"{CORE}.scheduler",
            f"{SCHEDULER}.get_request_counts()",
            "vllm.v1.core.kv_cache_manager:KVCacheManager.usage",
            "vllm.v1.executor.uniproc_executor:UniProcExecutor",
            "vllm.v1.executor.multiproc_executor:MultiprocExecutor",
        ),
        "waiting requests and the use of the KV cache are not known; running ones are counted here",
        upstream="vllm-project/vllm#49538, #55274 (the figures), #42312 (closed; an EngineCore of one's own)",
        met=("vllm.v1.core.sched.scheduler:Scheduler.kv_cache_manager",),
    ),
    Seam(
        "first token",
        "engine",
        (
            f"{CORE}.step_with_batch_queue()",
            f"{CORE}.batch_queue",
            f"{CORE}.scheduler",
            f"{SCHEDULER}.has_requests()",
            "vllm.v1.core.sched.output:SchedulerOutput.scheduled_new_reqs",
            "vllm.v1.executor.uniproc_executor:AsyncOutputFuture.async_output",
            "vllm.v1.executor.uniproc_executor:UniProcExecutor",
            "vllm.v1.executor.multiproc_executor:MultiprocExecutor",
        ),
        "the first token of a reply out of silence waits for the next step's preparation, 1.5 ms",
        upstream="vllm-project/vllm#43702 (the engine's loop)",
        met=(
            f"vllm.v1.worker.gpu.async_utils:AsyncOutput.{EVENTS[0]}",
            f"vllm.v1.worker.gpu_model_runner:AsyncGPUModelRunnerOutput.{EVENTS[1]}",
        ),
    ),
    Seam(
        "end of ranks",
        "engine",
        (
            "vllm.v1.executor.multiproc_executor:MultiprocExecutor._ensure_worker_termination(_)",
            "vllm.v1.executor.multiproc_executor:MultiprocExecutor.is_failed",
            "vllm.v1.executor.multiproc_executor:MultiprocExecutor.shutdown()",
        ),
        "when one of several GPUs' processes dies, turns wait up to 9 s for the others to end; at a shutdown some may "
        "outlive the engine",
    ),
    Seam(
        "cache key",
        "worker",
        (
            f"{MODEL}.compute_hash()",
            f"{MODEL}.model",
            f"{MODEL}.model_weights",
            f"{MODEL}.hf_config",
            f"{MODEL}.hf_text_config",
            "vllm.config.cache:CacheConfig.compute_hash()",
            "vllm.config.cache:CacheConfig.kv_cache_memory_bytes",
            "vllm.envs:compile_factors()",
            "vllm.engine.arg_utils:AsyncEngineArgs(worker_extension_cls=_)",
            "vllm.config.vllm:VllmConfig.model_config",
            "vllm.v1.worker.worker_base:WorkerBase.vllm_config",
        ),
        "an artifact's compile cache is found nowhere else than where it was filled, and vLLM compiles again",
        upstream="vllm-project/vllm#53193",
    ),
    Seam(
        "weights on many cores",
        "worker",
        ("vllm.engine.arg_utils:AsyncEngineArgs(load_format=_)",),
        "weights are read on one core, or a start ends where the package that reads them on many cannot",
        met=(f"{LOADER}:{MANY_CORES}(_, _)", f"{LOADER}:{ONE_CORE}(_, _)"),
    ),
    Seam(
        "first attention",
        "worker",
        (),
        "a start imports every kernel of attention to choose one: FlashInfer's, which takes a second and a half, too",
        met=(f"{CUDA}:{PLATFORM}.{VALID}", f"{CUDA}:{PRIORITIES}"),
    ),
    Seam(
        "matrix unit",
        "worker",
        ("vllm.engine.arg_utils:AsyncEngineArgs(worker_extension_cls=_)",),
        "on a CPU with AMX, a worker whose first kernel uses it is ended by Linux (SIGILL)",
    ),
    Seam(
        "rows of INT8",
        "worker",
        (),
        "on a CPU with AMX, no INT8 model is computed whose layers vLLM has from transformers",
        met=(f"{INT8_ON_CPU}._apply_weights_sgl(_, _, _)",),
    ),
    Seam(
        "memory plan",
        "worker",
        (
            "vllm.config.cache:CacheConfig.kv_cache_memory_bytes",
            "vllm.config.cache:CacheConfig.gpu_memory_utilization",
            "vllm.config.vllm:VllmConfig.compute_hash()",
            "vllm.config.vllm:VllmConfig.cache_config",
            "vllm.config.vllm:VllmConfig.scheduler_config",
            "vllm.config.vllm:VllmConfig.compilation_config",
            "vllm.v1.executor.abstract:Executor.collective_rpc(_, args=_)",
            "vllm.v1.executor.abstract:Executor.determine_available_memory()",
            "vllm.v1.worker.worker_base:WorkerBase.rank",
        ),
        "what graphs will take of a GPU's memory is measured at every start",
        upstream="vllm-project/vllm#47388 (merged: a plan of its own), once its key has the share of the memory",
        met=("vllm.v1.worker.gpu_worker:Worker.requested_memory",),
    ),
    Seam(
        "cache format",
        "server",
        (),
        "the artifact's compile cache is left alone, and vLLM compiles again",
        upstream="vllm-project/vllm#52154, #52142",
        met=(
            f"vllm.compilation.backends:CompilerManager '{GRAPH_LIST}'",
            f"vllm.compilation.backends:CompilerManager '{GRAPH_FIELD}'",
        ),
    ),
)

seams = Seams("vLLM", SEAMS, (RECORDED[0], RECORDED[-1]))


# In the server's process


def preload() -> None:
    """Import what starting an engine will need, which takes seconds."""
    importlib.import_module("vllm.v1.engine.async_llm")
    importlib.import_module("vllm.v1.executor")


def on_cpu() -> bool:
    """Whether vLLM was built for a CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def engine_arguments(arguments: dict[str, Any], extension: str) -> AsyncEngineArgs:
    """vLLM's engine arguments; `extension` names a class to add to its workers."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    if seams.holds("cache key") or seams.holds("matrix unit"):
        arguments = arguments | {"worker_extension_cls": extension}
    return AsyncEngineArgs(**arguments)


def cache_types() -> tuple[str, ...] | None:
    """The types of KV cache that vLLM knows; none when it does not say."""
    if not seams.holds("known options"):
        return None
    from vllm.config.cache import CacheDType

    return get_args(CacheDType)


def attention_backends() -> dict[str, Any] | None:
    """vLLM's kernels of attention by their names; none when it does not say."""
    if not seams.holds("known options"):
        return None
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return dict(AttentionBackendEnum.__members__)


def linear_backends() -> tuple[str, ...]:
    """vLLM's kernels of products; none when it does not say."""
    if not seams.holds("tuned options"):
        return ()
    from vllm.config.kernel import LinearBackend

    return get_args(LinearBackend)


def fusions() -> frozenset[str]:
    """The passes over compiled graphs that vLLM can be told to make."""
    if not seams.holds("tuned options"):
        return frozenset()
    from vllm.config.compilation import PassConfig

    return frozenset(name for name, type_ in get_type_hints(PassConfig).items() if type_ is bool)


def graph_modes() -> tuple[str, ...]:
    """vLLM's modes of capturing graphs; none when it does not say."""
    if not seams.holds("tuned options"):
        return ()
    from vllm.config.compilation import CUDAGraphMode

    return tuple(CUDAGraphMode.__members__)


def compilation(mode: str | None, sizes: Sequence[int], passes: Sequence[str]) -> dict[str, Any]:
    """What a `CompilationConfig` is made of, as far as anything was chosen."""
    chosen: dict[str, Any] = {
        "cudagraph_mode": mode,
        "cudagraph_capture_sizes": sorted(set(sizes)),
        "pass_config": dict.fromkeys(passes, True),
    }
    return {name: value for name, value in chosen.items() if value}


def delta_parameters(**arguments: Any) -> SamplingParams:  # noqa: ANN401 - vLLM's own checks them
    """Sampling parameters of requests that tell what each step added.

    vLLM copies them for each request and adds the model's stop tokens. A shallow copy will do (`skip_clone`): what vLLM
    changes inside is the same for every request to one model.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    if seams.holds("shared parameters"):
        arguments["skip_clone"] = True
    return SamplingParams(**arguments, output_kind=RequestOutputKind.DELTA)


def scoring_parameters() -> SamplingParams:
    """Sampling parameters of a request that is told the log-probabilities of its prompt, and nothing else."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    kind = RequestOutputKind.FINAL_ONLY
    return SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False, output_kind=kind)


def prompt(tokens: Sequence[int], cache_salt: str | None = None) -> dict[str, Any]:
    """A prompt of token ids, as vLLM takes one that needs no more work. vLLM counts a salt into its blocks' hashes."""
    whole: dict[str, Any] = {"type": "token", "prompt_token_ids": list(tokens)}
    if cache_salt is not None:
        whole["cache_salt"] = cache_salt
    return whole


def llm_class() -> type[AsyncLLM]:
    """vLLM's `AsyncLLM`, which says nothing at the interpreter's end."""
    from vllm.v1.engine.async_llm import AsyncLLM

    if not seams.holds("quiet end"):
        return AsyncLLM  # type: ignore[no-any-return]

    class Quiet(AsyncLLM):  # type: ignore[misc]
        def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
            # vLLM's own would fail on modules that are gone already, and print that.
            if not finalizing():
                super().__del__()

    return Quiet


def start(
    arguments: AsyncEngineArgs, executors: Callable[[type[Executor]], type[Executor]], *, statistics: bool = False
) -> AsyncLLM:
    """An engine, loaded; `executors` says which class takes the place of vLLM's executor.

    vLLM's own statistics stay off unless they are wanted, because they cost time for every token.

    Raises:
        EngineOptionError: so many GPUs cannot share the model.
    """
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor import Executor

    method = os.environ.get(METHOD)
    try:
        config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
    except (ValueError, NotImplementedError) as error:  # the latter where a model's code knows no stages
        shared = arguments.tensor_parallel_size, arguments.pipeline_parallel_size
        if shared == (1, 1):
            raise
        raise EngineOptionError(
            f"TENSOR_PARALLEL_SIZE, PIPELINE_PARALLEL_SIZE: expected numbers by which vLLM can share the model, "
            f"found {shared[0]} and {shared[1]}; {_reason(error)}"
        ) from error
    executor = executors(Executor.get_class(config))
    forks = _may_fork(arguments, method) and _quiet()
    with _started_by(FORK if forks else os.environ.get(METHOD), afterwards=method), _one_tokenizer():
        return llm_class()(config, executor, log_stats=statistics, log_requests=False)


def _may_fork(arguments: AsyncEngineArgs, method: str | None) -> bool:
    """Whether an engine for a CPU can be forked from this process, with all that it has imported.

    vLLM spawns it, so that OpenMP reads the variables that are set for each worker. For one worker, `threads.bind` does
    what they say. Not where the operator has chosen otherwise, in Ray's processes, with an OpenMP of the operator's, or
    where what changes workers has been imported here: in a forked one it would not be imported again.
    """
    alone = (arguments.tensor_parallel_size, arguments.pipeline_parallel_size) == (1, 1)
    changed = (arguments.worker_extension_cls or "").rpartition(".")[0]
    imported = changed in sys.modules or "ray" in sys.modules
    return alone and on_cpu() and method in (None, FORK) and not imported and "omp" not in PRELOADED


def _quiet() -> bool:
    """Whether no other thread computes, so that nothing is left locked in a process that is forked now."""
    if threads.quiet():
        return True
    log.warning("a thread of this process computes; the engine's processes are spawned, which takes longer")
    return False


@contextmanager
def _started_by(method: str | None, *, afterwards: str | None) -> Iterator[None]:
    """Have vLLM start its processes so, and leave the variable to the next engine as the operator had it."""
    _set_method(method)
    try:
        yield
    finally:
        _set_method(afterwards)


@contextmanager
def _one_tokenizer() -> Iterator[None]:
    """Have vLLM make no copies of its tokenizer, for threads that turn prompts into tokens: ours are tokens already."""
    if not seams.holds("one tokenizer"):
        yield
        return
    renderers = importlib.import_module("vllm.renderers.hf")
    pool = getattr(renderers, POOL)
    setattr(renderers, POOL, lambda tokenizer, *_: tokenizer)
    try:
        yield
    finally:
        setattr(renderers, POOL, pool)


def _set_method(method: str | None) -> None:
    if method is None:
        os.environ.pop(METHOD, None)
    else:
        os.environ[METHOD] = method


def forked() -> bool:
    """Whether this process of vLLM's was forked from the one that started it."""
    return os.environ.get(METHOD) == FORK


def _reason(error: Exception) -> str:
    """What vLLM's check of a configuration says, in one line; pydantic wraps it in others."""
    told: list[Any] = getattr(error, "errors", list)()
    text = str(told[0]["msg"]).removeprefix("Value error, ") if told else str(error)
    return " ".join(text.split()).rstrip(".")


@cache
def dead() -> type[Exception]:
    """vLLM's error for an engine that died. Called where one is caught: a turn that goes well imports nothing."""
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError  # type: ignore[no-any-return]


def refused() -> type[Exception]:
    """vLLM's error for a request that it does not take; asked for when something was raised, so nothing is kept."""
    if not seams.holds("refusals"):
        return ValueError
    from vllm.exceptions import VLLMValidationError

    return VLLMValidationError  # type: ignore[no-any-return]


async def add(
    llm: AsyncLLM,
    request_id: str,
    tokens: Sequence[int],
    params: SamplingParams,
    put: Callable[[Any], None],
    cache_salt: str | None = None,
) -> RequestState | None:
    """Add a request whose outputs and errors vLLM's output handler itself hands to `put`.

    Not `AsyncLLM.generate`: it wakes a task for every token, which costs more than all that is done with the token
    here, and it loses the request when it is cancelled while adding it.

    Returns:
        What vLLM keeps of the request, as long as it has had no output.
    """
    collector = await llm.add_request(request_id, prompt(tokens, cache_salt), params)
    early = collector.get_nowait()
    collector.put = put
    if early is not None:
        put(early)
        return None
    if not seams.holds("prompt text"):
        return None
    return llm.output_processor.request_states.get(collector.request_id)


async def outputs_of(
    llm: AsyncLLM, request_id: str, tokens: Sequence[int], params: SamplingParams, cache_salt: str | None = None
) -> AsyncGenerator[RequestOutput, None]:
    """A request's outputs, vLLM's own way."""
    async for output in llm.generate(prompt(tokens, cache_salt), params, request_id):
        yield output


def fast_text(state: RequestState) -> FastIncrementalDetokenizer | None:
    """What makes text of a request's reply, where that is vLLM's fast one."""
    found = state.detokenizer
    return found if isinstance(found, _text_classes()[1]) else None


def ends_in_text(text: FastIncrementalDetokenizer, tokens: list[int]) -> str:
    """The text of a prompt's last tokens, as the reply's will be made."""
    return str(text.tokenizer.decode(tokens, skip_special_tokens=text.skip_special_tokens))


def begin_after(text: FastIncrementalDetokenizer, tokens: list[int]) -> None:
    """Let a reply's text begin after these tokens, instead of after the whole prompt."""
    text.stream = _text_classes()[0](ids=tokens, skip_special_tokens=text.skip_special_tokens)


@cache
def _text_classes() -> tuple[type[DecodeStream], type[FastIncrementalDetokenizer]]:
    """Imported once: statements that import cost more than the rest when a turn begins in an idle process."""
    from tokenizers.decoders import DecodeStream
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    return DecodeStream, FastIncrementalDetokenizer


def wake(llm: AsyncLLM) -> Coroutine[Any, Any, None] | None:
    """What has vLLM's processes look up, when they wait asleep for a request; none when they do not."""
    if not seams.holds("waking") or llm.errored:
        return None
    try:
        silent = not llm.output_processor.has_unfinished_requests()
        return llm.engine_core.abort_requests_async([UNKNOWN_REQUEST]) if silent else None
    except (AttributeError, TypeError) as error:
        seams.give_up("waking", repr(error))
        return None


def ask_core(llm: AsyncLLM, method: str) -> Awaitable[Any]:
    """The answer of a method that was added to `EngineCore` (`answer`), given by the engine's own loop."""
    return llm.engine_core.call_utility_async(method)  # type: ignore[no-any-return]


def block_tokens(llm: AsyncLLM) -> int:
    """Tokens in a block of the prefix cache, which keeps whole blocks alone."""
    return int(llm.vllm_config.cache_config.block_size) if seams.holds("block size") else 1


async def shut_down(llm: AsyncLLM) -> None:
    """Stop vLLM's processes, and end what still waits for outputs.

    The handler of outputs is ended first: it takes the end of the engine's process for its death, and logs that.
    """
    known = seams.holds("end of requests")
    try:
        if known and llm.output_handler is not None:
            llm.output_handler.cancel()
            await asyncio.wait((llm.output_handler,), timeout=HANDLER_ENDS_S)
    finally:  # nobody could do it again
        await asyncio.to_thread(llm.shutdown)
    if known:
        llm.output_processor.propagate_error(dead()())


# In vLLM's engine process

Core = Any  # an `EngineCore`, which is untyped to us
Step = Callable[[Core], tuple[Any, bool]]


def executors() -> tuple[type[Executor], ...]:
    """vLLM's executor for one worker in the engine's process, and the one for several.

    The executor's class is the one object that vLLM hands over to its engine process by reference, so a subclass brings
    along the module that defines it.
    """
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor, MultiprocExecutor


def answer(method: str, function: Callable[[Core], Any]) -> None:
    """Add a method to `EngineCore`, which looks up by its name what is asked of it (`ask_core`)."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, method, function)


def change_step(change: Callable[[Step], Step]) -> None:
    """Put another in the place of the engine's step, the form of it that has a queue of batches."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.step_with_batch_queue = change(EngineCore.step_with_batch_queue)


def scheduler_figures(core: Core) -> tuple[int, int, float]:
    """Requests that run, requests that wait, and the used part of the KV cache (0 to 1)."""
    running, waiting = core.scheduler.get_request_counts()
    return running, waiting, core.scheduler.kv_cache_manager.usage


def batches(core: Core) -> int:
    """Batches that are on the GPU."""
    return len(core.batch_queue)


def arrival(core: Core) -> Callable[[], bool] | None:
    """What tells whether the oldest batch's tokens are here; none without a new request in it, or where that is hidden.

    It shows where tokens are copied from one GPU, which ends with an event.
    """
    try:
        future, scheduled = core.batch_queue[0][:2]
        output = getattr(future, "async_output", None)
        if not scheduled.scheduled_new_reqs or output is None:
            return None
        event = next(event for name in EVENTS if (event := getattr(output, name, None)) is not None)
        return event.query  # type: ignore[no-any-return]
    except (AttributeError, TypeError, ValueError, LookupError, StopIteration) as error:
        seams.give_up(
            "first token", f"expected a batch whose tokens come with one of {EVENTS}, found another ({error!r})"
        )
        return None


def lost_a_rank(executor: Any) -> bool:  # noqa: ANN401 - vLLM is untyped to us
    """Whether one of an executor's processes died, which vLLM notices before it ends the others."""
    return bool(executor.is_failed)


@contextmanager
def nothing_to_schedule(core: Core) -> Iterator[None]:
    """Have a step schedule nothing: it takes the oldest batch's result, and does all that belongs to it."""
    core.scheduler.has_requests = lambda: False
    try:
        yield
    finally:
        del core.scheduler.has_requests


# In vLLM's workers


def model_key(worker: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
    """What a worker counts of the model into the key of its compile cache."""
    return str(worker.vllm_config.model_config.compute_hash())


def memory_factors(worker: Any) -> dict[str, object]:  # noqa: ANN401 - vLLM is untyped to us
    """All that a model's need of a GPU's memory depends on, beside the GPU itself."""
    import vllm

    config = worker.vllm_config
    scheduler, compilation = config.scheduler_config, config.compilation_config
    return {
        "vllm": vllm.__version__,
        "config": config.compute_hash(),
        "sequences": scheduler.max_num_seqs,
        "batched_tokens": scheduler.max_num_batched_tokens,
        "model_len": config.model_config.max_model_len,
        "graphs": (str(compilation.cudagraph_mode), compilation.cudagraph_capture_sizes),
    }


def memory_of(worker: Any) -> tuple[int, int] | None:  # noqa: ANN401 - vLLM is untyped to us
    """Bytes that are free on a worker's GPU, and bytes that it may use; none where its KV cache has a size already."""
    import torch

    if worker.vllm_config.cache_config.kv_cache_memory_bytes is not None:
        return None
    return int(torch.cuda.mem_get_info()[0]), int(worker.requested_memory)


def look_for_the_first_attention() -> None:
    """Have vLLM look at kernels of attention in its order, and no further than to the first that will do.

    It looks at all of them and takes the first, and to look at one is to import it.
    """
    try:
        module = importlib.import_module("vllm.platforms.cuda")
        platform, every = getattr(module, PLATFORM), getattr(module, PRIORITIES)
        valid = vars(platform)[VALID].__func__
    except (ImportError, OSError, AttributeError, KeyError) as error:
        seams.give_up("first attention", repr(error))
        return

    @wraps(valid)
    def first(cls: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - vLLM's own
        for most in count(1):
            known: list[int] = []

            def some(*about: Any, most: int = most, known: list[int] = known, **more: Any) -> Any:  # noqa: ANN401
                found = every(*about, **more)
                known.append(len(found))
                return found[:most]

            setattr(module, PRIORITIES, some)
            try:
                will_do, reasons = valid(cls, *given, **named)
            finally:
                setattr(module, PRIORITIES, every)
            if will_do or most >= max(known, default=0):
                return will_do, reasons

    setattr(platform, VALID, classmethod(first))


def read_on_one_core_else() -> None:
    """Have weights read on one core where the package that reads them on many fails before the first of them.

    It may: a file system that is not known to it, or a container that forbids what it does.
    """
    try:
        loader = importlib.import_module("vllm.model_executor.model_loader.default_loader")
        many, one = getattr(loader, MANY_CORES), getattr(loader, ONE_CORE)
    except (ImportError, AttributeError) as error:
        seams.give_up("weights on many cores", repr(error))
        return

    def weights(files: list[str], bar: bool) -> Iterator[tuple[str, Any]]:
        read = iter(many(files, bar))
        try:
            first = next(read, None)
        except Exception as error:  # whatever the package met, another way is known
            if _ranks_share():
                raise  # the others wait for this one, which would go its own way
            log.warning("weights are read on one core, since on many it failed: %s", repr(error))
            del read  # and with the error, what was held for it
        else:
            if first is not None:
                yield first
                del first  # it may be the largest of all, and a copy of its own
                yield from read
            return
        yield from one(files, bar)

    setattr(loader, MANY_CORES, weights)


def _ranks_share() -> bool:
    import torch.distributed as ranks

    return bool(ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1)


def give_cache(worker: Any, size: int) -> None:  # noqa: ANN401 - vLLM is untyped to us
    """Have a worker lay out a KV cache of so many bytes, without measuring what is left for it."""
    worker.vllm_config.cache_config.kv_cache_memory_bytes = size


def ask_for_matrix_unit() -> bool:
    """Ask Linux for the CPU's matrix unit (AMX), and return whether this process may use it.

    Linux ends a process that uses it unasked. vLLM's attention for CPUs does so wherever the CPU has the unit, unless
    a matrix product in bfloat16 or a compiled kernel came before, whose libraries ask.
    """
    import torch

    ask = getattr(torch.cpu, "_init_amx", None)
    return bool(ask and ask())


def say_threads(count: int) -> None:
    """Have torch compute with so many threads. It starts some of another pool at that, which vLLM does not use."""
    import torch

    torch.set_num_threads(count)


def start_threads(count: int) -> None:
    """Start so many threads that compute, by having them compute something."""
    import torch

    torch.zeros(count << 20).add_(1)


def flatten_rows() -> None:
    """Let vLLM's INT8 product for CPUs with AMX take a batch of sequences, as its other products do.

    Models whose layers vLLM has from transformers give it three dimensions, and the kernel takes two.
    """
    try:
        from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel as Kernel

        own = Kernel._apply_weights_sgl
    except (ImportError, AttributeError) as error:
        seams.give_up("rows of INT8", repr(error))
        return

    def apply(kernel: Any, layer: Any, x: Any, bias: Any = None) -> Any:  # noqa: ANN401 - vLLM is untyped to us
        rows = own(kernel, layer, x.reshape(-1, x.shape[-1]), bias)
        return rows.reshape(*x.shape[:-1], rows.shape[-1])

    Kernel._apply_weights_sgl = apply


def key_model_as_at(place: str) -> None:
    """Let a model count into the key of a compile cache as if it lay at one place everywhere.

    What a compiled graph depends on is all in the configuration's other fields: shapes, types, quantization.
    """
    from vllm.config import ModelConfig

    own = ModelConfig.compute_hash

    def compute_hash(config: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
        moved = copy.copy(config)
        moved.model = place
        moved.model_weights = place if config.model_weights else config.model_weights
        for name in ("hf_config", "hf_text_config"):
            inner = copy.copy(getattr(config, name))
            inner.name_or_path = place
            setattr(moved, name, inner)
        return str(own(moved))

    ModelConfig.compute_hash = compute_hash


def key_size_as_measured() -> None:
    """Let the KV cache's size in bytes, where one was given, not count into the key of a compile cache.

    In vLLM 0.25 it does, no longer in 0.30. Where the compile cache was filled the size was measured, so that a start
    that takes it from a plan would compile anew.
    """
    from vllm.config import CacheConfig

    own = CacheConfig.compute_hash

    def compute_hash(config: Any) -> str:  # noqa: ANN401 - vLLM is untyped to us
        measured = copy.copy(config)
        measured.kv_cache_memory_bytes = None
        return str(own(measured))

    CacheConfig.compute_hash = compute_hash


def key_no_places() -> None:
    """Let folders in which vLLM compiles nothing not count into the key of a compile cache.

    In vLLM 0.25 two do, no longer in 0.31. They lie in the home of whoever runs it: a cache that was filled by one user
    would not be found by another.
    """
    from vllm import envs

    own = envs.compile_factors

    def compile_factors() -> dict[str, object]:
        return {name: value for name, value in own().items() if name not in PLACES_IN_KEY}

    envs.compile_factors = compile_factors
