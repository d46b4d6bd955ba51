"""Into how many pieces histories are cut: a graph and what is laid out for its replay agree, whatever comes.

On vLLM's own tables of graphs, and its own code that lays out a batch for FlashAttention.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines.vllm import contract
from runtime.engines.vllm.contract.workers import attention
from tests.harness.vllm.graph_tables import OWN_SIZES, manager, runs_in, streams_of_no_gpu, worker

pytestmark = pytest.mark.engine

PIECES, PROCESSORS = 32, 132


@pytest.fixture(autouse=True, scope="module")
def no_gpu() -> Iterator[None]:
    with streams_of_no_gpu():
        yield


class Flash:
    """vLLM's builder of what FlashAttention is told of a batch, with the project's change, for a GPU elsewhere."""

    def __init__(self, heads: int, longest: int, running: attention.Running, **about_it: int | None) -> None:
        import torch
        from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadataBuilder as Own

        parallel = SimpleNamespace(
            data_parallel_size=about_it.pop("data_parallel", 1),
            decode_context_parallel_size=about_it.pop("context_parallel", 1),
        )
        self.builder: Any = object.__new__(Own)
        vars(self.builder).update(
            vllm_config=SimpleNamespace(
                parallel_config=parallel,
                speculative_config=about_it.pop("speculative", None),
                model_config=SimpleNamespace(max_model_len=longest),
            ),
            device=torch.device("cpu"),
            num_heads_kv=heads,
            max_num_splits=about_it.pop("pieces", PIECES),
            use_full_cuda_graph=True,
            max_cudagraph_size=512,
            aot_schedule=False,
            aot_sliding_window=(-1, -1),
            dcp_world_size=1,
            rswa_window=None,
            model_config=SimpleNamespace(is_mm_prefix_lm=False),
            mm_prefix_query_ranges_np=None,
        )
        assert not about_it
        self.build = attention.in_one_piece(Own.build, running, lambda _: PROCESSORS)

    def pieces(self, requests: int, tokens: int, longest_query: int) -> int:
        """Into how many pieces at most a batch of so many requests and tokens is cut, as it is laid out."""
        batch: Any = SimpleNamespace(
            num_reqs=requests,
            num_actual_tokens=tokens,
            max_query_len=longest_query,
            max_seq_len=100,
            query_start_loc=None,
            seq_lens=None,
            block_table_tensor=None,
            slot_mapping=None,
            causal=True,
            mm_req_doc_ranges=None,
            rswa_prefix_lens=None,
        )
        before = self.builder.max_num_splits
        found: int = self.build(self.builder, common_prefix_len=0, common_attn_metadata=batch).max_num_splits
        assert self.builder.max_num_splits == before
        return found


def watched(mode: str, sizes: list[int], sequences: int) -> tuple[Any, attention.Running]:
    """A table of graphs, each of which is noted when a batch is laid out for it."""
    table, running = manager(mode, sizes, sequences), attention.Running()
    attention.watch(type(table), type(table), running)
    return table, running


def laid_out(graph: Any) -> tuple[int, int, int]:
    """What vLLM captures a graph with: requests, tokens, and the longest query among them."""
    requests = graph.num_reqs or min(graph.num_tokens, 256)
    return requests, graph.num_tokens, graph.uniform_token_count or graph.num_tokens


@pytest.mark.parametrize("mode", ["FULL", "FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"])
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_graph_is_replayed_with_as_many_pieces_as_it_was_captured_with(mode: str, data: st.DataObject) -> None:
    sizes = data.draw(st.one_of(st.just(OWN_SIZES), st.sets(st.integers(1, 512), min_size=1, max_size=20).map(sorted)))
    heads, longest = data.draw(st.integers(1, 16)), data.draw(st.sampled_from([512, 2304, 8192, 131072]))
    sequences = data.draw(st.integers(1, 512))
    table, running = watched(mode, sizes, sequences)
    flash = Flash(heads, longest, running)
    captured: dict[object, int] = {}

    def create(graph: Any, **_: object) -> None:
        captured[graph] = flash.pieces(*laid_out(graph))

    one = worker(table)
    one.few_graphs_first()
    table.capture(create)
    left, batches = 1, st.tuples(st.integers(1, 600), st.integers(1, 512), st.booleans())
    while left > 0:
        for tokens, requests, decoding in data.draw(st.lists(batches, max_size=4)):
            requests = min(tokens, requests, sequences)
            # One token of each does not make a batch of replies: prompts may have come to their last, or have one.
            decoding = decoding and requests == tokens
            graph = runs_in(table, tokens, requests, decoding=decoding)
            if graph.cg_mode.name != "FULL":
                continue
            query = 1 if requests == tokens else tokens - requests + 1
            found = flash.pieces(graph.num_reqs, graph.num_tokens, query)
            assert found == captured[graph]
            whole = graph.uniform_token_count == 1 and attention.fills(graph.num_reqs, heads, PROCESSORS, longest)
            assert found == (1 if whole else PIECES)
        left = one.next_graph()


@given(st.integers(1, 1024), st.integers(1, 64), st.integers(1, 300), st.integers(1, 1 << 20))
def test_a_gpu_is_full_only_where_no_history_keeps_it_waiting(
    replies: int, heads: int, processors: int, longest: int
) -> None:
    full = attention.fills(replies, heads, processors, longest)
    # More replies fill it all the more, and longer histories less.
    assert full <= attention.fills(replies + 1, heads, processors, longest)
    assert full >= attention.fills(replies, heads, processors, longest + 1)
    if full:
        all_of_them = replies * heads * attention.USUAL / processors
        assert longest <= all_of_them
        assert replies * heads / processors >= attention.ROUNDS


@pytest.mark.parametrize(
    "about_it",
    [
        {"data_parallel": 2},
        {"context_parallel": 2},
        {"speculative": 1},
        {"pieces": 0},
        {"pieces": 1},
    ],
    ids=str,
)
def test_elsewhere_vllm_cuts_as_it_likes(about_it: dict[str, int | None]) -> None:
    table, running = watched("FULL", OWN_SIZES, 256)
    table.capture(lambda _: None)
    flash = Flash(8, 2304, running, **about_it)
    runs_in(table, 256, 256, decoding=True)
    assert flash.pieces(256, 256, 1) == about_it.get("pieces", PIECES)
    assert Flash(8, 2304, running).pieces(256, 256, 1) == 1


def test_what_graphs_take_is_measured_by_those_that_are_cut_up() -> None:
    """Of the largest vLLM concludes to all others, some of which are."""
    table, running = watched("FULL_AND_PIECEWISE", OWN_SIZES, 256)
    flash, found = Flash(8, 2304, running), []
    for table._capture_mem_samples in ([], None):
        table.graphs, table._graphs_captured = {}, False
        table.capture(lambda graph: found.append((graph, flash.pieces(*laid_out(graph)))))
    full = [pieces for graph, pieces in found if graph.num_tokens == 256 and graph.uniform_token_count == 1]
    assert full == [PIECES, 1]


def test_a_batch_that_is_not_the_graph_s_is_cut_up() -> None:
    """Such as one that is laid out outside the model's graphs."""
    table, running = watched("FULL", OWN_SIZES, 256)
    table.capture(lambda _: None)
    flash = Flash(8, 2304, running)
    assert flash.pieces(256, 256, 1) == PIECES
    runs_in(table, 256, 256, decoding=True)
    assert flash.pieces(255, 255, 1) == PIECES


