"""Steps that wait for this process are taken as one, and everybody is told the same as one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.engines import Delta, Sampling
from runtime.engines.vllm.arguments import parameters
from runtime.engines.vllm.contract import backlog, seams, take_together
from runtime.engines.vllm.engine import VllmEngine, delta_of
from runtime.engines.vllm.text import forget_prompt
from runtime.text.replies.pause import Pause, Pausing
from tests.benchmarks.front import engine_request
from tests.harness.models.chat_templates import detokenizing

pytestmark = pytest.mark.engine

STREAMS = st.integers(0, 4)
TOKENIZERS = detokenizing()
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


async def taken(*waiting: Any, apart: Collection[int] = ()) -> list[Any]:
    """What the handler is given, one after the other: steps, and what is raised."""
    client = Client(*waiting)
    states = {str(one): SimpleNamespace(queue=SimpleNamespace(one_by_one=True)) for one in apart}
    states["0"] = states.get("0", SimpleNamespace(queue=None))
    processor = SimpleNamespace(request_states=states)
    take_together(SimpleNamespace(engine_core=client, output_processor=processor))  # type: ignore[arg-type]
    given_out: list[Any] = []
    for _ in waiting:
        try:
            given_out.append(await asyncio.wait_for(client.get_output_async(), 0.05))
        except TimeoutError:
            break
        except RuntimeError as error:
            given_out.append(error)
    return given_out


def told(steps: list[Any]) -> dict[str, tuple[str, list[list[int]], str | None, int | None]]:
    """What vLLM's own handling tells of each request: text, each output's tokens, why it ended, what was cached."""
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
            [list(heard.outputs[0].token_ids) for heard in outputs],
            outputs[-1].outputs[0].finish_reason if outputs else None,
            outputs[-1].num_cached_tokens if outputs else None,
        )
        for request, outputs in heard.items()
    }


@given(
    batches=st.lists(st.dictionaries(STREAMS, st.integers(1, 3), max_size=5), min_size=1, max_size=40),
    waits=st.lists(st.integers(1, backlog.MOST_STEPS), min_size=1, max_size=10),
    ends=st.dictionaries(STREAMS, st.integers(1, 40)),
    apart=st.sets(STREAMS, max_size=2),
)
@example(batches=[{0: 1}] * 40, waits=[backlog.MOST_STEPS], ends={}, apart=set())  # the stop text, and much behind it
@settings(deadline=None, max_examples=150)
def test_everybody_is_told_the_same(
    batches: list[dict[int, int]], waits: list[int], ends: dict[int, int], apart: set[int]
) -> None:
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
        steps.append(
            step(*outputs, timestamp=float(number + 1), finished_requests={f"end {number}"} if number % 3 else None)
        )
    plain = told(deepcopy(steps))

    async def in_groups() -> list[Any]:
        left, groups, turn = list(steps), [], 0
        while left:
            size = waits[turn % len(waits)]
            groups.append(await taken(*left[:size], apart=apart))
            left, turn = left[size:], turn + 1
        assert all(len(group) == 1 for group in groups), "expected all that wait to be one step"
        return [one for group in groups for one in group]

    joined = asyncio.run(in_groups())
    together = told(joined)
    for request, (text, tokens, reason, cached) in plain.items():
        assert together[request][0] == text
        assert together[request][2:] == (reason, cached)
        if int(request) in apart:
            assert together[request][1] == tokens
            continue
        all_of_them, found = list(chain(*tokens)), list(chain(*together[request][1]))
        # vLLM counts what comes behind a text that ends a reply, within a step. The runtime gives it no such texts.
        assert found == all_of_them or (reason == "stop" and found[: len(all_of_them)] == all_of_them)
    assert joined[-1].timestamp == len(batches)
    ends_told = set().union(*(one.finished_requests or () for one in joined))
    assert ends_told == {f"end {number}" for number in range(len(batches)) if number % 3}


async def test_what_would_be_lost_stands_by_itself() -> None:
    more = output(1, [6])
    for first in (
        output(1, [5], new_logprobs=object()),
        output(1, [5], num_nans_in_logits=1),
        output(1, [5], kv_transfer_params={}),
        output(1, [5], finish_reason="stop"),
    ):
        (found,) = await taken(step(output(2, [1]), first), step(more, output(2, [2])), step(output(2, [3])))
        joined, *others = found.outputs
        assert joined.new_token_ids == [1, 2, 3]
        assert [id(one) for one in others] == [id(first), id(more)]
        assert more.new_token_ids == [6]


async def test_steps_that_say_more_are_handed_out_as_they_are() -> None:
    from vllm.v1.metrics.stats import SchedulerStats

    several = [
        (step(output(1, [5]), scheduler_stats=SchedulerStats()), step(output(1, [6]))),
        (step(output(1, [5])), step(output(1, [6]), scheduler_stats=SchedulerStats())),
        (step(output(1, [5])), step(output(1, [6]), wave_complete=1)),
        (step(output(1, [5])), step(output(1, [6]), engine_index=1)),
    ]
    for steps in several:
        found = await taken(*steps)
        assert [id(one) for one in found] == [id(one) for one in steps]
        assert [[one.new_token_ids for one in steps.outputs] for steps in found] == [[[5]], [[6]]]


async def test_who_counts_tokens_is_told_each_step() -> None:
    (found,) = await taken(*(step(output(1, [token]), output(2, [token])) for token in range(4)), apart=[2])
    assert [(one.request_id, one.new_token_ids) for one in found.outputs] == [
        ("1", [0, 1, 2, 3]),
        *(("2", [token]) for token in range(4)),
    ]


async def test_no_more_are_joined_than_the_loop_may_be_held_up_for() -> None:
    found = await taken(*(step(output(1, [token])) for token in range(20)))
    assert [token for one in found for token in one.outputs[0].new_token_ids] == list(range(20))
    assert [len(one.outputs[0].new_token_ids) for one in found] == [backlog.MOST_STEPS, backlog.MOST_STEPS, 4]


async def test_two_outputs_of_one_request_in_one_step_stay_in_order() -> None:
    end = output(1, [6], finish_reason="stop")
    (found,) = await taken(step(output(1, [5])), step(end, output(1, [7])))
    assert [(one.new_token_ids, one.finish_reason) for one in found.outputs] == [([5, 6], "stop"), ([7], None)]


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


class Joining:
    """An engine that says one text, by vLLM's own handling, so many steps at once; heedless of who wants each token."""

    continues = True

    def __init__(self, ids: list[int], begins: int, size: int, *, heedless: bool) -> None:
        self._ids, self._begins, self._size, self._heedless = ids, begins, size, heedless

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        from vllm.v1.engine import FinishReason
        from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

        processor, params = OutputProcessor(TOKENIZERS["bytes"], log_stats=False), parameters(sampling)
        collector = RequestOutputCollector(params.output_kind, "1")
        collector.put = lambda heard: on_delta(delta_of(heard))  # type: ignore[method-assign,assignment]
        processor.add_request(engine_request("1", list(prompt), params), None, None, 0, collector)
        forget_prompt(processor.request_states["1"], prompt)
        left = self._ids[len(prompt) - self._begins :]
        last = {len(left) - 1: FinishReason.LENGTH}
        steps = [step(output(1, [token], finish_reason=last.get(place))) for place, token in enumerate(left)]
        size = self._size if self._heedless or not sampling.each_token else 1
        for begin in range(0, len(steps), size):
            first, *others = steps[begin : begin + size]
            assert all(backlog.join(first, other) for other in others)
            processor.process_outputs(first.outputs, first.timestamp, None)


