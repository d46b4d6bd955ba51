"""The tool classifier: a model that says whether an utterance asks for a look at the screen, or for other tools.

Any `AutoModelForSequenceClassification` folder serves, always in float: float16 on a GPU, float32 on a CPU. Tokenizing
and classifying happen in one worker thread. It takes whatever waits as a batch and never waits for more, so a lone
request pays nothing for batching and a burst of them shares forward passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.artifact import SCREENSHOT_TOOL, ToolModel
from runtime.defaults import TOOL_WINDOW, first_set
from runtime.deployment.classifier_facts import (
    detach_from_files,
    model_config,
    ordinary_token,
    padding_of,
    positions_of,
)
from runtime.text.text_tokens import LIKELY_CHARACTERS_PER_TOKEN
from runtime.text.tokenizer import load_fast_tokenizer

# Tokens of one forward pass, padding included: bounds memory, and the time that one long request costs the others.
BATCH_TOKENS = 16384
# Threads of a forward pass on a CPU. Small classifiers gain little from more than two. Beside a chat engine, which has
# threads of its own on every core, it is one: two would wait for each other at every layer until both of them get a
# core, and the engine's would wait for both cores.
ALONE_THREADS = 2
BESIDE_CHAT_THREADS = 1
# How far apart a question's answers alone and in a batch may be: the arithmetic of float32 or float16, and no more.
SAME_ON_CPU, SAME_ON_GPU = 1e-3, 0.03
# Positions of these models begin after the padding index: the index that a config means which does not name it. For the
# plan, which has a config and no model; tests hold it equal to what `positions_of` finds in the model of every family.
PADDING_BEFORE_POSITIONS = {
    "camembert": 1,
    "data2vec-text": 1,
    "esm": 1,
    "ibert": 1,
    "layoutlmv3": 1,
    "lilt": 0,
    "longformer": 1,
    "luke": 1,
    "markuplm": 0,
    "mpnet": 1,
    "roberta": 1,
    "roberta-prelayernorm": 1,
    "xlm-roberta": 1,
    "xlm-roberta-xl": 1,
    "xmod": 1,
}
# This one does not ask its config for the index.
FIXED_PADDING = frozenset({"mpnet"})


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a classifier can ask for.

    Attributes:
        name: as the client knows it.
        label: index of its logit.
        threshold: probability from which it is asked for.
    """

    name: str
    label: int
    threshold: float


@dataclass(frozen=True, slots=True)
class ToolProbability:
    """A tool that is asked for, and the probability that it was decided on."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to take a screenshot, and the probability that it was decided on.

    Attributes:
        take_screenshot: whether that tool is asked for.
        probability: of it, or of the likeliest tool where it is none of the classifier's.
        calls: every tool that is asked for, most probable first; empty where the classifier has one alone.
    """

    take_screenshot: bool
    probability: float
    calls: tuple[ToolProbability, ...] = ()


# The probability of each tool.
Row = tuple[float, ...]


class ToolClosedError(RuntimeError):
    """The classifier was not started, or was shut down."""


@dataclass(frozen=True, slots=True)
class _PendingDecision:
    utterances: tuple[str, ...]
    answer: asyncio.Future[Row]


def format_utterances(utterances: Sequence[str]) -> str:
    """What the classifier reads: the user's turns, one a line, oldest first, the current utterance last.

    >>> format_utterances(["hi there", "", "look at this"])
    'hi there\\nlook at this'
    """
    return "\n".join(utterance for utterance in utterances if utterance)


def window_of(config: Mapping[str, object]) -> int:
    """Tokens that a classifier reads at most, by its `config.json`: what is planned, gated and served.

    A checkpoint may say in `trained_window` that it learned from shorter texts than it has positions for.
    """
    text = config.get("text_config")
    nested: Mapping[str, object] = text if isinstance(text, Mapping) else {}
    named = [part.get(name) for part in (config, nested) for name in ("max_position_embeddings", "n_positions")]
    window = next((value for value in named if isinstance(value, int) and value > 0), TOOL_WINDOW)
    kind = str(config.get("model_type", ""))
    if kind in PADDING_BEFORE_POSITIONS:
        padding = config.get("pad_token_id")
        if kind in FIXED_PADDING or not isinstance(padding, int):
            padding = PADDING_BEFORE_POSITIONS[kind]
        window -= padding + 1
    return _trained(config, window)


