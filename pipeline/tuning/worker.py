"""The worker: a process that starts one engine, measures it or scores replies with it, and writes what it found.

It is `python -m pipeline.tuning.worker JOB.json`, and ends when its standard input closes. A process of its own,
because options that are tried may crash, hang, or leave a GPU in a state that only the end of a process mends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pipeline.quantize.worker import open_progress
from pipeline.validate.speed import greedy, reply_to
from pipeline.validate.text_under_load import Asked, loss_of, replies_of, score_of
from runtime import engines
from runtime.engines import Engine, EngineOptions

# Tokens of one stream's reply, of each reply of a burst, and of each of the most streams: a run takes some seconds.
ALONE_TOKENS, BURST_TOKENS, FULL_TOKENS = 96, 16, 64
BURST_STREAMS, MOST_STREAMS = 64, 256
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker is told.

    Attributes:
        kind: `measure` an engine, or `judge` replies by it.
        folder: the model.
        engine: what loads it.
        options: what it is started with.
        streams: that run at once.
        asked: prompts of several lengths, with how long their replies may be.
        prompts: of the speed test, one a stream; equally long.
        served: replies to judge.
        plain: replies to hold them against.
        out: file to write.
    """

    kind: Literal["measure", "judge"]
    folder: Path
    engine: str
    options: EngineOptions
    streams: int
    asked: tuple[Asked, ...]
    prompts: tuple[tuple[int, ...], ...]
    out: Path
    served: tuple[tuple[int, ...], ...] = ()
    plain: tuple[tuple[int, ...], ...] = ()

    def write(self, path: Path) -> None:
        """Write the job to a JSON file."""
        document = asdict(self) | {"folder": str(self.folder), "out": str(self.out)}
        path.write_text(json.dumps(document), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read a job from the JSON file that `write` wrote."""
        told: dict[str, Any] = json.loads(path.read_bytes())
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in told["options"].items()
        }
        return cls(
            kind=told["kind"],
            folder=Path(told["folder"]),
            engine=told["engine"],
            options=EngineOptions(**options),
            streams=told["streams"],
            asked=tuple(Asked(tuple(one["prompt"]), one["reply_tokens"]) for one in told["asked"]),
            prompts=_tuples(told["prompts"]),
            out=Path(told["out"]),
            served=_tuples(told["served"]),
            plain=_tuples(told["plain"]),
        )


def _tuples(lists: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, lists))


async def measure(engine: Engine, job: Job, repeats: int = REPEATS) -> Mapping[str, Any]:
    """Measure an engine several times, and return the figures of each run and its replies under load.

    Prompts are in the prefix cache, as a conversation's are: a first run, which counts for nothing, puts them there.
    """
    replies = await replies_of(engine, job.asked, job.streams)
    runs = [await _run(engine, job.prompts) for _ in range(repeats + 1)][1:]
    return {"runs": runs, "replies": replies}


async def _run(engine: Engine, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    alone = [await reply_to(engine, prompts[0], greedy(ALONE_TOKENS, ignore_eos=True)) for _ in range(2)]
    burst = greedy(BURST_TOKENS, ignore_eos=True)
    together = await asyncio.gather(*(reply_to(engine, prompt, burst) for prompt in prompts[:BURST_STREAMS]))
    loop = asyncio.get_running_loop()
    full = greedy(FULL_TOKENS, ignore_eos=True)
    begun = loop.time()
    replies = await asyncio.gather(*(reply_to(engine, prompt, full) for prompt in prompts))
    seconds = loop.time() - begun
    gaps = [reply.itl_s for reply in alone if reply.itl_s is not None]
    return {
        "itl_ms": 1000 * median(gaps),
        "ttft_ms": 1000 * median(reply.ttft_s for reply in together),
        "tokens_per_s": sum(reply.tokens for reply in replies) / seconds,
    }


async def judge(engine: Engine, job: Job) -> Mapping[str, Any]:
    """Have an engine say by how much less probable the served replies are than the plain ones."""
    served, plain = [await score_of(engine, job.asked, replies) for replies in (job.served, job.plain)]
    return asdict(loss_of(served, plain))


WORK: Mapping[str, Callable[[Engine, Job], Awaitable[Mapping[str, Any]]]] = {"measure": measure, "judge": judge}


async def work(job: Job) -> Mapping[str, Any]:
    """Start the job's engine, do its work, and stop it whatever happens."""
    engine = engines.for_model(job.engine, job.folder, job.options)
    try:
        await engine.start()
        return await WORK[job.kind](engine, job)
    finally:
        await engine.shutdown()


def main(path: str) -> None:
    """Do one job."""
    open_progress()
    job = Job.read(Path(path))
    found = asyncio.run(work(job))
    partial = job.out.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(job.out)


if __name__ == "__main__":
    main(sys.argv[1])
