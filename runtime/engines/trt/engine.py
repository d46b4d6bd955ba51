"""TensorRT-LLM behind the `Engine` interface: a compiled engine, or its PyTorch backend on a Hugging Face folder.

Written for TensorRT-LLM 1.2, the last line that compiles engines. It runs its worker in a process of its own, which
MPI starts: on one GPU too, and without `mpirun`. Each request has a task that takes the steps from TensorRT-LLM as they
come and goes on doing so after an abort, because leaving the iteration does not end a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client.core import Metric

from runtime.artifact.generations import readable
from runtime.defaults import first_set
from runtime.engines import Delta, EngineDeadError, EngineOptions, Load, Sampling, StartMark, TokenScore
from runtime.engines.trt.arguments import Backend, check_version, kv_cache_arguments, llm_arguments, sampling_arguments
from runtime.engines.trt.folders import BLOCK_TOKENS, EngineFolder
from runtime.engines.trt.requests import TrtRequest, kind_of, request_error
from runtime.engines.trt.tokens import SpecialTokens
from runtime.host.supervision import Background, repeat

if TYPE_CHECKING:
    from tensorrt_llm import SamplingParams

# How often the worker is asked whether it lives while something runs; a dead one answers no request.
HEALTH_INTERVAL_S = 0.5
# And after it could not be asked, a few times in a row.
HEALTH_LONGEST_WAIT_S = 1.0
STATISTICS_TIMEOUT_S = 0.1
# Positions of a text that are asked for their next token at the same time.
SCORES_AT_ONCE = 64

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # OpenMPI starts the worker: containers run as root, and have fewer slots than it counts.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}

log = structlog.get_logger(__name__)


class TrtEngine:
    """A model, loaded by TensorRT-LLM.

    Args:
        model: folder of a compiled engine, or a Hugging Face folder for the PyTorch backend.
        options: what reaches TensorRT-LLM.
        tokenizer: folder with the tokenizer and `generation_config.json`.
        backend: which of the two `model` is.
    """

    # Text is made of the reply's tokens alone (`runtime.engines.continues`).
    continues = False

    def __init__(self, model: Path, options: EngineOptions, *, tokenizer: Path, backend: Backend) -> None:
        self._model = model
        self._options = options
        self._tokenizer = tokenizer
        self._backend = backend
        self._llm: Any = None  # two unrelated classes of TensorRT-LLM's with the same methods
        self._special: SpecialTokens | None = None  # read by `start`
        self._dead: EngineDeadError | None = None  # why nothing can be generated any more
        self._requests: set[TrtRequest] = set()  # those that TensorRT-LLM has not ended
        self._block_tokens = 0  # in a block of the prefix cache; 0 when there is none
        self._background = Background()  # one task a request, and the watch over the worker
        self._usage = 0.0  # used part of the KV cache, when it was last told

    async def start(self) -> None:
        """Load the model; return when it has generated a token.

        Raises:
            ArtifactError: the engine belongs to another version, or is too small for the options.
            EngineOptionError: an option that TensorRT-LLM does not know.
            CudaError: the GPU cannot be used, with the diagnosis.
        """
        if self._llm is not None:
            raise RuntimeError("the engine was started already")
        try:
            # In a thread: loading takes up to minutes, and the server answers /healthz meanwhile.
            self._llm = await asyncio.to_thread(self._load_model)
            self._background.spawn("trt_watch", self._watch())
            await self.warm([self._tokens().end_id])
        except BaseException:
            await self.shutdown()
            raise

    def _load_model(self) -> Any:  # noqa: ANN401 - see `_llm`
        from runtime.host import cuda, machine

        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._special = SpecialTokens.read(self._tokenizer)
        arguments = llm_arguments(self._model, self._options, tokenizer=self._tokenizer, backend=self._backend)
        here = machine.describe()
        engine = EngineFolder.read(self._model) if self._backend == "engine" else None
        if engine:
            check_version(engine, here.packages.get("tensorrt-llm"))
        if here.gpus:
            cuda.check_cuda(here)
        from tensorrt_llm.llmapi import KvCacheConfig

        cache = kv_cache_arguments(self._options, engine)
        if cache["enable_block_reuse"]:
            self._block_tokens = engine.block_tokens if engine else BLOCK_TOKENS
        arguments["kv_cache_config"] = KvCacheConfig(**cache)
        if engine:
            from tensorrt_llm._tensorrt_engine import LLM
        else:
            from tensorrt_llm import LLM
        folders = {"tokenizer": self._tokenizer, **({} if engine else {"model": self._model})}
        with contextlib.ExitStack() as kept:
            arguments |= {name: str(kept.enter_context(readable(folder))) for name, folder in folders.items()}
            return LLM(**arguments)

    def wake(self) -> None:
        """Do nothing: TensorRT-LLM's executor has no request without effect that would wake it."""

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Reply to prompt token ids, telling `on_delta` every delta.

        When this is left early, by cancellation or an error, TensorRT-LLM has been told to abort before control
        returns. How much of a prompt came out of the cache is not told by TensorRT-LLM.

        Raises:
            EngineDeadError: the worker is gone.
            ValueError: TensorRT-LLM refuses the request, such as a prompt longer than the context.
        """
        request = self._submit(prompt, sampling, cache_salt)
        try:
            while True:
                step = await request.next_step()
                on_delta(Delta(step.text, len(step.tokens), step.reason, token_ids=step.tokens))
                if step.reason is not None:
                    return
        finally:
            self._abort(request)

    def _submit(self, prompt: Sequence[int], sampling: Sampling, cache_salt: str | None = None) -> TrtRequest:
        from tensorrt_llm import SamplingParams

        llm = self._alive()
        params: SamplingParams = SamplingParams(**sampling_arguments(sampling, self._tokens()))
        try:
            output = llm.generate_async(list(prompt), sampling_params=params, streaming=True, cache_salt=cache_salt)
        except RuntimeError as error:
            refusal = request_error(error)
            raise refusal or EngineDeadError(f"TensorRT-LLM takes no requests any more ({kind_of(error)})") from error
        request = TrtRequest(output)
        self._requests.add(request)
        self._background.spawn("trt_steps", request.take_steps(self._requests.discard))
        return request

    def _abort(self, request: TrtRequest) -> None:
        if not self._dead:
            request.abort()

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        """Prefill the prompt into the prefix cache, for requests with the same salt.

        Returns 0, because TensorRT-LLM does not tell what was cached already.
        """
        await self.generate(prompt, Sampling(temperature=0.0, max_tokens=1), lambda delta: None, cache_salt)
        return 0

    def reusable(self, tokens: int) -> int:
        """How many of a prefix's tokens a longer prompt can take out of the prefix cache: its whole blocks."""
        return tokens // self._block_tokens * self._block_tokens if self._block_tokens else 0

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """What the model would have chosen at each position; probabilities are not a number.

        An engine gives the probabilities of a prompt only when it was built to, which costs memory for the logits of
        every prompt token for ever. So each position is asked for its next token by a request of its own. The longest
        goes first: the others then find their blocks in the prefix cache.
        """
        room = asyncio.Semaphore(min(first_set(self._options.max_num_seqs, default=SCORES_AT_ONCE), SCORES_AT_ONCE))
        sampling = Sampling(temperature=0.0, max_tokens=1, ignore_eos=True)

        async def top(length: int) -> int:
            async with room:
                request = self._submit(tokens[:length], sampling)
                try:
                    while not (step := await request.next_step()).tokens:
                        if step.reason is not None:
                            raise EngineDeadError("TensorRT-LLM ended a request without a token")
                    return step.tokens[0]
                finally:
                    self._abort(request)

        if len(tokens) < 2:
            return []
        last = await top(len(tokens) - 1)
        earlier = await asyncio.gather(*(top(length) for length in range(1, len(tokens) - 1)))
        return [TokenScore(float("nan"), token) for token in (*earlier, last)]

    def start_marks(self) -> Sequence[StartMark]:
        """None: TensorRT-LLM tells nothing of its start."""
        return ()

    def own_metrics(self) -> Iterable[Metric]:
        """Nothing: TensorRT-LLM keeps no metrics in Prometheus' form; its scheduler's figures are in `load`."""
        return ()

    async def load(self) -> Load:
        """Requests that TensorRT-LLM has not ended, and its KV cache's use in its last step.

        An aborted request counts until TensorRT-LLM confirms its end.
        """
        llm, outstanding = self._alive(), len(self._requests)
        running = min(outstanding, first_set(self._options.max_num_seqs, default=outstanding))
        if outstanding == 0:
            return Load(0, 0, 0.0)
        for record in await asyncio.to_thread(llm.get_stats, STATISTICS_TIMEOUT_S):
            cache = record.get("kvCacheStats") or {}
            if most := cache.get("maxNumBlocks"):
                self._usage = cache["usedNumBlocks"] / most
        return Load(running, outstanding - running, self._usage)

    async def reset_caches(self) -> bool:
        """Return False: TensorRT-LLM has no call for it; it drops its oldest blocks when it needs room."""
        self._alive()
        return False

    async def health(self) -> None:
        """Raise EngineDeadError when the worker is gone."""
        self._alive()

    async def shutdown(self) -> None:
        """Stop the worker and end what still runs with EngineDeadError; safe to call twice."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        self._mark_dead(self._dead or EngineDeadError("the engine was shut down"))
        try:
            await asyncio.to_thread(llm.shutdown)
        finally:
            await self._background.cancel()

    def _tokens(self) -> SpecialTokens:
        if self._special is None:
            raise EngineDeadError("the engine is not running")
        return self._special

    def _alive(self) -> Any:  # noqa: ANN401 - see `_llm`
        if self._dead is not None:
            raise self._dead
        if self._llm is None:
            raise EngineDeadError("the engine is not running")
        if not self._llm._check_health():
            self._mark_dead(EngineDeadError("the TensorRT-LLM worker died"))
            raise EngineDeadError("the TensorRT-LLM worker died")
        return self._llm

    async def _watch(self) -> None:
        """End what waits for a worker that died: TensorRT-LLM leaves it waiting."""

        async def check() -> None:
            with contextlib.suppress(EngineDeadError):  # told to whoever waits
                self._alive()

        await repeat("trt_watch", check, HEALTH_INTERVAL_S, longest_wait=HEALTH_LONGEST_WAIT_S)

    def _mark_dead(self, error: EngineDeadError) -> None:
        self._dead = error
        for request in self._requests:
            request.steps.put_nowait(error)
