"""vLLM's own output handling in front of an engine that costs nothing: alone, and with the whole server around it.

And what a turn costs through each door when many begin in the same moment.

What `AsyncLLM` does for each token in the server's process (detokenizing, making outputs) is vLLM's; only its engine
process is left out, and a table answers. So the difference is what the server adds, and the sum is what bounds one
process.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

from runtime.server.life.served import UNNAMED
from tests.benchmarks.gateway import cost, cpu_seconds, instant
from tests.benchmarks.load import Target, run_load
from tests.benchmarks.work import Figures, figures
from tests.harness.server import Server

STREAMS, REPLY = 256, 150
# Of a persona, in words; and turns of each stream in one measurement of starts.
WORDS, STARTS = 200, 6
# Outputs that vLLM handles before it lets others run: `VLLM_V1_OUTPUT_PROC_CHUNK_SIZE`.
CHUNK = 128
# Seconds between the steps of an engine that no process can keep up with.
QUICK_STEP = 0.002
TEXT = (
    "The sea was calm that morning, and nobody on the shore spoke of it. She walked along the water, counting boats. "
)


def engine_request(request_id: str, prompt: list[int], params: Any) -> Any:
    """Make a request as vLLM hands it to its engine and to its detokenizer."""
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id=request_id,
    )


class TableLLM:
    """A fake `AsyncLLM`, as far as `VllmEngine` uses one, on a table of tokens: every stream gets one in each step.

    Args:
        folder: the model whose tokenizer is used.
        tokens: length of a reply.
        pause: seconds between steps; 0 is as fast as can be.
        statistics: whether vLLM keeps its own, as with METRICS_ENGINE=1.
    """

    def __init__(self, folder: Path, tokens: int, pause: float, *, statistics: bool = False) -> None:
        from transformers import AutoTokenizer
        from vllm.v1.engine.output_processor import OutputProcessor

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ids = tokenizer(TEXT)["input_ids"]
        self._ids = (ids * (tokens // len(ids) + 1))[:tokens]
        self._pause = pause
        self._said: dict[str, int] = {}
        self._stepping: asyncio.Task[None] | None = None
        self._handling: asyncio.Task[None] | None = None
        self.outputs_queue: asyncio.Queue[Any] = asyncio.Queue()  # steps that wait, as vLLM's client has them
        self.output_processor = OutputProcessor(tokenizer, log_stats=statistics)
        self._statistics = statistics
        self.output_handler = None
        self.errored = False
        self.engine_core = self

    async def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> Any:
        """Begin a reply."""
        from vllm.v1.engine.output_processor import RequestOutputCollector

        request = engine_request(request_id, prompt["prompt_token_ids"], params)
        collector = RequestOutputCollector(params.output_kind, request_id)
        self.output_processor.add_request(request, None, None, 0, collector)
        self._said[request_id] = 0
        if self._handling is None:
            self._handling = asyncio.get_running_loop().create_task(self._handle())
        if self._stepping is None:
            self._stepping = asyncio.get_running_loop().create_task(self._step())
        return collector

    async def abort(self, request_id: str) -> None:
        """End a reply."""
        self._said.pop(request_id, None)
        self.output_processor.abort_requests([request_id], internal=False)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        """Do nothing: no request sleeps here."""

    def shutdown(self) -> None:
        """Do nothing: there is nothing to stop."""

    async def get_output_async(self) -> Any:
        """Wait for a step, as vLLM's client does."""
        return await self.outputs_queue.get()

    async def _handle(self) -> None:
        from vllm.v1.metrics.stats import IterationStats

        try:
            while True:
                step = await self.get_output_async()
                statistics = IterationStats() if self._statistics else None
                for start in range(0, len(step.outputs), CHUNK):  # as `AsyncLLM` does it
                    if start:
                        await asyncio.sleep(0)
                    chunk = step.outputs[start : start + CHUNK]
                    self.output_processor.process_outputs(chunk, step.timestamp, statistics)
        except Exception as error:
            self.output_processor.propagate_error(error)  # ends every reply with it

    async def _step(self) -> None:
        """Make steps, at their times: where this process is behind, as many as an engine would have made meanwhile."""
        due = time.monotonic() + self._pause
        while self._said:
            await asyncio.sleep(max(0.0, due - time.monotonic()) if self._pause else 0.0)
            for _ in range(1 + int((time.monotonic() - due) / self._pause) if self._pause else 1):
                self._make_a_step()
                due += self._pause
        self._stepping = None

    def _make_a_step(self) -> None:
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        last = len(self._ids) - 1
        outputs = []
        for request_id, said in list(self._said.items()):
            reason = FinishReason.LENGTH if said == last else None
            outputs.append(
                EngineCoreOutput(request_id=request_id, new_token_ids=[self._ids[said]], finish_reason=reason)
            )
            if said == last:
                del self._said[request_id]
            else:
                self._said[request_id] = said + 1
        if outputs:
            self.outputs_queue.put_nowait(EngineCoreOutputs(outputs=outputs))


def table_engine(folder: Path, tokens: int, pause: float, *, together: bool = True) -> Any:
    """Load our engine on a table; `together` as it is served, where steps that wait are taken as one."""
    from runtime.engines import EngineOptions, Load
    from runtime.engines.vllm import contract
    from runtime.engines.vllm.engine import VllmEngine

    class Table(VllmEngine):
        async def load(self) -> Load:
            """Return an empty load: nothing is scheduled here."""
            return Load(0, 0, 0.0)

    engine = Table(folder, EngineOptions())
    engine._llm = TableLLM(folder, tokens, pause)
    if together:
        contract.take_together(engine._llm)
    return engine


