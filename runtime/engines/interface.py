"""The engine interface: what turns prompts into replies, whichever engine does it.

An `Engine` turns prompt token ids into `Delta`s. The pipeline validates with the same classes that serve.
Nothing outside this package imports vLLM or TensorRT-LLM, and those imports happen inside `start`, so that importing
`runtime` stays cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import Metric

from runtime import defaults
from runtime.engines.places import Load


class EngineDeadError(Exception):
    """The engine process or its worker has died; nothing can be generated any more."""

    text_may_be_logged = True


class EngineVersionError(RuntimeError):
    """The engine's library lacks what this runtime needs of it. The message names its version and what is missing."""

    text_may_be_logged = True


class EngineOptionError(ValueError):
    """An option has a value that the engine does not know. The message names the option and the known values."""

    text_may_be_logged = True


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What reaches the engine beside the artifact. None leaves the artifact's limit, then the engine's own default.

    Attributes:
        gpu_fraction: part of the GPU's memory for weights, activations and KV cache, 0 to 1.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens in one step of the scheduler.
        max_model_len: context in tokens, prompt and reply together.
        tensor_parallel_size: GPUs that share every layer.
        pipeline_parallel_size: stages of layers, one after another, each on so many GPUs of its own; vLLM's alone.
        dtype: TensorRT-LLM's PyTorch backend: type of what is not quantized; `auto` is the model's own.
        kv_cache_dtype: `auto` is the model's own; `fp8` halves the cache on GPUs that have it.
        attention_backend: the engine's name of an attention kernel, such as `FLASH_ATTN`.
        weights_loader: vLLM: what brings weights to the GPU, `safetensors` or `instanttensor`; `auto` takes the faster
            where it is known to do.
        enforce_eager: run without compiled graphs; none means eager on a CPU, compiled on a GPU.
        own_metrics: vLLM keeps its own statistics, which costs time for every token; `own_metrics` then has them.
        cpu_kv_cache_gib: size of the KV cache on a CPU.
        kv_free_fraction: TensorRT-LLM: part of the memory that is free beside the weights for the KV cache; none takes
            `gpu_fraction`.
        kv_block_reuse: TensorRT-LLM: keep the KV cache of prompts for prompts that begin alike.
        kv_offload_gib: vLLM: host memory for KV cache that the GPU had to drop, of all GPUs together; 0 is none.
        cudagraph_mode: vLLM: which steps run as one graph of the GPU.
        capture_sizes: vLLM: batches, in tokens, for which graphs are captured.
        fusions: vLLM: passes over the compiled graph that are switched on.
        linear_backend: vLLM: its kernel of products with weights.
        graphs_after_readiness: vLLM: a few graphs are captured at the start, and the rest while nothing runs, or now
            and then; none: where prompts run in graphs, too.
    """

    gpu_fraction: float = defaults.GPU_ALONE
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    dtype: str = "auto"
    kv_cache_dtype: str = defaults.KV_DTYPE
    attention_backend: str | None = None
    weights_loader: str = defaults.WEIGHTS_LOADER
    enforce_eager: bool | None = None
    own_metrics: bool = False
    cpu_kv_cache_gib: float = defaults.CPU_KV_CACHE_GIB
    kv_free_fraction: float | None = None
    kv_block_reuse: bool = defaults.KV_BLOCK_REUSE
    kv_offload_gib: float = defaults.KV_OFFLOAD_GIB
    cudagraph_mode: str | None = None
    capture_sizes: tuple[int, ...] = ()
    fusions: tuple[str, ...] = ()
    linear_backend: str | None = None
    graphs_after_readiness: bool | None = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn, in the protocol's terms; each engine translates.

    Attributes:
        temperature: 0 takes the most probable token.
        top_p: tokens whose probabilities add up to this part are kept.
        top_k: so many most probable tokens are kept; 0 keeps all.
        min_p: tokens with at least this part of the best one's probability are kept.
        repetition_penalty: divides the logits of tokens that came before, in prompt or reply; 1 changes nothing.
        presence_penalty: taken from the logits of tokens that the reply has; 0 changes nothing.
        frequency_penalty: the same for each time that the reply has them.
        max_tokens: bounds the reply.
        stop: texts that end the reply, and are no part of it. Engines leave them alone: they would find them in thought
            too, and some look for one way alone to write them in tokens. `text.replies.reply` ends the request.
        seed: makes one request repeatable.
        ignore_eos: goes on after the end of a reply, for benchmarks alone.
        stop_token_ids: end the reply beside those that the model's configuration names.
        show_special_tokens: leaves special tokens in the text; the one that ended the reply is never in it.
        each_token: tells each step's tokens by themselves, where an engine would tell those of several steps as one:
            for who counts them, and ends the reply by that.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 30
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int = defaults.OUTPUT_TOKENS
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    show_special_tokens: bool = False
    each_token: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step added to a reply, or several where steps wait (`Sampling.each_token`).

    Attributes:
        text: new text, perhaps empty while a character is incomplete.
        tokens: number of new tokens.
        finish_reason: `stop` or `length` on the last delta, none before.
        cached_tokens: prompt tokens that came out of the prefix cache; known from the first delta on.
        token_ids: the new tokens.
    """

    text: str
    tokens: int
    finish_reason: str | None = None
    cached_tokens: int = 0
    token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The model's view of one token of a given text: its log-probability, and the id it would have chosen itself.

    The log-probability is not a number where the engine does not tell it.
    """

    logprob: float
    top_token: int


# When a phase of an engine's start began, by `time.monotonic`, and its name.
StartMark = tuple[float, str]


class Generates(Protocol):
    """What turns prompts into replies."""

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Reply to prompt token ids; return when the reply has ended.

        Only what was computed with the same `cache_salt` is taken out of the prefix cache, or without any, both times.

        `on_delta` gets every delta as it comes, in the event loop: it must be quick. It is a callback, because waking a
        task for every token costs more than what is done with the token. When it raises, that is raised here. Leaving
        early, by cancellation or an error, aborts the request in the engine first. Raises EngineDeadError when the
        engine is gone.
        """


