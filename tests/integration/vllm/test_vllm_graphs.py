"""In which graph a batch runs, and those that are captured after readiness, on vLLM's own table of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines.vllm import contract
from tests.harness.vllm.graph_tables import OWN_SIZES, OutOfMemory, manager, runs_in, streams_of_no_gpu, worker

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True, scope="module")
def no_gpu() -> Iterator[None]:
    with streams_of_no_gpu():
        yield


@pytest.mark.parametrize("mode", ["FULL", "FULL_AND_PIECEWISE", "FULL_DECODE_ONLY", "PIECEWISE"])
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_no_step_asks_for_a_graph_that_is_not_there(mode: str, data: st.DataObject) -> None:
    sizes = data.draw(st.one_of(st.just(OWN_SIZES), st.sets(st.integers(1, 512), min_size=1, max_size=30).map(sorted)))
    table, whole = manager(mode, sizes), manager(mode, sizes)
    one = worker(table)
    later = one.few_graphs_first()
    table.capture("model")
    whole.capture("model")
    batches = st.tuples(st.integers(1, 600), st.integers(1, 256), st.booleans())
    left, before = len(sizes), len(table.graphs)
    while left > 0:
        for tokens, requests, decoding in data.draw(st.lists(batches, max_size=3)):
            requests = tokens if decoding else min(tokens, requests)
            found = runs_in(table, tokens, requests, decoding=decoding)
            best = runs_in(whole, tokens, requests, decoding=decoding)
            # A graph that is there and takes the batch, wherever all of them would have one.
            assert found.cg_mode == best.cg_mode
            if best in whole.graphs:
                assert found in table.graphs
                assert found.num_tokens >= best.num_tokens
        left = one.next_graph()
        assert gc.isenabled()
    assert later == (before < len(whole.graphs))
    # And in the end it is as if they had been captured at once, with the same words.
    assert table.graphs == whole.graphs
    assert len(set(table.streams)) <= 1
    assert table._candidates == whole._candidates
    assert table.compilation_config.cudagraph_capture_sizes == sizes
    assert one.next_graph() == (0 if later else -1)


sizes_of_graphs = st.one_of(st.just(OWN_SIZES), st.sets(st.integers(1, 512), min_size=1, max_size=30).map(sorted))


@settings(deadline=None, max_examples=60)
@given(sizes_of_graphs, st.integers(1, 300), st.integers(1, 600), st.integers(1, 300), st.booleans())
def test_replies_run_in_graphs_of_their_own(
    sizes: list[int], sequences: int, tokens: int, requests: int, decoding: bool
) -> None:
    ours, theirs = manager("FULL", sizes, sequences), manager("FULL", sizes, sequences, own=False)
    apart = manager("FULL_AND_PIECEWISE", sizes, sequences)
    for table in (ours, theirs, apart):
        table.capture("model")
    requests = min(tokens if decoding else requests, tokens, sequences)
    decoding = decoding and requests == tokens
    found, before = (runs_in(table, tokens, requests, decoding=decoding) for table in (ours, theirs))
    reply = runs_in(apart, tokens, requests, decoding=decoding)
    if decoding and reply.uniform_token_count == 1:
        assert found == reply  # the very graph that vLLM has for them where prompts run in pieces
    else:
        assert found == before  # vLLM's own choice
    assert (found in ours.graphs) == (before in theirs.graphs)
    # None is captured that no batch runs in, the largest comes first, and the table's mode is what it was.
    assert set(ours.graphs) == set().union(*ours._candidates.values())
    captured = [one.num_tokens for one in ours.graphs]
    assert captured == sorted(captured, reverse=True)
    assert ours.cudagraph_mode == theirs.cudagraph_mode


@pytest.mark.parametrize(
    ("mode", "about_it"),
    [
        ("FULL_AND_PIECEWISE", {}),
        ("FULL_DECODE_ONLY", {}),
        ("PIECEWISE", {}),
        ("NONE", {}),
        ("FULL", {"decode_query_len": 3}),
        ("FULL", {"varlen_decode": True}),
        ("FULL", {"ubatch_runner": object(), "_maybe_ubatch_twin": lambda _: None}),
    ],
)
def test_elsewhere_the_table_is_vllm_s_own(mode: str, about_it: dict[str, Any]) -> None:
    ours, theirs = (manager(mode, OWN_SIZES, own=own, **about_it) for own in (True, False))
    assert (ours._candidates, ours._capture_descs) == (theirs._candidates, theirs._capture_descs)


@pytest.mark.parametrize(("sequences", "largest"), [(256, 256), (320, 320), (100, 96), (600, 512)])
def test_a_fifth_of_them_is_captured_first_and_the_largest_of_each_kind(sequences: int, largest: int) -> None:
    table = manager("FULL", OWN_SIZES, sequences)
    assert worker(table).few_graphs_first()
    table.capture("model")
    powers = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512}
    replies = {one.num_tokens for one in table.graphs if one.uniform_token_count == 1}
    # Of one size both kinds are there, so that no batch of replies runs in a prompt's graph that is nearer.
    assert replies == {size for size in powers if size <= sequences} | {largest}
    assert {one.num_tokens for one in table.graphs if one.uniform_token_count is None} == powers | {largest}
    assert len(table.graphs) <= 25
    found = runs_in(table, largest, largest, decoding=True)
    assert (found.num_tokens, found.uniform_token_count) == (largest, 1)


def test_where_vllm_lays_out_otherwise_its_own_table_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu import cudagraph_utils

    given_up: list[str] = []
    monkeypatch.setattr(contract.seams, "give_up", lambda name, reason: given_up.append(name))
    theirs = manager("FULL", OWN_SIZES, own=False)
    lay_out = cudagraph_utils.CudaGraphManager._init_candidates

    def another(table: Any) -> None:
        if table.cudagraph_mode.name != "FULL":
            raise RuntimeError("there is no such mode")
        lay_out(table)

    theirs._candidates, theirs._capture_descs = {}, {}
    contract.with_decoding(another)(theirs)
    whole = manager("FULL", OWN_SIZES, own=False)
    assert (theirs._candidates, theirs._capture_descs) == (whole._candidates, whole._capture_descs)
    assert theirs.cudagraph_mode.name == "FULL"
    assert given_up == ["decoding graphs"]


def test_vllm_s_own_table_is_changed_in_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu import cudagraph_utils

    class Table:
        laid_out = 0

        def _init_candidates(self) -> None:
            self.laid_out += 1
            self._candidates: dict[object, object] = {}
            self._capture_descs: dict[object, object] = {}

    monkeypatch.setattr(cudagraph_utils, "ModelCudaGraphManager", Table)
    contract.decode_in_graphs_of_its_own()
    table: Any = Table()
    table.cudagraph_mode, table.decode_query_len = manager("FULL", [1]).cudagraph_mode, 1
    table._init_candidates()
    assert table.laid_out == 2


@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_worker_for_a_gpu_changes_it(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.engines.vllm import worker as module

    done: list[str] = []
    monkeypatch.setattr(contract, "on_cpu", lambda: on_cpu)
    monkeypatch.setattr(contract, "forked", lambda: False)
    for name in contract.__all__:
        if name.startswith(("key_", "look_", "import_", "read_", "decode_", "ask_for", "flatten", "full_")):
            monkeypatch.setattr(contract, name, lambda *_, name=name: done.append(name))
    source = compile(Path(module.__file__).read_text("utf-8"), module.__file__, "exec")
    exec(source, {"__name__": "a_worker_s"})  # noqa: S102 - as a worker imports it, without changing this process's
    assert ("decode_in_graphs_of_its_own" in done) == (not on_cpu)
    assert ("full_batches_in_one_piece" in done) == (not on_cpu)


def test_a_graph_is_captured_when_the_gpu_has_done_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.engines.vllm.worker import Worker as Own

    order: list[str] = []
    one = Own()
    monkeypatch.setattr(contract, "finish_steps", lambda: order.append("finished"))
    assert one.next_graph() == -1
    later = SimpleNamespace(capture_next=lambda: order.append("captured") or 3)
    one._later = later  # type: ignore[assignment]
    assert one.next_graph() == 3
    assert order == ["finished", "captured"]


def test_a_capture_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("all"))
    contract.finish_steps()
    assert waited == ["all"]


def test_a_memory_plan_knows_what_graphs_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config.compilation import CUDAGraphMode

    def factors(mode: CUDAGraphMode, *held: str) -> dict[str, object]:
        monkeypatch.setattr(contract.seams, "holds", lambda name: name in held)
        config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=1, max_num_batched_tokens=1),
            compilation_config=SimpleNamespace(cudagraph_mode=mode, cudagraph_capture_sizes=[1]),
            model_config=SimpleNamespace(max_model_len=1),
            compute_hash=lambda: "hash",
        )
        return contract.memory_factors(SimpleNamespace(vllm_config=config))

    full, apart = CUDAGraphMode.FULL, CUDAGraphMode.FULL_AND_PIECEWISE
    assert factors(full, "decoding graphs") != factors(full)
    assert factors(apart, "decoding graphs") == factors(apart)
    for mode in (full, apart):
        assert factors(mode, "attention in one piece") != factors(mode)


def test_one_that_fails_leaves_those_that_were_there() -> None:
    table = manager("FULL", OWN_SIZES)
    one = worker(table)
    one.few_graphs_first()
    table.capture("model")
    assert one.next_graph() == len(OWN_SIZES) - 11
    table.refused = {40}
    before = dict(table.graphs)
    with pytest.raises(OutOfMemory):
        one.next_graph()
    assert table.graphs == before
    assert gc.isenabled()
    found = [runs_in(table, tokens, tokens, decoding=True).num_tokens for tokens in (17, 25, 33, 40, 65)]
    assert found == [24, 32, 64, 64, 128]


@pytest.mark.parametrize(
    ("mode", "sizes", "gpus", "beside"),
    [
        (None, OWN_SIZES, 1, {}),
        ("FULL", OWN_SIZES, 2, {}),
        ("FULL", OWN_SIZES, 1, {"speculator": object()}),
        ("FULL", OWN_SIZES, 1, {"lora_config": object()}),
        ("FULL", OWN_SIZES, 1, {"kv_transfer": object()}),
        ("FULL", [1, 2, 4, 8], 1, {}),
        ("NONE", OWN_SIZES, 1, {}),
    ],
    ids=["an older runner", "two GPUs", "a draft model", "adapters", "host memory", "few sizes", "no graphs"],
)
def test_all_are_captured_at_once(mode: str | None, sizes: list[int], gpus: int, beside: dict[str, object]) -> None:
    one = worker(manager(mode, sizes) if mode else None, gpus, **beside)
    assert not one.few_graphs_first()
    assert one.next_graph() == -1


@pytest.mark.parametrize(("mode", "few"), [("FULL", True), ("FULL_AND_PIECEWISE", False), ("PIECEWISE", False)])
def test_by_itself_it_is_done_where_prompts_run_in_graphs_too(mode: str, few: bool) -> None:
    assert worker(manager(mode, OWN_SIZES)).few_graphs_first(any_mode=False) == few


def test_later_ones_are_captured_without_a_bar() -> None:
    from vllm.v1.worker.gpu import cudagraph_utils

    table, bars = manager("FULL", OWN_SIZES), []
    bar = cudagraph_utils.is_global_first_rank
    one = worker(table)
    one.few_graphs_first()
    table.capture("model")
    again = one.later._again  # type: ignore[union-attr]
    one.later._again = lambda: (bars.append(cudagraph_utils.is_global_first_rank()), again())  # type: ignore[union-attr]
    one.next_graph()
    assert bars == [False]
    assert cudagraph_utils.is_global_first_rank is bar


def test_a_worker_that_has_captured_has_nothing_left() -> None:
    """Up to vLLM 0.30 graphs are captured before we are asked."""
    table = manager("FULL", OWN_SIZES)
    table.capture("model")
    one = worker(table)
    assert not one.few_graphs_first()
    assert one.next_graph() == -1


@pytest.mark.parametrize("seam", ["later graphs", "decoding graphs", "attention in one piece"])
def test_the_seam_holds(seam: str) -> None:
    assert contract.seams.holds(seam)