@given(size=st.integers(1, 9), tokens=st.integers(1, 20), heedless=st.booleans(), words=st.integers(0, 40))
@example(size=2, tokens=1, heedless=True, words=40)
@settings(deadline=None, max_examples=60)
def test_a_reply_that_rests_is_cut_between_characters(size: int, tokens: int, heedless: bool, words: int) -> None:
    ids, prompt = TOKENIZERS["bytes"](TEXT)["input_ids"], TOKENIZERS["bytes"]("secret " * words + "say: ")["input_ids"]
    said: list[str] = []

    async def spoken() -> bool:
        pause = Pause(tokens)
        engine = Pausing(Joining(ids, len(prompt), size, heedless=heedless), pause)  # type: ignore[arg-type]
        sampling = Sampling(temperature=0.0, max_tokens=len(ids))
        reply = asyncio.ensure_future(engine.generate(prompt, sampling, lambda delta: said.append(delta.text)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pause.end()
        await reply
        return pause.spoilt

    spoilt = asyncio.run(spoken())
    assert "".join(said) == TEXT or spoilt
    assert heedless or not spoilt


@pytest.mark.parametrize("each_token", [False, True])
@pytest.mark.asyncio(loop_scope="session")
async def test_a_loop_that_was_held_up_is_told_the_same(engine: VllmEngine, *, each_token: bool) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=20 if each_token else 60, ignore_eos=True, each_token=each_token)
    prompt = TOKENIZERS["bytes"](TEXT)["input_ids"]

    async def reply(held_up: float) -> list[Delta]:
        deltas: list[Delta] = []

        def hear(delta: Delta) -> None:
            deltas.append(delta)
            if max(delta.tokens for delta in deltas) == 1 and len(deltas) < (8 if each_token else 60):
                time.sleep(held_up * len(deltas))  # longer each time, for an engine that had no processor

        await engine.generate(prompt, sampling, hear)
        return deltas

    plain, behind = await reply(0.0), await reply(0.1)
    assert (max(delta.tokens for delta in behind) == 1) is each_token
    assert [token for delta in behind for token in delta.token_ids] == [
        token for delta in plain for token in delta.token_ids
    ]
    assert "".join(delta.text for delta in behind) == "".join(delta.text for delta in plain)
    assert sum(delta.tokens for delta in behind) == sampling.max_tokens
    assert behind[-1].finish_reason == "length"