async def alone(
    folder: Path, streams: int, rounds: int, pause: float = 0.0, *, statistics: bool = False
) -> tuple[float, float]:
    """Measure vLLM's part alone: CPU in microseconds per token, and the median time to the first token in seconds.

    It is read the way `AsyncLLM.generate` reads it.
    """
    from runtime.engines import Sampling
    from runtime.engines.vllm.arguments import parameters

    llm = TableLLM(folder, REPLY, pause, statistics=statistics)
    firsts = []

    async def one(stream: int) -> None:
        for turn in range(rounds):
            began, first = time.perf_counter(), 0.0
            prompt = {"type": "token", "prompt_token_ids": [1] * 400}
            collector = await llm.add_request(f"{stream}-{turn}", prompt, parameters(Sampling(max_tokens=REPLY)))
            finished = False
            while not finished:
                output = collector.get_nowait() or await collector.get()
                first = first or time.perf_counter() - began
                finished = output.finished
            firsts.append(first)

    before = time.process_time()
    await asyncio.gather(*(one(stream) for stream in range(streams)))
    return (time.process_time() - before) / (streams * rounds * REPLY) * 1e6, median(firsts)


def front_section(folder: Path) -> None:
    """Measure both, one after the other, twice."""
    import uvloop

    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    print(f"\nfront: vLLM's output handling at {STREAMS} streams, alone and inside the server ({folder})")
    for _ in range(2):
        vllm, _ = uvloop.run(alone(folder, STREAMS, 2))
        told, _ = uvloop.run(alone(folder, STREAMS, 2, statistics=True))
        print(f"front: vLLM's part alone: {vllm:.1f} µs CPU per token; {told:.1f} with METRICS_ENGINE=1", flush=True)
        with instant(REPLY, INSTANT_MODEL=str(folder), INSTANT_ENGINE="vllm") as server:
            server.wait_ready()
            whole = cost(server, REPLY, STREAMS, 3)
            http = cost(server, REPLY, STREAMS, 3, "openai")
            server.stop()
        most = 1e6 / whole
        print(f"front: the server adds {whole - vllm:.1f} µs; one process makes {most:,.0f} tokens a second at most")
        print(f"front: a token over HTTP costs {http / whole:.2f} × one over the WebSocket")
    for engine in ("table", "vllm"):
        _starts(folder, engine)
    _full(folder)


def _full(folder: Path, times: int = 3) -> None:
    """Measure a process that is full: an engine makes more tokens than it can send, and waits for nobody."""
    variables = {"INSTANT_MODEL": str(folder), "INSTANT_ENGINE": "vllm"}
    made: dict[str, list[Figures]] = {"one by one": [], "together": []}
    with (
        instant(REPLY, QUICK_STEP, INSTANT_TOGETHER="0", **variables) as apart,
        instant(REPLY, QUICK_STEP, **variables) as together,
    ):
        for server in (apart, together):
            server.wait_ready()
        for number in range(times):
            for (name, all_made), server in zip(made.items(), (apart, together), strict=True):
                before = cpu_seconds(server)
                target = Target("yap", server.url, server.api_key, words=10)
                took = figures(STREAMS, run_load(target, STREAMS, 2, 1, first_seed=number * 1_000_000))
                all_made.append(took)
                used = (cpu_seconds(server) - before) / took.tokens * 1e6
                print(f"front: {took.line(f'full, steps {name}')} {used:.1f} µs", flush=True)
        for server in (apart, together):
            server.stop()
    ratios = [
        now.tokens_per_s / before.tokens_per_s for before, now in zip(made["one by one"], made["together"], strict=True)
    ]
    rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"front: {STREAMS} tokens every {QUICK_STEP * 1000:.1f} ms, {STREAMS / QUICK_STEP:,.0f} a second: where "
        f"waiting steps are taken together {median(ratios):.2f} × the tokens ({rounds})"
    )


def _starts(folder: Path, engine: str, times: int = 3) -> None:
    """Measure turns of one token, the doors in turns: what is left of a turn then is its start and its end."""
    with instant(1, INSTANT_MODEL=str(folder), INSTANT_ENGINE=engine) as server:
        server.wait_ready()
        found: dict[str, list[float]] = {"yap": [], "openai": []}
        for number in range(times):
            for door, used in found.items():
                used.append(_start(server, door, engine, number * 1_000_000))
        server.stop()
    ratios = sorted(http / socket for socket, http in zip(found["yap"], found["openai"], strict=True))
    print(f"front: {engine}: a turn's start and end over HTTP cost {median(ratios):.2f} × those over the WebSocket")


def _start(server: Server, door: str, engine: str, seed: int) -> float:
    targets = {
        "yap": Target("yap", server.url, server.api_key, words=WORDS),
        "openai": Target("openai", server.http, server.api_key, model=UNNAMED, words=WORDS, max_tokens=1),
    }
    run_load(targets[door], STREAMS, 1, 1, seed, 1)  # so that personas are known, as in a conversation that goes on
    before = cpu_seconds(server)
    samples = run_load(targets[door], STREAMS, STARTS, 1, seed + 500_000, 1)
    took = figures(STREAMS, samples)
    used = (cpu_seconds(server) - before) / took.turns * 1e6
    print(
        f"front: {engine:5} {door:6} {STREAMS} turns of one token together: {used:6.1f} µs server CPU a turn, TTFT p50 "
        f"{took.ttft_p50 * 1000:.0f} ms, p95 {took.ttft_p95 * 1000:.0f} ms",
        flush=True,
    )
    return used