class Engine(Generates, Protocol):
    """One chat model, loaded."""

    async def start(self) -> None:
        """Load the model; return when it answers. Raises what the engine raises."""

    def wake(self) -> None:
        """Say that a request will come within a moment. Costs little, raises nothing, and may do nothing."""

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        """Prefill the prompt into the prefix cache, for requests with the same salt.

        Returns how many of its tokens were cached already.
        """

    def reusable(self, tokens: int) -> int:
        """How many of a prefix's tokens a longer prompt can take out of the prefix cache: its whole blocks."""

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """Score each token after the first, given those before it; `len(tokens) - 1` entries."""

    async def load(self) -> Load:
        """What the scheduler holds: its own figures, not a counter of ours."""

    async def reset_caches(self) -> bool:
        """Drop the prefix cache; false when the engine refused because something runs."""

    def start_marks(self) -> Sequence[StartMark]:
        """When each phase of its start began, as far as it notes them."""

    def own_metrics(self) -> Iterable[Metric]:
        """The engine's own figures in its own names, as far as it keeps any."""

    async def health(self) -> None:
        """Raise EngineDeadError when the engine cannot answer any more."""

    async def shutdown(self) -> None:
        """Stop the engine and its processes; safe to call twice."""


def continues(engine: Generates) -> bool:
    """Whether a reply to a prompt that ends with a reply's beginning is the rest of it, to the letter.

    Not where an engine makes text of the reply's tokens alone: the space before its first word may be lost.
    """
    return bool(getattr(engine, "continues", True))


async def apart(engine: Engine) -> None:
    """Wait, while an engine starts, until its processes are apart from this one: what this one does is its own then.

    Until then they may be forked from it, which must not have used a GPU. Where an engine does not tell, this does not
    return: it is apart when it has started.
    """
    await getattr(engine, "apart", asyncio.Event().wait)()
