"""The chat model's figures, and the float model's scores: an engine starts, is asked, and is stopped.

It starts once an artifact, and everything is measured in that one start; tuned options take a plain start beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.embedded.texts import WINDOW_TOKENS, KnownPrompt, heldout_texts, known_prompts
from pipeline.lanes import LANES, gate_specs
from pipeline.lanes.gate_specs import GateSpec
from pipeline.lanes.gates import Figures
from pipeline.progress import Progress
from pipeline.stages.stage import StageError
from pipeline.validate import scores, speed
from pipeline.validate.long_prompt import LongPrompt, long_prompt_of, long_prompt_ratio
from pipeline.validate.scores import Scores
from pipeline.validate.text_under_load import Asked, asked_of, loss_of, replies_of, score_of
from runtime import engines
from runtime.artifact import BuildMetadata, Limits
from runtime.defaults import first_set
from runtime.engines import Engine, EngineDeadError, EngineOptions
from runtime.text.prompt import Budgets, PromptRenderer
from runtime.text.thought import THINKS, WAY_OUT
from runtime.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# The tokens of one stream of the throughput test: enough that generating outweighs the prompt.
PROMPT_TOKENS, REPLY_TOKENS = 64, 32
# Streams at which text under load is read, at most: more add nothing that a batch of so many has not.
STREAMS_UNDER_LOAD = 256
# Answers are short, and a sound model ends most of them well within this.
KNOWN_PROMPT_TOKENS = 64


def measure_reference(model: Path, out: Path, *, engine: str, options: EngineOptions, progress: Progress) -> None:
    """Score the held-out texts with the float model and write the scores to `out`.

    The result depends on the model's content, the held-out texts, `options.max_model_len`, the lane and the versions of
    the engine, and on nothing else.

    Args:
        model: a Hugging Face folder.
        options: as the artifact will be validated; `max_model_len` bounds the windows and must be set.
        engine: what will load the artifact; the float model is loaded by the same.

    Raises:
        StageError: the engine did not start, or died.
    """
    tokenizer = _tokenizer(model)
    context = first_set(options.max_model_len, default=WINDOW_TOKENS + 1)
    windows = scores.windows_of(tokenizer, heldout_texts(), context)
    progress.step("starting the engine on the float model")

    async def measure(engine: Engine) -> Scores:
        progress.step(f"scoring {sum(map(len, windows))} held-out tokens with the float model")
        return await scores.score(engine, windows, progress)

    _with_engine(engines.for_model(engine, model, options), model, measure).write(out)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The prompts of one validation, as token ids.

    Attributes:
        windows: held-out texts to score.
        long: one that fills the longest prompt; none where they are as long.
        known: known prompts, each with what its answer must hold.
        streams: prompts of the throughput test, one a stream.
    """

    windows: Sequence[Sequence[int]]
    long: LongPrompt | None
    known: Sequence[tuple[Sequence[int], KnownPrompt]]
    streams: Sequence[Sequence[int]]


