"""The first use of an engine that was loaded: it generates a little the way that turns do, and tells its load.

What fails at that, though vLLM has every name of it, is not used from now on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from runtime.engines import Delta, EngineDeadError, Load, Sampling
from runtime.engines.vllm import contract
from runtime.engines.vllm.contract import seams
from runtime.host.timeouts import within

T = TypeVar("T")

# A prompt, how its reply is drawn, and who hears of it.
Generate = Callable[[list[int], Sampling, Callable[[Delta], None]], Awaitable[None]]

# Does a part of some work, and tells how many are left. Whether a request is under way.
Step = Callable[[], Awaitable[int]]
Running = Callable[[], bool]

# Enough streams for the batched form of vLLM's sampler, which small batches do not use.
STREAMS = 32

# After so long without a request nobody is about to speak, for all that is known; looked at so often.
SILENCE_S = 1.0
LOOK_S = 0.1

# Where somebody always speaks, how long a step waits for silence. It holds up all who speak, by 50 to 90 ms. One that
# took longer than this had something to compile, and from then on steps wait for silence.
PATIENCE_S, SLOW_S = 5.0, 0.5

# Each part at most: kernels are compiled in it, which took 7 s at most (an H200); a CPU generates two tokens.
TIMEOUT_S = 120.0


async def prove(use: Callable[[], Awaitable[None]], load: Callable[[], Awaitable[Load]]) -> None:
    """Have an engine generate, and tell its load.

    Args:
        use: generates a little (`generate_a_little`).
        load: asks for the load.

    Raises:
        EngineDeadError: it does not generate, or it died.
    """
    direct = seams.holds("direct tokens")
    try:
        await in_time(use())
    except (asyncio.TimeoutError, AttributeError, TypeError) as error:
        if not direct:
            raise EngineDeadError(f"{seams.release} did not generate: {told(error)}") from error
        seams.give_up("direct tokens", f"generating failed: {told(error)}")
        await prove(use, load)
        return
    try:
        await in_time(load())
    except EngineDeadError:
        raise
    except Exception as error:  # noqa: BLE001 - vLLM raises its own engine's failure as a plain one
        seams.give_up("load", f"asking for it failed: {told(error)}")


async def generate_a_little(generate: Generate) -> None:
    """Generate alone and in a batch, the way that turns do.

    vLLM compiles its sampling kernels when they are first needed, which is not while it captures its graphs: without
    this the first full batch of real turns waits for seconds.
    """

    async def once(number: int, sampling: Sampling) -> None:
        await generate([number], replace(sampling, max_tokens=2, ignore_eos=True), lambda delta: None)

    # Three kernels: both filters, one of them, none.
    ways = (Sampling(), Sampling(top_k=0), Sampling(top_k=0, top_p=1.0))
    on_cpu = contract.on_cpu()
    for streams in (1,) if on_cpu else (1, STREAMS):
        for sampling in ways[:1] if on_cpu else ways:
            await asyncio.gather(*(once(number, sampling) for number in range(streams)))


async def in_silence(step: Step, running: Running, clock: Callable[[], float] = time.monotonic) -> None:
    """Do something step by step until a step says that none is left: each while nothing has run for a while.

    Where that never is, each when it has waited long enough, as long as none was slow.
    """
    silent, waited, left, patience = 0, 0, 1, PATIENCE_S
    while left:
        await asyncio.sleep(LOOK_S)
        waited += 1
        silent = 0 if running() else silent + 1
        if silent * LOOK_S >= SILENCE_S or waited * LOOK_S >= patience:
            began = clock()
            waited, left = 0, await step()
            if clock() - began > SLOW_S:
                patience = math.inf


async def in_time(awaitable: Awaitable[T]) -> T:
    """What is awaited, as long as it may take.

    Raises:
        asyncio.TimeoutError: it takes longer.
    """
    return await within(TIMEOUT_S, awaitable)


def told(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, asyncio.TimeoutError):
        return f"nothing within {TIMEOUT_S:.0f} s"
    return f"{type(error).__name__}: {error}".partition("\n")[0]
