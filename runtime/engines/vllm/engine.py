"""vLLM's `AsyncLLM` behind the `Engine` interface: one code path for CPU and CUDA, vLLM 0.25 to 0.31.

Token ids in, deltas out. What vLLM's insides are used for, and what happens without them, stands in `contract`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import lru_cache
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import REGISTRY
from prometheus_client.core import Metric

from runtime.engines import Delta, EngineDeadError, EngineOptions, Load, Sampling, StartMark, TokenScore
from runtime.engines.vllm import contract, exercise, threads
from runtime.engines.vllm.arguments import engine_arguments, parameters, prepare_environment
from runtime.engines.vllm.caches import CacheCopy, copy_of
from runtime.engines.vllm.contract import seams
from runtime.engines.vllm.text import forget_prompt
from runtime.host import eager_tasks

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)

T = TypeVar("T")

# What its metrics' names begin with.
OWN_METRICS = "vllm:"

# vLLM never resolves a utility call whose engine process died while it waited, so waits look up this often.
DEATH_CHECK_S = 0.5

# Samplings whose parameters are kept: a server's turns share a few, and making them takes time before the first token.
KNOWN_SAMPLINGS = 256

# While it starts, how often is looked whether its process is there.
APART_CHECK_S = 0.05


class VllmEngine:
    """A Hugging Face folder, loaded by vLLM in processes of its own.

    Args:
        folder: config, weights and tokenizer.
        options: what reaches vLLM; checked in `start`.
        compile_cache: a `VLLM_CACHE_ROOT` that was filled ahead of time. vLLM writes into its cache and the artifact
            may be read-only, so a copy in a temporary folder is used; a `VLLM_CACHE_ROOT` in the environment wins.
            Triton's own cache lies inside (`caches`): with it no kernel is compiled again, nor Triton's C helper, for
            which a runtime image has no compiler.
    """

    def __init__(self, folder: Path, options: EngineOptions, *, compile_cache: Path | None = None) -> None:
        self._folder = folder
        self._options = options
        self._compile_cache = compile_cache
        self._scratch: CacheCopy | None = None  # the copy of `compile_cache` that vLLM writes to
        self._marks: list[StartMark] = []  # phases of the start
        self._others: set[BaseProcess] = set()  # processes of this one's that are not the engine's
        self._llm: AsyncLLM | None = None  # none before `start` and after `shutdown`
        self._ids = count()  # of requests
        self._running: set[str] = set()  # ids of requests that have not ended
        self._woken = -math.inf  # when somebody was about to speak
        self._aborts: set[asyncio.Future[None]] = set()  # on their way; kept, so that they are not collected
        # vLLM's form of a sampling, made once.
        self._parameters = lru_cache(KNOWN_SAMPLINGS)(parameters)

    async def start(self) -> None:
        """Load the model; return when it has generated a token.

        Raises:
            EngineOptionError: an option that vLLM does not know.
            EngineVersionError: this vLLM lacks what no engine can be started without.
            EngineDeadError: it was loaded, and does not generate.
        """
        if self._llm is not None:
            raise RuntimeError("the engine was started already")
        try:
            self._others = set(multiprocessing.active_children())
            self._marks = [(time.monotonic(), "spawn")]
            self._llm = await threads.in_a_new_one(self._load_model)
            self._marks.append((time.monotonic(), "exercise"))
            await exercise.prove(self._exercise, self.load)
            await self._note_marks(self._llm)
            wanted = self._options.graphs_after_readiness is not False
            if wanted and not contract.on_cpu() and seams.holds("later graphs"):
                self._keep(asyncio.ensure_future(self._capture_the_rest(self._llm)))
        except BaseException:
            await self.shutdown()
            raise

    async def apart(self) -> None:
        """Wait until the engine's process has been made, which may be forked from this one with all that it is."""
        while self._llm is None and not set(multiprocessing.active_children()) - self._others:  # noqa: ASYNC110
            await asyncio.sleep(APART_CHECK_S)  # vLLM makes it in a thread, and tells nobody

    async def _note_marks(self, llm: AsyncLLM) -> None:
        """Ask the engine's process when the phases of its start began."""
        if not seams.holds("load"):
            return
        from runtime.engines.vllm.core import MARKS

        try:
            marks = await exercise.in_time(self._call(llm, contract.ask_core(llm, MARKS)))
            self._marks += [(float(at), str(phase)) for at, phase in marks]
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001 - what is only told keeps nobody from being served
            log.info("its start's phases are unknown: %s", exercise.told(error))

    async def _capture_the_rest(self, llm: AsyncLLM) -> None:
        """Have graphs captured that readiness did not wait for, each while nothing runs where that ever is."""
        captured = 0

        async def one() -> int:
            nonlocal captured
            self._alive()
            left = max(await self._call(llm, llm.collective_rpc("next_graph")), default=-1)
            if left >= 0:
                captured += 1
                if captured == 1:
                    log.info("graphs: ready with a part of them; %d sizes are captured from now on", left + 1)
            return max(left, 0)

        def running() -> bool:
            return bool(self._running) or time.monotonic() < self._woken + exercise.SILENCE_S

        try:
            await exercise.in_silence(one, running)
            if captured:
                log.info("graphs: all are captured")
        except EngineDeadError:
            return
        except Exception as error:  # noqa: BLE001 - those that were captured serve all the same
            if self._llm is not None:  # else it is being shut down, and answers nothing any more
                log.warning(
                    "graphs: %s; batches go on in those that are there, somewhat padded. GRAPHS_AFTER_READINESS=false "
                    "captures all before readiness",
                    exercise.told(error),
                )

    async def _exercise(self) -> None:
        await exercise.generate_a_little(self.generate)

    def _load_model(self) -> AsyncLLM:
        prepare_environment(self._options)
        seams.check()
        if self._compile_cache is not None and "VLLM_CACHE_ROOT" not in os.environ:
            self._scratch = copy_of(self._compile_cache)
        arguments = engine_arguments(self._folder, self._options)
        llm = contract.start(arguments, self._executor, statistics=self._options.own_metrics)
        if not self._options.own_metrics:  # they want to see every step
            contract.take_together(llm)
        return llm

    @staticmethod
    def _executor(executor: type) -> type:
        """What takes the place of vLLM's executor."""
        if not seams.holds("load") and not seams.holds("first token"):
            return executor
        from runtime.engines.vllm.core import observed

        return observed(executor)

    def wake(self) -> None:
        """Have vLLM's processes awake when the next request comes, for which they were about to wait asleep.

        Between the socket and the engine's loop lie four threads that wake one another. Woken while the prompt is still
        rendered, they have the request sooner.
        """
        self._woken = time.monotonic()
        if self._llm is not None and (waking := contract.wake(self._llm)) is not None:
            self._keep(eager_tasks.start(waking))

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Reply to prompt token ids, telling `on_delta` every delta.

        When this is left early, by cancellation or an error, the abort has been handed to the engine before control
        returns; a `load` asked afterwards does not see the request any more.

        Raises:
            EngineDeadError: the engine process is gone.
            ValueError: vLLM refuses the request, such as a prompt longer than the context.
        """
        llm = self._alive()
        request_id = str(next(self._ids))
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        params = self._parameters(sampling)
        finished = False

        def put(output: RequestOutput | Exception) -> None:
            nonlocal finished
            if over.done():
                return
            try:
                if isinstance(output, Exception):
                    raise output
                finished = output.finished
                on_delta(delta_of(output))
            except Exception as error:  # noqa: BLE001 - vLLM would take it for its own death, and end every request
                over.set_exception(error)
            else:
                if finished:
                    over.set_result(None)

        self._running.add(request_id)
        try:
            if seams.holds("direct tokens"):
                added = contract.add(llm, request_id, prompt, params, put, cache_salt, each_token=sampling.each_token)
                forget_prompt(await added, prompt)
            else:
                async with aclosing(contract.outputs_of(llm, request_id, prompt, params, cache_salt)) as outputs:
                    async for output in outputs:
                        put(output)
                        if over.done():
                            break
            await over
        except contract.dead():
            finished = True
            raise EngineDeadError("the vLLM engine process died") from None
        except contract.refused() as error:
            raise ValueError(str(error)) from error
        finally:
            self._running.discard(request_id)
            if not finished:
                await self._abort(llm, request_id)

    def _keep(self, abort: asyncio.Future[None]) -> None:
        self._aborts.add(abort)

        def done(abort: asyncio.Future[None]) -> None:
            self._aborts.discard(abort)
            if not abort.cancelled():
                abort.exception()  # an engine that died is told where something is asked of it

        abort.add_done_callback(done)

    async def _abort(self, llm: AsyncLLM, request_id: str) -> None:
        # Shielded, so that a second cancellation cannot stop the abort half way.
        abort = asyncio.ensure_future(llm.abort(request_id))
        self._keep(abort)
        try:
            await asyncio.shield(abort)
        except contract.dead():
            return

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        """Prefill the prompt into the prefix cache, for requests with the same salt.

        Returns how many of its tokens were cached already.
        """
        deltas: list[Delta] = []
        await self.generate(prompt, Sampling(temperature=0.0, max_tokens=1), deltas.append, cache_salt)
        return deltas[-1].cached_tokens if deltas else 0

    def reusable(self, tokens: int) -> int:
        """How many of a prefix's tokens a longer prompt can take out of the prefix cache: its whole blocks."""
        block = contract.block_tokens(self._alive())
        return tokens // block * block

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """Score each token after the first, given those before it; `len(tokens) - 1` entries.

        vLLM computes the whole prompt anew for this: scores are not read from the prefix cache.
        """
        llm = self._alive()
        scores: list[TokenScore] = []
        try:
            async for output in contract.outputs_of(llm, str(next(self._ids)), tokens, contract.scoring_parameters()):
                # The first entry has no logprob: nothing comes before the first token.
                for token, entry in zip(tokens[1:], output.prompt_logprobs[1:], strict=True):
                    top = next(candidate for candidate, view in entry.items() if view.rank == 1)
                    scores.append(TokenScore(entry[token].logprob, top))
        except contract.dead():
            raise EngineDeadError("the vLLM engine process died") from None
        return scores

    def start_marks(self) -> Sequence[StartMark]:
        """When each phase began, in this process and in the engine's."""
        return self._marks

    def own_metrics(self) -> Iterable[Metric]:
        """vLLM's figures, `vllm:…`, which it keeps in the process's own registry; none without its statistics."""
        if not self._options.own_metrics:
            return ()
        return (family for family in REGISTRY.collect() if family.name.startswith(OWN_METRICS))

    async def load(self) -> Load:
        """The scheduler's own figures at this moment; every abort that was sent before is in them.

        Where vLLM cannot be asked, requests that have not ended all count as running, and the cache's use is no number.
        """
        llm = self._alive()
        if not seams.holds("load"):
            return Load(len(self._running), 0, math.nan)
        from runtime.engines.vllm.core import METHOD

        running, waiting, usage = await self._call(llm, contract.ask_core(llm, METHOD))
        return Load(int(running), int(waiting), float(usage))

    async def reset_caches(self) -> bool:
        """Drop the prefix cache; false when the engine refused because something runs."""
        llm = self._alive()
        return bool(await self._call(llm, llm.reset_prefix_cache()))

    async def health(self) -> None:
        """Raise EngineDeadError when the engine process is gone."""
        self._alive()

    async def shutdown(self) -> None:
        """Stop vLLM's processes and end what still runs with EngineDeadError; safe to call twice."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await contract.shut_down(llm)
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            await asyncio.to_thread(scratch.remove)

    def _alive(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineDeadError("the engine is not running")
        if self._llm.errored:
            raise EngineDeadError("the vLLM engine process died")
        return self._llm

    async def _call(self, llm: AsyncLLM, awaitable: Awaitable[T]) -> T:
        call = asyncio.ensure_future(awaitable)
        try:
            while not call.done():
                await asyncio.wait((call,), timeout=DEATH_CHECK_S)
                if not call.done() and llm.errored:
                    raise EngineDeadError("the vLLM engine process died")
            return call.result()
        except contract.dead():
            raise EngineDeadError("the vLLM engine process died") from None
        finally:
            call.cancel()


def delta_of(output: RequestOutput) -> Delta:
    """What one of vLLM's outputs adds to its reply.

    Raises:
        EngineDeadError: the engine ended the request, though nobody asked it to.
    """
    completion = output.outputs[0]
    reason = completion.finish_reason
    if reason is not None and reason not in ("stop", "length"):
        raise EngineDeadError(f"the engine ended the request itself ({reason})")
    tokens = completion.token_ids
    return Delta(completion.text, len(tokens), reason, output.num_cached_tokens or 0, tokens)
