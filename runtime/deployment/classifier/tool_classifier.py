"""The tool classifier: a model that says whether an utterance asks for a look at the screen, or for other tools.

Any `AutoModelForSequenceClassification` folder serves, always in float: float16 on a GPU, float32 on a CPU. Tokenizing
and classifying happen in one worker thread. It takes what waits as a batch and never waits for more, so a lone request
pays nothing for batching and a burst of them shares forward passes. A batch is bounded: nobody waits for all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runtime.artifact import SCREENSHOT_TOOL
from runtime.deployment.classifier.decision import Decision, Tool, ToolProbability
from runtime.deployment.classifier.model import Row, SequenceClassifier
from runtime.host.supervision import contained

# Threads of a forward pass on a CPU. Small classifiers gain little from more than two. Beside a chat engine, which has
# threads of its own on every core, it is one: two would wait for each other at every layer until both of them get a
# core, and the engine's would wait for both cores.
ALONE_THREADS = 2
BESIDE_CHAT_THREADS = 1
# Characters of the questions that are taken at once, as far as they are tokenized: hundreds of short ones, a few that
# are as long as any.
BATCH_CHARACTERS = 32_768


class ToolClosedError(RuntimeError):
    """The classifier was not started, or was shut down."""


@dataclass(frozen=True, slots=True)
class _PendingDecision:
    utterances: tuple[str, ...]
    answer: asyncio.Future[Row]


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
        self._begun: asyncio.Future[SequenceClassifier] | None = None  # the loading
        self._model: SequenceClassifier | None = None  # used by the worker's thread alone, once it runs

    async def start(self) -> None:
        """Load the model and prove it, so that what fails under load fails here, and the first decision is fast.

        Raises:
            ValueError: no fast tokenizer, no such label, or answers that are none.
            RuntimeError: the model cannot be asked in batches, or about as many tokens as its window has.
        """
        self._model = model = await self.begin()
        if model.on_gpu:
            await asyncio.to_thread(_prove, model)
        self._worker = threading.Thread(target=self._work, args=(self._model,), name="tool-classifier", daemon=True)
        self._worker.start()
        await self.decide((), "hello")

    def begin(self) -> asyncio.Future[SequenceClassifier]:
        """Begin to load, in a thread: on a CPU all of it, for a GPU what uses none. `start` does the rest.

        What goes wrong is raised by `start`.
        """
        if self._begun is None:
            # A task of its own, out of which asyncio would let a library's exit through to the process.
            self._begun = asyncio.ensure_future(contained(partial(asyncio.to_thread, self._load)))
            # It may never be started.
            self._begun.add_done_callback(lambda begun: None if begun.cancelled() else begun.exception())
        return self._begun

    def _load(self) -> SequenceClassifier:
        model = SequenceClassifier(
            self._folder,
            self._max_tokens,
            tuple(tool.label for tool in self._tools),
            self._device,
            self._gpu_fraction,
            self._cpu_threads,
        )
        if not model.on_gpu:
            _prove(model)
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
        self._model = self._begun = None

    def _work(self, model: SequenceClassifier) -> None:
        while True:
            waiting = self._take(model.most_characters)
            if self._worker is None:  # what waits is failed, up to the end that `shutdown` has put there
                while waiting[-1] is not None:
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

    def _take(self, most_characters: int) -> list[_PendingDecision | None]:
        """What waits, in its order, and no more of it than a batch may have. Waits for the first."""
        waiting = [self._queue.get()]
        characters = 0
        while (last := waiting[-1]) is not None:
            if not last.answer.cancelled():
                characters += min(sum(map(len, last.utterances)), most_characters)
            if characters >= BATCH_CHARACTERS or self._queue.empty():
                break
            waiting.append(self._queue.get())
        return waiting

    @staticmethod
    def _resolve(pending: list[_PendingDecision], outcome: list[Row] | Exception) -> None:
        for index, entry in enumerate(pending):
            loop = entry.answer.get_loop()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(
                    _set_outcome, entry.answer, outcome if isinstance(outcome, Exception) else outcome[index]
                )


def _prove(model: SequenceClassifier) -> None:
    model.place()
    model.prove()


def _probabilities(model: SequenceClassifier, conversations: Sequence[tuple[str, ...]]) -> list[Row]:
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
