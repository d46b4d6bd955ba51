"""The bounded filter keeps the tokens that vLLM's own would, and leaves to vLLM what it cannot bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from runtime.engines import vllm_sampling
from runtime.engines.vllm_sampling import MOST, apply_top_k_top_p, keep

pytestmark = pytest.mark.engine

VOCABULARY = 500


def batch(seed: int, requests: int) -> torch.Tensor:
    """Logits as models have them: no two alike, and some tokens that something before has forbidden."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(requests)])
    logits = ranks.float() * 0.02
    logits[ranks < 20] = -torch.inf
    return logits


def kept(logits: torch.Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row > -torch.inf).flatten().tolist()) for row in logits]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ks=st.lists(st.integers(1, MOST), min_size=1, max_size=6),
    p=st.none() | st.floats(0.01, 1.0, exclude_max=True),
)
def test_keeps_exactly_the_tokens_that_vllm_keeps(seed: int, ks: list[int], p: float | None) -> None:
    logits, k = batch(seed, len(ks)), torch.tensor(ks, dtype=torch.int32)
    ps = None if p is None else torch.full((len(ks),), p)
    theirs = kept(apply_top_k_top_p_pytorch(logits.clone(), k.clone(), ps, allow_cpu_sync=True))
    filtered = apply_top_k_top_p(logits.clone(), k, ps)
    for mine, other, before, after in zip(kept(filtered), theirs, logits, filtered, strict=True):
        # Sums of probabilities are rounded in another order, so a token on the very edge of p may fall either way.
        assert abs(len(mine) - len(other)) <= 1
        assert mine <= other or other <= mine
        assert all(before[token] == after[token] for token in mine)


def test_a_request_of_one_token_gets_the_likeliest() -> None:
    logits = batch(7, 3)
    best = logits.argmax(dim=-1).tolist()
    filtered = keep(logits, torch.tensor([1, 1, 40]), torch.tensor([0.9, 0.001, 0.001]), 40)
    assert kept(filtered) == [{best[0]}, {best[1]}, {best[2]}]


@pytest.mark.parametrize("k", [None, torch.tensor([5, MOST + 1]), torch.tensor([VOCABULARY, 5])])
def test_a_batch_that_is_not_bounded_is_left_to_vllm(k: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(vllm_sampling, "_whole_vocabulary", lambda logits, k, p: asked.append(k) or logits)
    apply_top_k_top_p(batch(1, 2), k, torch.tensor([0.9, 0.9]))
    assert len(asked) == 1


def test_on_a_gpu_only_a_noted_bound_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the largest k would wait for the GPU; the meta device stands for one, and cannot be read."""
    asked = []
    monkeypatch.setattr(vllm_sampling, "_whole_vocabulary", lambda logits, k, p: asked.append(k) or logits)
    k = torch.tensor([5, 5], device="meta")
    logits = torch.empty((2, VOCABULARY), device="meta")
    apply_top_k_top_p(logits, k, None)
    assert len(asked) == 1
    k.most = 5  # type: ignore[attr-defined]
    apply_top_k_top_p(logits, k, None)
    assert len(asked) == 1
