"""Top-k and top-p by a bounded `topk`, in the place of vLLM's filters.

vLLM masks the whole vocabulary: by FlashInfer, which compiles its kernels with nvcc when they are first needed, or by a
Triton kernel that can take longer than the model itself on a full batch (`docs/performance.md`). Nearly every request
of a chat has a small top-k, though, and then the kept tokens are among the first few: PyTorch's `topk` finds
them, top-p is decided on those alone, and nothing has to be compiled, so a runtime image needs no compiler for it.

The kept tokens are the same: first the k likeliest, then of these, renormalized, as few as reach p. A batch in which
any request keeps more than `MOST` tokens, or all of them, is left to vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.ops import topk_topp_sampler

if TYPE_CHECKING:
    import numpy as np

Filter = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]

# Above the protocol's 60. `topk` takes longer the more it keeps, so far larger bounds would not pay.
MOST = 128

_whole_vocabulary: Filter = topk_topp_sampler.apply_top_k_top_p


def keep(logits: torch.Tensor, k: torch.Tensor, p: torch.Tensor | None, most: int) -> torch.Tensor:
    """Logits with all but the kept tokens at minus infinity; the input may be changed.

    Args:
        logits: float32, requests by vocabulary.
        k: tokens to keep of each request, from 1 to `most`.
        p: of those, the least probability to keep, above 0 to 1; none keeps them all.
        most: no request keeps more tokens than this.
    """
    values, tokens = logits.topk(most, dim=-1)  # likeliest first
    ranks = torch.arange(most, device=logits.device)
    values.masked_fill_(ranks >= k.unsqueeze(1), -torch.inf)
    if p is not None:
        probabilities = values.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1).sub_(probabilities)
        drop = before >= p.unsqueeze(1)
        drop[:, 0] = False
        values.masked_fill_(drop, -torch.inf)
    return logits.fill_(-torch.inf).scatter_(1, tokens, values)


def apply_top_k_top_p(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
    """vLLM's function of this name, for batches of small top-k."""
    if k is None:
        return _whole_vocabulary(logits, k, p)
    # Reading the largest k from a GPU would wait for it; there `_noting` has put it on the tensor.
    most = int(k.max()) if k.device.type == "cpu" else getattr(k, "most", MOST + 1)
    return keep(logits, k, p, most) if most <= MOST else _whole_vocabulary(logits, k, p)


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    """`SamplingStates.get_top_k_top_p`, with the largest k on its tensor: vLLM has it on the host as well."""

    def get_top_k_top_p(states: Any, expanded: torch.Tensor, rows: np.ndarray) -> Any:  # noqa: ANN401 - untyped to us
        k, p = original(states, expanded, rows)
        if k is not None:
            k.most = int(states.top_k.np[rows].max())
        return k, p

    return get_top_k_top_p


def install() -> None:
    """Take the place of vLLM's filters in this process. Once, and before a model is loaded."""
    topk_topp_sampler.apply_top_k_top_p = apply_top_k_top_p
    try:
        from vllm.v1.worker.gpu.sample import sampler, states
    except ImportError:
        return  # the newer of vLLM's two model runners needs Triton
    states.SamplingStates.get_top_k_top_p = _noting(states.SamplingStates.get_top_k_top_p)
    states.apply_top_k_top_p = sampler.apply_top_k_top_p = apply_top_k_top_p
