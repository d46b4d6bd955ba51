"""The worker: a process that starts one engine, measures it or scores replies with it, and writes what it found.

It is `python -m pipeline.tuning.worker JOB.json`, and ends when its standard input closes. A process of its own,
because options that are tried may crash, hang, or leave a GPU in a state that only the end of a process mends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pipeline.quantize.worker import open_progress
from pipeline.validate.speed import Reply, greedy, reply_to
from pipeline.validate.text_under_load import Asked, loss_of, replies_of, score_of
from runtime import engines
from runtime.engines import Engine, EngineOptions

# Tokens of one stream's reply, of each reply of a burst, and of each of the most streams: a run takes some seconds.
ALONE_TOKENS, BURST_TOKENS, FULL_TOKENS = 96, 4, 64
BURST_STREAMS, MOST_STREAMS = 64, 256
# A first token takes tens of milliseconds, and one of them tells little: so many are begun, and so many bursts.
STARTS, BURSTS, LONGS = 8, 3, 3
# Seconds without a request before each of them, as between a listener's turns: out of silence the processor that
# launches the GPU's work is slow, which is most of such a first token, and what some options change.
SILENCE_S = 0.3
# Tokens of a prompt that the prefix cache has not seen, as many as a sentence that was said has.
NEW_TOKENS = 24
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
        long: one that is longer, and new each time that it is asked.
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
    long: tuple[int, ...]
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
            long=tuple(told["long"]),
            out=Path(told["out"]),
            served=_tuples(told["served"]),
            plain=_tuples(told["plain"]),
        )


def _tuples(lists: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, lists))


async def measure(engine: Engine, job: Job, repeats: int = REPEATS) -> Mapping[str, Any]:
    """Measure an engine several times, and return the figures of each run and its replies under load.

    Prompts are in the prefix cache but for their last words, as a conversation's are: a first run, which counts for
    nothing, puts them there.
    """
    replies = await replies_of(engine, job.asked, job.streams)
    turns = count()
    runs = [await _run(engine, job, turns) for _ in range(repeats + 1)][1:]
    return {"runs": runs, "replies": replies}


async def _run(engine: Engine, job: Job, turns: Iterator[int]) -> dict[str, float]:
    prompts = job.prompts

    async def say(prompt: Sequence[int], tokens: int) -> Reply:
        return await reply_to(engine, turn(prompt, next(turns)), greedy(tokens, ignore_eos=True))

    async def together(prompts: Sequence[Sequence[int]], tokens: int) -> list[Reply]:
        return list(await asyncio.gather(*(say(prompt, tokens) for prompt in prompts)))

    async def out_of_silence(prompts: Sequence[Sequence[int]], tokens: int) -> list[Reply]:
        await asyncio.sleep(SILENCE_S)
        engine.wake()  # as the server does, before it renders a prompt
        return await together(prompts, tokens)

    alone = [await say(prompts[0], ALONE_TOKENS) for _ in range(2)]
    long = [await reply_to(engine, unseen(job.long, next(turns)), greedy(1, ignore_eos=True)) for _ in range(LONGS)]
    starts = [reply for _ in range(STARTS) for reply in await out_of_silence(prompts[:1], 1)]
    bursts = [reply for _ in range(BURSTS) for reply in await out_of_silence(prompts[:BURST_STREAMS], BURST_TOKENS)]
    loop = asyncio.get_running_loop()
    begun = loop.time()
    replies = await together(prompts, FULL_TOKENS)
    seconds = loop.time() - begun
    gaps = [reply.itl_s for reply in alone if reply.itl_s is not None]
    return {
        "itl_ms": 1000 * median(gaps),
        "ttft_one_ms": 1000 * median(reply.ttft_s for reply in starts),
        "ttft_ms": 1000 * median(reply.ttft_s for reply in bursts),
        "ttft_long_ms": 1000 * median(reply.ttft_s for reply in long),
        "tokens_per_s": sum(reply.tokens for reply in replies) / seconds,
    }


def turn(prompt: Sequence[int], number: int) -> list[int]:
    """Return a prompt whose last tokens are others in each turn, but the same for every candidate.

    >>> turn(list(range(8)), 1), turn([5], 3)
    ([0, 1, 2, 3, 1, 2, 3, 4], [5])
    """
    new = min(NEW_TOKENS, len(prompt) // 2)
    known = len(prompt) - new
    return [*prompt[:known], *(prompt[(number + place) % len(prompt)] for place in range(new))]


def unseen(prompt: Sequence[int], number: int) -> list[int]:
    """Return a prompt that begins elsewhere for each number, so that a prefix cache has nothing of one that is long.

    >>> unseen([1, 2, 3, 4, 5, 6], 4)
    [5, 6, 1, 2, 3, 4]
    """
    begin = number % len(prompt)
    return [*prompt[begin:], *prompt[:begin]]


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
