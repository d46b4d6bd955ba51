"""The options that vLLM knows, and how it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from runtime.engines.vllm.contract.table import seams

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs


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