def measure_chat(folder: Path, metadata: BuildMetadata, reference_scores: Scores | None, progress: Progress) -> Figures:
    """Measure the chat model of an artifact.

    Args:
        folder: the artifact.
        metadata: the artifact's, with a chat model.
        reference_scores: the float model's; none where there is none, and then nothing is compared with it.

    Raises:
        StageError: the engine did not start, or died; or the server would refuse the tokenizer or the chat template.
    """
    chat = metadata.chat
    assert chat is not None  # noqa: S101 - the caller asks only for artifacts with a chat model
    limits, thinking = chat.limits, chat.thinking_max_tokens
    tokenizer, lane = _tokenizer(folder), LANES[metadata.lane]
    renderer = _renderer(folder, thinking)
    asked = speed.greedy(max(1, min(KNOWN_PROMPT_TOKENS, limits.max_output_len - thinking)))
    windows = scores.windows_of(tokenizer, heldout_texts(), limits.max_model_len)
    prompts = _Prompts(
        windows=windows,
        long=long_prompt_of(tokenizer, heldout_texts(), limits),
        known=[
            (renderer.render(persona=None, runtime_text=None, history=(), utterance=known.prompt).token_ids, known)
            for known in known_prompts()
        ],
        streams=[window[:PROMPT_TOKENS] for window in islice(cycle(windows), min(limits.max_batch_size, lane.streams))],
    )

    at_once = min(limits.max_batch_size, STREAMS_UNDER_LOAD)
    asked_under_load = _asked_under_load(tokenizer, limits, at_once) if chat.tuned else []
    under_load: list[tuple[int, ...]] = []

    async def measure(engine: Engine) -> Figures:
        if asked_under_load:
            progress.step(f"generating {len(asked_under_load)} replies of several lengths, {at_once} at once")
            under_load.extend(await replies_of(engine, asked_under_load, at_once))
        progress.step(f"asking {len(prompts.known)} known prompts")
        replies = []
        for number, (prompt, _) in enumerate(prompts.known, 1):
            replies.append(await speed.reply_to(engine, prompt, asked, renderer.format, thinking))
            progress.advance(number / len(prompts.known))
        right = [known.answered_by(reply.text) for reply, (_, known) in zip(replies, prompts.known, strict=True)]
        latency = speed.latency_of(replies)
        progress.step(f"generating {len(prompts.streams)} replies at once")
        throughput = await speed.throughput_of(engine, prompts.streams, REPLY_TOKENS)
        progress.step(f"scoring {sum(map(len, windows))} held-out tokens")
        scored = await scores.score(engine, prompts.windows, progress)
        figures: dict[GateSpec, float] = {
            gate_specs.KNOWN_PROMPTS: sum(right) / len(right),
            gate_specs.REPLIES_END: sum(reply.ended for reply in replies) / len(replies),
            gate_specs.HELD_OUT_TOKENS: len(scored.logprobs),
            gate_specs.TTFT: latency.ttft_ms,
            gate_specs.ITL: latency.itl_ms,
            gate_specs.THROUGHPUT: throughput,
            gate_specs.THROUGHPUT_STREAMS: len(prompts.streams),
        }
        if prompts.long:
            progress.step(f"asking what comes next at the end of {len(prompts.long.tokens) - 1} tokens")
            figures[gate_specs.LONG_PROMPT] = await long_prompt_ratio(engine, prompts.long)
        if scored.has_logprobs:
            figures[gate_specs.PERPLEXITY] = scored.perplexity
        if reference_scores:
            figures[gate_specs.TOP1_AGREEMENT] = scores.top1_agreement(scored, reference_scores)
            if scored.has_logprobs:
                figures[gate_specs.PERPLEXITY_RATIO] = scores.perplexity_ratio(scored, reference_scores)
        return figures

    async def judge(engine: Engine) -> Figures:
        progress.step("scoring what it said under load, and what it says itself")
        own = await replies_of(engine, asked_under_load, at_once)
        served, plain = [await score_of(engine, asked_under_load, said) for said in (under_load, own)]
        loss = loss_of(served, plain)
        return {gate_specs.TEXT_UNDER_LOAD: loss.mean, gate_specs.WORST_UNDER_LOAD: loss.worst}

    progress.step("starting the engine on the artifact")
    figures = _with_engine(engines.create(folder, metadata, EngineOptions()), folder, measure)
    if not asked_under_load:
        return figures
    progress.step("starting the engine without graphs and without tuned options")
    plain_options = EngineOptions(
        max_num_seqs=limits.max_batch_size,
        max_model_len=limits.max_model_len,
        tensor_parallel_size=limits.tensor_parallel_size,
        pipeline_parallel_size=limits.pipeline_parallel_size,
        enforce_eager=True,
    )
    return {**figures, **_with_engine(engines.for_model(metadata.engine, folder, plain_options), folder, judge)}


def _asked_under_load(tokenizer: PreTrainedTokenizerBase, limits: Limits, streams: int) -> list[Asked]:
    """Return prompts of several lengths out of the held-out texts, that fit the artifact's limits."""
    texts = [list(tokenizer(text)["input_ids"]) for text in heldout_texts()]
    reply = max(1, min(limits.max_output_len, limits.max_model_len // 2))
    prompt = max(1, min(limits.max_input_len, limits.max_model_len - reply - 1))
    return asked_of(texts, streams, longest_prompt=prompt, longest_reply=reply)


def _with_engine(engine: Engine, folder: Path, measure: Callable[[Engine], Awaitable[T]]) -> T:
    """Start an engine, measure, and stop it whatever happens."""

    async def session() -> T:
        try:
            await engine.start()
            return await measure(engine)
        finally:
            await engine.shutdown()

    try:
        return asyncio.run(session())
    except EngineDeadError as error:
        what = f"the engine died while it was measured: {error}"
        raise StageError(
            "validate", what, folder, "the first error above says why; where that is memory, use fewer sequences"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StageError(
            "validate", f"the engine did not start: {first}", folder, "read its last lines above"
        ) from error


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer as the runtime does."""
    try:
        return load_tokenizer(folder)
    except ValueError as error:
        raise StageError("validate", str(error), folder, "choose a source that has one") from error


def _renderer(folder: Path, thinking: int) -> PromptRenderer:
    """Load what renders prompts in the server, which refuses the same."""
    try:
        renderer = PromptRenderer(folder, Budgets(), think=thinking > 0)
    except ValueError as error:
        raise StageError("validate", str(error), folder, "choose a source that has one") from error
    if renderer.format.thinks and not thinking:
        raise StageError("validate", f"THINKING_MAX_TOKENS: expected {THINKS}; found 0", folder, WAY_OUT)
    return renderer
