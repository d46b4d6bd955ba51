"""How the engine is run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic_settings import BaseSettings

from runtime import defaults
from runtime.deployment.settings.declaring import ANY_CASE, var


class EngineSettings(BaseSettings):
    """Memory, parallelism, caches and kernels of the chat engine."""

    chat_gpu_frac: float | None = var(
        None,
        f"part of the GPU's memory for the chat engine; {defaults.GPU_ALONE:.2f} alone, "
        f"{defaults.GPU_CHAT_BESIDE_TOOL:.2f} beside a tool model",
        gt=0,
        le=1,
    )
    tool_gpu_frac: float | None = var(
        None,
        f"part of the GPU's memory for the classifier; {defaults.GPU_ALONE:.2f} alone, "
        f"{defaults.GPU_TOOL_BESIDE_CHAT:.2f} beside a chat model",
        gt=0,
        le=1,
    )
    max_num_seqs_chat: int | None = var(None, "vLLM: sequences that run at once; the artifact's limit", ge=1)
    max_num_batched_tokens_chat: int | None = var(
        None, "vLLM: tokens in one scheduler step; vLLM's own choice", unit="tokens", ge=1
    )
    trt_batch_size: int | None = var(None, "TensorRT-LLM: sequences that run at once; the baked limit", ge=1)
    trt_kv_free_gpu_frac: float | None = var(
        None,
        "TensorRT-LLM: part of the memory that is free beside the weights for the KV cache; CHAT_GPU_FRAC",
        gt=0,
        le=1,
    )
    trt_kv_enable_block_reuse: bool = var(
        defaults.KV_BLOCK_REUSE, "TensorRT-LLM: keep prompts' KV cache for prompts that begin alike"
    )
    tensor_parallel_size: int | None = var(None, "GPUs that share every layer of the chat model; the artifact's", ge=1)
    pipeline_parallel_size: int | None = var(
        None, "vLLM: stages of the chat model's layers, each on TENSOR_PARALLEL_SIZE GPUs; the artifact's", ge=1
    )
    kv_dtype: str = var(defaults.KV_DTYPE, "type of the KV cache, such as `fp8`; `auto`: the model's own")
    kv_offload_gib: float = var(
        defaults.KV_OFFLOAD_GIB,
        "vLLM on a GPU: host memory for personas and histories that the GPU's KV cache had to drop, of all GPUs that "
        "share the model together; 0: none",
        unit="GiB",
        ge=0,
        allow_inf_nan=False,
    )
    vllm_attention_backend: str | None = var(None, "vLLM's attention kernel, such as `FLASH_ATTN`; vLLM's own choice")
    weights_loader: Annotated[Literal["auto", "safetensors", "instanttensor"], ANY_CASE] = var(
        defaults.WEIGHTS_LOADER,
        "what brings vLLM's weights to the GPU: `instanttensor` reads on many cores at once, `safetensors` on one; "
        "`auto`: the former where one GPU has the model and the package is there",
    )
    graphs_after_readiness: bool | None = var(
        None,
        "vLLM 0.31 on one GPU: be ready with a fifth of the graphs, and capture the rest one by one while nothing "
        "runs, or every five seconds where somebody always speaks; `false`: all before readiness, two seconds later; "
        "unset: where prompts run in graphs too (`cudagraph_mode` FULL), for which it was measured",
    )
    enforce_eager: bool | None = var(None, "vLLM without compiled graphs; on a CPU yes, on a GPU no")
    metrics_engine: bool = var(
        False, "vLLM keeps its own statistics, and `/metrics` has them too (`vllm:…`); costs CPU for every token"
    )
    vllm_allow_long_max_model_len: bool = var(False, "allow a context longer than the model's config says")
    vllm_cpu_kvcache_space: float = var(
        defaults.CPU_KV_CACHE_GIB, "vLLM on a CPU: size of the KV cache", unit="GiB", gt=0
    )
    cache_sharing: Annotated[Literal["key", "server"], ANY_CASE] = var(
        "key",
        "who shares a prefix cache: `key`, each key's holder alone; `server`, all, and then a client can find out by "
        "time and `cached_tokens` what others' prompts begin with",
    )
    cache_reset_interval_seconds: float = var(
        600, "how often the engine's caches are reset while nothing runs; 0: never", unit="s", ge=0
    )
