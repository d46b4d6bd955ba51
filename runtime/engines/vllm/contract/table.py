"""Every name of vLLM's that is used, what for, and what is lost where one is missing."""

from __future__ import annotations

from runtime.engines.vllm.seams import Seam, Seams

# The releases whose signatures were recorded; every one between them may be expected to do.
RECORDED = ("0.25.1", "0.30.0", "0.31.0")

# The file in which vLLM lists the graphs that it compiled, and the entry's field that names a graph's file.
GRAPH_LIST = "vllm_compile_cache.py"
GRAPH_FIELD = "graph_handle"

# Variables of vLLM's that say where something lies, which nothing compiled depends on.
PLACES_IN_KEY = frozenset({"VLLM_CONFIG_ROOT", "VLLM_XLA_CACHE_PATH"})

# Set on the collector of a request whose outputs are told one by one.
ONE_BY_ONE = "one_by_one"

# What vLLM's two model runners for GPUs call the event after which a step's tokens have arrived.
EVENTS = ("copy_event", "async_copy_ready_event")

# How vLLM starts its processes. Its platform for CPUs says "spawn" whatever was said.
METHOD, FORK = "VLLM_WORKER_MULTIPROC_METHOD", "fork"

LLM = "vllm.v1.engine.async_llm:AsyncLLM"
CLIENT = "vllm.v1.engine.core_client:AsyncMPClient"
OUTPUTS = "vllm.v1.engine.output_processor:OutputProcessor"
STEPS, OUTPUT = "vllm.v1.engine:EngineCoreOutputs", "vllm.v1.engine:EngineCoreOutput"
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
MONITOR, CUTE, TILES = "vllm.utils.jit_monitor", "_setup_cutedsl_jit_hook", "_setup_tilelang_jit_hook"
WARMING, ROUTERS, ROUTER_SHAPES = (
    "vllm.model_executor.warmup.kernel_warmup",
    "_warmup_ll_bf16_router_gemm",
    "_ll_bf16_router_shapes_from_model",
)
CAPTURES, CAPTURE, BAR = "vllm.v1.worker.gpu.cudagraph_utils", "graph_capture", "is_global_first_rank"
GROUPS = "vllm.distributed.parallel_state"
GRAPHS, MODEL_GRAPHS = f"{CAPTURES}:CudaGraphManager", "ModelCudaGraphManager"
FLASH = "FlashAttentionMetadataBuilder"
FLASH_BUILDER = f"vllm.v1.attention.backends.flash_attn:{FLASH}"
PRODUCTS = "vllm._custom_ops"
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
                "VLLM_USE_DEEP_GEMM",
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
        "waiting steps",
        "server",
        (
            f"{LLM}.engine_core",
            f"{LLM}._run_output_handler 'get_output_async'",
            f"{CLIENT}.get_output_async()",
            f"{CLIENT}.outputs_queue",
            *(f"{STEPS}.{name}" for name in ("engine_index", "outputs", "timestamp", "finished_requests")),
            *(f"{OUTPUT}.{name}" for name in ("request_id", "new_token_ids", "events", "trace_headers")),
            f"{OUTPUT}.prefill_stats",
            f"{LLM}.output_processor",
            f"{OUTPUTS}.request_states",
            "vllm.v1.engine.output_processor:RequestState.queue",
        ),
        "steps that came while the last one was worked at are told one after the other, so a process is full sooner",
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
        "unused kernels",
        "worker",
        (),
        "a start imports CuTeDSL and TileLang, a second each, for models that use no kernel of theirs",
        met=(f"{MONITOR}:{CUTE}()",),
        since=(f"{MONITOR}:{TILES}()", f"{WARMING}:{ROUTERS}(_)", f"{WARMING}:{ROUTER_SHAPES}(_)"),
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
        "integers on a CPU",
        "worker",
        (),
        "on a CPU without VNNI, INT8 is computed wrongly, and 4 bits not at all",
        met=(
            f"{PRODUCTS}:create_onednn_scaled_mm(_, _, _, _, _, _)",
            f"{PRODUCTS}:onednn_scaled_mm(_, _, _, _, _, _, _)",
            f"{PRODUCTS}:cpu_gemm_wna16",
        ),
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
        "decoding graphs",
        "worker",
        (
            "vllm.config.compilation:CUDAGraphMode.FULL",
            "vllm.config.compilation:CUDAGraphMode.FULL_DECODE_ONLY",
        ),
        "where prompts run in graphs (`cudagraph_mode=FULL`), replies run in the same ones, and some percent slower",
        met=(
            f"{CAPTURES}:{MODEL_GRAPHS}._init_candidates()",
            *(
                f"{GRAPHS}.{name}"
                for name in (
                    "_candidates",
                    "_capture_descs",
                    "cudagraph_mode",
                    "decode_query_len",
                )
            ),
        ),
        since=(f"{GRAPHS}.varlen_decode", f"{GRAPHS}.ubatch_runner"),
    ),
    Seam(
        "attention in one piece",
        "worker",
        (
            "vllm.config.vllm:VllmConfig.speculative_config",
            "vllm.config.parallel:ParallelConfig.data_parallel_size",
            "vllm.config.parallel:ParallelConfig.decode_context_parallel_size",
            "vllm.utils.platform_utils:num_compute_units(_)",
        ),
        "a step of many replies takes a percent longer",
        met=(
            f"{FLASH_BUILDER}.build(_, common_attn_metadata=_)",
            *(f"{FLASH_BUILDER}.{name}" for name in ("max_num_splits", "num_heads_kv")),
            "vllm.v1.attention.backend:CommonAttentionMetadata.num_reqs",
            "vllm.v1.attention.backend:AttentionMetadataBuilder.vllm_config",
            "vllm.v1.attention.backend:AttentionMetadataBuilder.device",
            f"{CAPTURES}:{MODEL_GRAPHS}",
            f"{GRAPHS}.capture(_)",
            f"{GRAPHS}.dispatch",
            f"{CAPTURES}:BatchExecutionDescriptor.uniform_token_count",
            f"{CAPTURES}:BatchExecutionDescriptor.num_reqs",
        ),
        since=(f"{GRAPHS}._capture_mem_samples",),
    ),
    Seam(
        "later graphs",
        "worker",
        (f"{LLM}.collective_rpc(_)", "vllm.config:set_current_vllm_config(_)"),
        "all graphs are captured before readiness",
        met=(
            f"{GRAPHS}._init_candidates()",
            f"{GRAPHS}._candidates",
            f"{GRAPHS}._capture_descs",
            f"{GRAPHS}.capture",
            f"{GRAPHS}.compilation_config",
            f"{GRAPHS}.decode_query_len",
            f"{GRAPHS}.graphs",
            f"{GRAPHS}.use_breakable_cg",
            f"{GRAPHS}.cudagraph_mode",
            f"{CAPTURES}:{BAR}()",
            "vllm.config.vllm:VllmConfig.kv_transfer_config",
            f"{GROUPS}:{CAPTURE}(device=_)",
            f"{GROUPS}:GraphCaptureContext.stream",
            f"{GROUPS}:GroupCoordinator.graph_capture(_)",
            f"{GROUPS}:get_tp_group()",
            "vllm.config.compilation:CompilationConfig.cudagraph_capture_sizes",
        ),
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