def is_multi_label(config: Mapping[str, object]) -> bool:
    """Whether the labels do not exclude each other, by a classifier's `config.json`."""
    return config.get("problem_type") == "multi_label_classification"


def _trained(config: Mapping[str, object], window: int) -> int:
    trained = config.get("trained_window")
    return min(window, trained) if isinstance(trained, int) and trained > 0 else window


class ToolClassifier:
    """A classifier with its worker thread.

    Args:
        folder: an `AutoModelForSequenceClassification` checkpoint with a fast tokenizer.
        threshold: probability from which the decision is yes, 0 to 1.
        max_tokens: window in tokens, the model's own special tokens included; clamped to the model's own window.
        positive_label: index of the logit that means yes. A model with one logit answers by its sigmoid, as one does
            whose labels do not exclude each other (`problem_type`).
        tools: those of a classifier with several, each with a label and a threshold of its own; then `threshold` and
            `positive_label` do not count.
        device: `cpu` or a CUDA device.
        gpu_fraction: part of the GPU's memory that this process may use for it; none leaves it unlimited.
        cpu_threads: most threads of a forward pass on a CPU.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threshold: float,
        max_tokens: int,
        positive_label: int = 1,
        tools: Sequence[Tool] = (),
        device: str = "cpu",
        gpu_fraction: float | None = None,
        cpu_threads: int = ALONE_THREADS,
    ) -> None:
        self._folder = folder
        self._max_tokens = max_tokens
        self._several = bool(tools)  # decisions then name every tool that is asked for
        self._tools = tuple(tools) or (Tool(SCREENSHOT_TOOL, positive_label, threshold),)
        self._device = device
        self._gpu_fraction = gpu_fraction
        self._cpu_threads = cpu_threads
        # To the worker: questions, and None for the end.
        self._queue: queue.SimpleQueue[_PendingDecision | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None  # none before `start` and after `shutdown`
        self._model: _Model | None = None  # used by the worker's thread alone, once it runs

    async def start(self) -> None:
        """Load the model and prove it, so that what fails under load fails here, and the first decision is fast.

        Raises:
            ValueError: no fast tokenizer, no such label, or answers that are none.
            RuntimeError: the model cannot be asked in batches, or about as many tokens as its window has.
        """
        self._model = await asyncio.to_thread(self._load)
        self._worker = threading.Thread(target=self._work, args=(self._model,), name="tool-classifier", daemon=True)
        self._worker.start()
        await self.decide((), "hello")

    def _load(self) -> _Model:
        model = _Model(
            self._folder,
            self._max_tokens,
            tuple(tool.label for tool in self._tools),
            self._device,
            self._gpu_fraction,
            self._cpu_threads,
        )
        model.prove()
        return model

    async def decide(self, history: Sequence[str], utterance: str) -> Decision:
        """Decide on the current utterance, given the user's earlier turns, oldest first.

        The newest tokens are kept when there are too many. Cancelling the call drops the question if it still waits.

        Raises:
            ToolClosedError: not started, or shut down meanwhile.
        """
        if self._worker is None:
            raise ToolClosedError("the classifier is not running")
        answer: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._queue.put(_PendingDecision((*history, utterance), answer))
        return self._decision(await answer)

    def _decision(self, row: Row) -> Decision:
        asked = list(zip(self._tools, row, strict=True))
        look = next((likely for tool, likely in asked if tool.name == SCREENSHOT_TOOL), max(row))
        passed = [ToolProbability(tool.name, likely) for tool, likely in asked if likely >= tool.threshold]
        wanted = any(call.name == SCREENSHOT_TOOL for call in passed)
        if not self._several:
            return Decision(wanted, look)
        return Decision(wanted, look, tuple(sorted(passed, key=lambda call: -call.probability)))

    async def shutdown(self) -> None:
        """Stop the worker and fail what still waits; safe to call twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._queue.put(None)
            await asyncio.to_thread(worker.join)
        self._model = None

    def _work(self, model: _Model) -> None:
        while True:
            waiting = [self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get())
            pending = [entry for entry in waiting if entry is not None]
            if len(pending) < len(waiting):
                self._resolve(pending, ToolClosedError("the classifier was shut down"))
                return
            pending = [entry for entry in pending if not entry.answer.cancelled()]
            try:
                outcome: list[Row] | Exception = _probabilities(model, [entry.utterances for entry in pending])
            except BaseException as error:  # noqa: BLE001 - it belongs to those who wait; the thread goes on
                outcome = error if isinstance(error, Exception) else RuntimeError(f"it raised {type(error).__name__}")
            self._resolve(pending, outcome)

    @staticmethod
    def _resolve(pending: list[_PendingDecision], outcome: list[Row] | Exception) -> None:
        for index, entry in enumerate(pending):
            loop = entry.answer.get_loop()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(
                    _set_outcome, entry.answer, outcome if isinstance(outcome, Exception) else outcome[index]
                )