def test_vllm_s_own_code_is_changed_and_of_other_tables_nothing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends import flash_attn
    from vllm.v1.worker.gpu import cudagraph_utils

    graph = SimpleNamespace(uniform_token_count=1, num_reqs=256)

    class Base:
        def dispatch(self, *_: object) -> object:
            return graph

        def capture(self, create: Any, *_: object, progress_bar_desc: str = "") -> None:
            create(graph, warmup=True)

    class Model(Base):
        def capture(self, create: Any, *_: object, **__: object) -> None:
            super().capture(create, progress_bar_desc="its own")

    class Builder:
        max_num_splits, num_heads_kv, device = PIECES, 8, SimpleNamespace(index=None)
        vllm_config = Flash(8, 2304, attention.Running()).builder.vllm_config

        def build(self, common_prefix_len: int, common_attn_metadata: object, fast_build: bool = False) -> int:
            return self.max_num_splits

    monkeypatch.setattr(cudagraph_utils, "CudaGraphManager", Base)
    monkeypatch.setattr(cudagraph_utils, "ModelCudaGraphManager", Model)
    monkeypatch.setattr(flash_attn, "FlashAttentionMetadataBuilder", Builder)
    monkeypatch.setattr("vllm.utils.platform_utils.num_compute_units", lambda _: PROCESSORS)
    contract.full_batches_in_one_piece()

    builder, batch, found = Builder(), SimpleNamespace(num_reqs=256), []

    def build(*_: object, **__: object) -> None:
        found.append(builder.build(0, batch))

    build()
    Model().dispatch()
    build()
    Base().capture(build)  # a draft model's
    Model().capture(build)
    build()
    assert found == [PIECES, 1, PIECES, 1, 1]


def test_a_vllm_without_such_code_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends import flash_attn

    given_up: list[str] = []
    monkeypatch.setattr(contract.seams, "give_up", lambda name, reason: given_up.append(name))
    monkeypatch.delattr(flash_attn, "FlashAttentionMetadataBuilder")
    contract.full_batches_in_one_piece()
    assert given_up == ["attention in one piece"]
