"""Validation of an artifact: the runtime's own engine loads it, and every figure is compared with its bound.

The float model's scores are measured once, in a start of their own, and kept: `measure_reference` writes them to a
file, `validate` takes that file. An engine starts once an artifact; all measurements happen in that one start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.embedded.texts import WINDOW_TOKENS, KnownPrompt, heldout_texts, known_prompts
from pipeline.lanes import LANES, gate_specs, lane_of_artifact
from pipeline.lanes.gate_specs import Candidate, GateSpec
from pipeline.lanes.gates import Figures, Thresholds, gates_by_part, gates_of, is_figure, missing_figures
from pipeline.progress import Progress
from pipeline.source import EMBEDDED
from pipeline.source.utterance_file import NO_UTTERANCES, UtteranceSet, coverage_of
from pipeline.stages.stage import StageError
from pipeline.validate import scores, speed
from pipeline.validate.long_prompt import LongPrompt, long_prompt_of, long_prompt_ratio
from pipeline.validate.scores import Scores
from pipeline.validate.text_under_load import Asked, asked_of, loss_of, replies_of, score_of
from pipeline.validate.tool_accuracy import measure_tools
from runtime import engines
from runtime.artifact import BuildMetadata, Gate, Limits, Validation, hashes
from runtime.artifact.files.proof import ProofError
from runtime.artifact.files.view import ScratchError, View
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


def validate(
    folder: Path,
    metadata: BuildMetadata,
    *,
    reference: Path | None,
    thresholds: Thresholds,
    progress: Progress,
    utterances: UtteranceSet = NO_UTTERANCES,
    with_code: bool = True,
) -> Validation:
    """Measure an artifact, and compare the figures with the thresholds; the result may hold failed gates.

    Args:
        folder: the artifact, complete but for its validation.
        metadata: what will be written into it.
        reference: what `measure_reference` wrote for the float model; none where there is none, such as for a source
            that came quantized, and then perplexity is reported but not gated.
        utterances: the user's, to measure the classifier's tools on.
        with_code: whether what was compiled ahead of time is run; not where somebody else may have made it.

    Raises:
        ArtifactError: a file is missing, was added, or does not match its hash.
        StageError: the engine did not start, or died; the reference is not one for this model; or the server would
            refuse the model's tokenizer or chat template.
    """
    progress.step("verifying the files")
    try:
        # What is measured is what a server would load, file by file.
        with View(folder, metadata, with_code=with_code) as view:
            hashes.verify_files(folder, metadata, view.take)
            view.proven()  # first: what is not what it should be is not worth the minutes of measuring
            if view.leaves_out_code:
                progress.step("the compile cache is left out: it is code, and ARTIFACT_TRUST is not unsigned")
            found = _measure(view, reference, utterances, progress)
            view.settle()
    except (ScratchError, ProofError) as error:
        raise StageError("validate", str(error)) from error
    except StageError as error:
        home, named = str(view.folder), str(folder)
        what, where = error.what.replace(home, named), error.where.replace(home, named)
        raise StageError(error.stage, what, where, error.next_step) from error
    figures = dict(found.figures)
    parts: list[Gate] = []
    for spec, by_tool in found.by_tool.items():
        if by_tool:
            figures[spec] = min(by_tool.values())
        if metadata.tool and metadata.tool.tools:
            parts += gates_by_part(spec, by_tool, thresholds)
    candidate = candidate_of(metadata, compared=reference is not None, utterances=utterances)
    missing = missing_figures(figures, candidate)
    gates = (*gates_of({spec: value for spec, value in figures.items() if is_figure(value, spec)}, thresholds), *parts)
    if missing and all(gate.passed for gate in gates):
        # A gate without a figure would pass as if there were none.
        raise StageError("validate", f"expected a figure for each gate, found none for {', '.join(missing)}", folder)
    return Validation(
        gates=gates,
        validated_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        digest=metadata.digest,
        not_measured=tuple(f"{gate_specs.TOOL_ACCURACY.name}:{name}" for name in found.missing_tools),
        utterances_sha256=utterances.sha256 if metadata.tool else None,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What was measured.

    Attributes:
        figures: of the whole.
        by_tool: what each tool of the classifier got.
        missing_tools: those that there was nothing to measure on.
    """

    figures: Figures
    by_tool: Mapping[GateSpec, Mapping[str, float]]
    missing_tools: tuple[str, ...]


def _measure(view: View, reference: Path | None, utterances: UtteranceSet, progress: Progress) -> _Found:
    folder, metadata = view.folder, view.metadata
    figures = {gate_specs.FILES: float(len(metadata.files))}
    by_tool: Mapping[GateSpec, Mapping[str, float]] = {}
    missing_tools: tuple[str, ...] = ()
    if metadata.chat is not None:
        reference_scores = Scores.read(reference) if reference is not None else None
        figures |= _measure_chat(folder, metadata, reference_scores, progress)
    if (tool := metadata.tool) is not None:
        device = LANES[metadata.lane].device
        found = measure_tools(folder, tool, device, progress, utterances.utterances)
        missing_tools = tuple(found.silence)
        by_tool = {gate_specs.TOOL_ACCURACY: found.accuracy, gate_specs.TOOL_SILENCE: found.silence}
    return _Found(figures, by_tool, missing_tools)


def candidate_of(
    metadata: BuildMetadata, *, compared: bool, parameters: int = 0, utterances: UtteranceSet = NO_UTTERANCES
) -> Candidate:
    """Return the facts about an artifact that the gates depend on.

    Args:
        compared: whether there is a float model to hold it against.
        parameters: weights of the chat model.
        utterances: the user's, to measure the classifier's tools on.
    """
    chat, tool = metadata.chat, metadata.tool
    coverage = coverage_of(tool.served_tools, utterances.utterances) if tool else None
    return Candidate(
        lane_of_artifact(metadata.lane, metadata.engine),
        chat=chat is not None,
        method=chat.quantization.method if chat and compared else None,
        parameters=parameters,
        prompt_tokens=chat.limits.max_input_len if chat else 0,
        classifier=None if tool is None else "embedded" if tool.source.repo == EMBEDDED else "other",
        tools_measured=coverage is None or coverage.measured,
        tools_unmeasured=coverage is not None and bool(coverage.missing),
        tuned=chat is not None and chat.tuned,
    )


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


def _measure_chat(
    folder: Path, metadata: BuildMetadata, reference_scores: Scores | None, progress: Progress
) -> Figures:
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