def _probabilities(model: _Model, conversations: Sequence[tuple[str, ...]]) -> list[Row]:
    found = model.probabilities(conversations)
    if len(found) != len(conversations):
        raise ValueError(f"expected {len(conversations)} probabilities, found {len(found)}")
    return found


def _set_outcome(future: asyncio.Future[Row], outcome: Row | Exception) -> None:
    if future.done():
        return  # cancelled while the worker was at it
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class _Model:
    """Tokenizer and model; used by one thread.

    Attributes:
        folder: where it came from.
        model: the network, in float.
        device: where it lies.
        labels: indices of the logits that are asked for.
        independent: each label has a probability of its own.
        pad: token id that fills a batch.
        padded: texts of several lengths are asked about at once.
        global_attention: the model wants one token that attends to all others, which is the first.
        window: tokens that it reads at most.
        tokenizer: truncates on the left: the newest text stays.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        labels: tuple[int, ...],
        device: str,
        gpu_fraction: float | None,
        cpu_threads: int,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        on_gpu = device.startswith("cuda")
        if on_gpu and gpu_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(gpu_fraction, torch.device(device).index or 0)
        if not on_gpu:
            # For the whole process: beside this model, it computes nothing with torch.
            torch.set_num_threads(min(cpu_threads, len(os.sched_getaffinity(0))))
        tokenizer = load_fast_tokenizer(folder)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=model_config(folder),
            dtype=torch.float16 if on_gpu else torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # the other format is unpickled
        )
        count = model.config.num_labels
        if count > 1 and max(labels) >= count:
            what = "tools with labels" if len(labels) > 1 else "positive_label"
            raise ValueError(f"{folder}: expected a label below {count}, found {what} {', '.join(map(str, labels))}")
        if count == 1 and len(labels) > 1:
            raise ValueError(f"{folder}: expected a label for each of {len(labels)} tools, found one")
        self._folder = folder
        self._model = model.to(device).eval()
        detach_from_files(self._model)
        self._device = device
        self._padded = True
        self._labels = [0] if count == 1 else list(labels)
        self._independent = count == 1 or is_multi_label(model.config.to_dict())
        self._pad = padding_of(self._model, tokenizer)
        self._global_attention = model.config.model_type == "longformer"
        config = model.config.to_dict()
        positions = positions_of(self._model, ordinary_token(tokenizer, self._pad))
        window = window_of(config) if positions is None else _trained(config, positions)
        self._window = min(max_tokens, window)
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._window, direction="left")
        self._tokenizer.encode_special_tokens = True  # what a user writes is text, `[SEP]` too

    def prove(self) -> None:
        """Ask about a full window, and about short and long texts at once, which must be answered as they are alone.

        Raises:
            ValueError: an answer is not a number, or depends on what else is asked.
        """
        full = self._longest(self._window)
        self.probabilities([full])
        mixed = [("hello",), ("hello", "look at this"), self._longest(min(self._window, BATCH_TOKENS // 4))]
        alone = [self.probabilities([conversation])[0] for conversation in mixed]
        if not self._agree(alone, self.probabilities(mixed)):
            # Some read their answer at the last place, padding or not: they are asked about equal lengths at once.
            self._padded = False
            together = self.probabilities(mixed * 2)
            if not self._agree(alone * 2, together):
                raise ValueError(
                    f"{self._folder}: expected the same answers alone and in a batch, found {alone} and {together}; "
                    "see pad_token_id in its config.json and tokenizer_config.json"
                )

    def _agree(self, alone: Sequence[Row], together: Sequence[Row]) -> bool:
        most = SAME_ON_GPU if self._device.startswith("cuda") else SAME_ON_CPU
        pairs = [pair for rows in zip(alone, together, strict=True) for pair in zip(*rows, strict=True)]
        return all(abs(one - other) <= most for one, other in pairs)  # NaN is in no range

    @staticmethod
    def _longest(tokens: int) -> tuple[str, ...]:
        """Words that are at least so many tokens."""
        return (" ".join(["hello"] * tokens),)

    def probabilities(self, conversations: Sequence[tuple[str, ...]]) -> list[Row]:
        """Probability of each label that is asked for, for each conversation, in order."""
        encoded = [self._encode(utterances) for utterances in conversations]
        found: list[Row] = [()] * len(encoded)
        for batch in _batches([len(ids) for ids in encoded], padded=self._padded):
            for index, row in zip(batch, self._forward([encoded[i] for i in batch]), strict=True):
                found[index] = row
        return found

    def _encode(self, utterances: tuple[str, ...]) -> list[int]:
        """Token ids of the newest part of the turns. Text that cannot be in the window is not tokenized."""
        characters = self._window * LIKELY_CHARACTERS_PER_TOKEN
        while True:
            newest, size = len(utterances), 0
            while newest and size <= characters:
                newest -= 1
                size += len(utterances[newest]) + 1
            text = format_utterances(utterances[newest:])[-characters:]
            # A tokenizer may have no token at all for a text; the model needs one.
            ids: list[int] = self._tokenizer.encode(text).ids or [self._pad]
            # A cut inside a word changes that word's tokens; it is out of the window when the window is full.
            if len(ids) >= self._window or (newest == 0 and len(text) < characters):
                return ids
            characters *= 2

    def _forward(self, batch: list[list[int]]) -> list[Row]:
        import torch

        width = max(len(ids) for ids in batch)
        padded = torch.tensor([ids + [self._pad] * (width - len(ids)) for ids in batch], device=self._device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=self._device)
        inputs: dict[str, Any] = {"input_ids": padded, "attention_mask": mask}
        if self._global_attention:
            inputs["global_attention_mask"] = torch.zeros_like(mask)
            inputs["global_attention_mask"][:, 0] = 1
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()
            likely = logits.sigmoid() if self._independent else logits.softmax(-1)
        return [tuple(row) for row in likely[:, self._labels].tolist()]


def _batches(lengths: Sequence[int], *, padded: bool = True) -> list[list[int]]:
    """Indices grouped so that a group, padded to its longest, is at most `BATCH_TOKENS`; similar lengths together.

    Without padding only equal lengths are.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True):
        longest = lengths[batches[-1][0]] if batches else 0
        full = not batches or longest * (len(batches[-1]) + 1) > BATCH_TOKENS
        if full or (not padded and lengths[index] != longest):
            batches.append([])
        batches[-1].append(index)
    return batches


def tools_of(tool: ToolModel, threshold: float | None = None) -> tuple[Tool, ...]:
    """The tools of a classifier with several, as it is asked about them; empty for one.

    Args:
        threshold: the operator's, which replaces each tool's own.
    """
    return tuple(
        Tool(entry.name, entry.label, first_set(threshold, default=tool.threshold_of(entry))) for entry in tool.tools
    )
