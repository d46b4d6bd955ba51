"""Steps that wait for this process are taken as one, and everybody is told the same as one by one."""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.engines import Delta, Sampling
from runtime.engines.vllm.arguments import parameters
from runtime.engines.vllm.contract import backlog, seams, take_together
from runtime.engines.vllm.engine import VllmEngine
from tests.benchmarks.front import engine_request
from tests.integration.vllm.test_vllm_text import TOKENIZERS

pytestmark = pytest.mark.engine

STREAMS = st.integers(0, 4)
TEXT = "The cat 🙂 sat, é, and 你好 was said. " * 3


def output(request: int, tokens: list[int], **more: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutput

    return EngineCoreOutput(request_id=str(request), new_token_ids=tokens, **more)


def step(*outputs: Any, **more: Any) -> Any:
    from vllm.v1.engine import EngineCoreOutputs

    return EngineCoreOutputs(outputs=list(outputs), **more)


class Client:
    """vLLM's, as far as outputs are asked of it."""

    def __init__(self, *waiting: Any) -> None:
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()
        for one in waiting:
            self.outputs_queue.put_nowait(one)

    async def get_output_async(self) -> Any:
        one = await self.outputs_queue.get()
        if isinstance(one, Exception):
            raise one
        return one


async def taken(*waiting: Any) -> list[Any]:
    """What the handler is given, one after the other: steps and, as types, what is raised."""
    client = Client(*waiting)
    take_together(SimpleNamespace(engine_core=client))  # type: ignore[arg-type]
    given_out: list[Any] = []
    for _ in waiting:
        try:
            given_out.append(await asyncio.wait_for(client.get_output_async(), 0.05))
        except TimeoutError:
            break
        except RuntimeError as error:
            given_out.append(error)
    return given_out


def told(steps: list[Any]) -> dict[str, tuple[str, list[int], str | None, int | None]]:
    """What vLLM's own handling tells of each request: text, tokens, why it ended, and what was cached."""
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    processor = OutputProcessor(TOKENIZERS["bytes"], log_stats=False)
    heard: dict[str, list[Any]] = {}
    for request in range(5):
        params = parameters(Sampling(max_tokens=500))
        params.stop, params.output_text_buffer_length = ["was said"], 7
        collector = RequestOutputCollector(params.output_kind, str(request))
        heard[str(request)] = []
        collector.put = heard[str(request)].append  # type: ignore[method-assign,assignment]
        processor.add_request(engine_request(str(request), [1, 2, 3], params), None, None, 0, collector)
    for one in steps:
        processor.process_outputs(one.outputs, one.timestamp, None)
    return {
        request: (
            "".join(heard.outputs[0].text for heard in outputs),
            [token for heard in outputs for token in heard.outputs[0].token_ids],
            outputs[-1].outputs[0].finish_reason if outputs else None,
            outputs[-1].num_cached_tokens if outputs else None,
        )
        for request, outputs in heard.items()
    }


@given(
    batches=st.lists(st.dictionaries(STREAMS, st.integers(1, 3), max_size=5), min_size=1, max_size=40),
    waits=st.lists(st.integers(1, 6), min_size=1, max_size=10),
    ends=st.dictionaries(STREAMS, st.integers(1, 40)),
)
@example(batches=[{0: 1}] * 40, waits=[40], ends={})  # the stop text, and much behind it
@settings(deadline=None, max_examples=150)
def test_everybody_is_told_the_same(batches: list[dict[int, int]], waits: list[int], ends: dict[int, int]) -> None:
    from vllm.v1.engine import FinishReason
    from vllm.v1.metrics.stats import PrefillStats

    ids = TOKENIZERS["bytes"](TEXT)["input_ids"]
    said = dict.fromkeys(range(5), 0)
    over: set[int] = set()
    steps = []
    for number, batch in enumerate(batches):
        outputs = []
        for stream, count in batch.items():
            if stream in over:
                continue
            begun = said[stream]
            said[stream] += count
            first = {} if begun else {"prefill_stats": PrefillStats()}
            if first:
                first["prefill_stats"].num_cached_tokens = 2
            last = {"finish_reason": FinishReason.LENGTH} if said[stream] >= ends.get(stream, 999) else {}
            outputs.append(output(stream, [ids[at % len(ids)] for at in range(begun, said[stream])], **first, **last))
            if last:
                over.add(stream)
        steps.append(step(*outputs, timestamp=float(number + 1), finished_requests=set(map(str, over)) or None))
    plain = told(deepcopy(steps))

    async def in_groups() -> list[Any]:
        left, groups, turn = list(steps), [], 0
        while left:
            size = waits[turn % len(waits)]
            groups.append(await taken(*left[:size]))
            left, turn = left[size:], turn + 1
        assert all(len(group) == 1 for group in groups), "expected all that wait to be one step"
        return [one for group in groups for one in group]

    joined = asyncio.run(in_groups())
    together = told(joined)
    for request, (text, tokens, reason, cached) in plain.items():
        assert together[request][0] == text
        assert together[request][2:] == (reason, cached)
        # A text that ends a reply ends it within a step: vLLM counts that step's tokens.
        assert together[request][1] == tokens or (reason == "stop" and together[request][1][: len(tokens)] == tokens)
    assert joined[-1].timestamp == len(batches)
    assert set().union(*(one.finished_requests or () for one in joined)) == set(map(str, over))


async def test_what_would_be_lost_is_not_joined() -> None:
    from vllm.v1.metrics.stats import SchedulerStats

    plain, more = output(1, [5]), output(1, [6])
    several = [
        (step(output(1, [5], new_logprobs=object())), step(more)),
        (step(output(1, [5], num_nans_in_logits=1)), step(more)),
        (step(output(1, [5], kv_transfer_params={})), step(more)),
        (step(output(1, [5], finish_reason="stop")), step(more)),
        (step(plain, scheduler_stats=SchedulerStats()), step(more)),
        (step(plain), step(more, scheduler_stats=SchedulerStats())),
        (step(plain), step(more, wave_complete=1)),
        (step(plain), step(more, engine_index=1)),
    ]
    for steps in several:
        before = deepcopy([one.outputs[0].new_token_ids for one in steps])
        found = await taken(*steps)
        assert [id(one) for one in found] == [id(one) for one in steps]
        assert [one.outputs[0].new_token_ids for one in found] == before


async def test_what_comes_behind_is_in_its_order() -> None:
    stays = step(output(2, [7], new_logprobs=object()), wave_complete=3)
    found = await taken(step(output(1, [5])), step(output(1, [6])), stays, step(output(1, [8])), step(output(1, [9])))
    assert [[token for one in steps.outputs for token in one.new_token_ids] for steps in found] == [[5, 6], [7], [8, 9]]


async def test_an_engine_that_died_has_told_all_before() -> None:
    death = RuntimeError("it died")
    found = await taken(step(output(1, [5])), step(output(1, [6])), death)
    assert found[0].outputs[0].new_token_ids == [5, 6]
    assert found[1:] == [death]


async def test_events_and_headers_stay() -> None:
    stats = object()
    first = output(1, [5], events=["queued"], trace_headers={"a": "b"}, prefill_stats=stats)
    (found,) = await taken(step(first), step(output(1, [6])), step(output(1, [7], events=["preempted"])))
    (one,) = found.outputs
    assert (one.new_token_ids, one.events) == ([5, 6, 7], ["queued", "preempted"])
    assert (one.trace_headers, one.prefill_stats) == ({"a": "b"}, stats)


async def test_without_the_seam_steps_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog.seams, "holds", lambda name: name != "waiting steps" and seams.holds(name))
    assert len(await taken(step(output(1, [5])), step(output(1, [6])))) == 2


@pytest.mark.asyncio(loop_scope="session")
async def test_a_loop_that_was_held_up_is_told_the_same(engine: VllmEngine) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=60, ignore_eos=True)
    prompt = TOKENIZERS["bytes"](TEXT)["input_ids"]

    async def reply(held_up: float) -> list[Delta]:
        deltas: list[Delta] = []

        def hear(delta: Delta) -> None:
            deltas.append(delta)
            if max(delta.tokens for delta in deltas) == 1:
                time.sleep(held_up * len(deltas))  # longer each time, for an engine that had no processor

        await engine.generate(prompt, sampling, hear)
        return deltas

    plain, behind = await reply(0.0), await reply(0.1)
    assert max(delta.tokens for delta in behind) > 1
    assert [token for delta in behind for token in delta.token_ids] == [
        token for delta in plain for token in delta.token_ids
    ]
    assert "".join(delta.text for delta in behind) == "".join(delta.text for delta in plain)
    assert sum(delta.tokens for delta in behind) == 60
    assert behind[-1].finish_reason == "length"
