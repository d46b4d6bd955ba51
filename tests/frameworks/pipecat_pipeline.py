"""A Pipecat pipeline of text in, LLM, text out, as an application has it: with the framework's own aggregators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pipecat.frames.frames import (
    EagerEndOfTurnCancelFrame,
    EagerTranscriptionFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    MetricsFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
    UserTurnStoppedMessage,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.turns.user_start import ExternalUserTurnStartStrategy
from pipecat.turns.user_stop import EagerUserTurnStopStrategy, ExternalUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.text.base_text_aggregator import TextType
from pipecat.workers.runner import WorkerRunner


class Recorder(FrameProcessor):
    """Keeps what passes: between the LLM and the one who speaks it, or of some kind alone."""

    def __init__(self, kind: type[Frame] = Frame) -> None:
        super().__init__()
        self._kind = kind
        self.frames: list[Frame] = []
        self.came = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM and isinstance(frame, self._kind):
            self.frames.append(frame)
            self.came.set()
        await self.push_frame(frame, direction)


class Errors(FrameProcessor):
    """Keeps the errors that travel upstream."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[ErrorFrame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, ErrorFrame):
            self.frames.append(frame)
        await self.push_frame(frame, direction)


class Speaker(FrameProcessor):
    """Speaks so many words of each reply and no more, as a synthesizer does that is interrupted there.

    What was spoken is what the framework's context gets. A reply of fewer words is spoken whole.
    """

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words
        self._spoken = 0
        self._rest = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InterruptionFrame):
            self._rest, self._spoken = "", 0
        elif isinstance(frame, LLMTextFrame):
            *words, self._rest = f"{self._rest}{frame.text}".split(" ")
            await self._speak(words)
            return
        elif isinstance(frame, LLMFullResponseEndFrame):
            await self._speak([self._rest] if self._rest else [])
            if self._spoken >= self.words:
                return  # still speaking
            self._rest, self._spoken = "", 0
        await self.push_frame(frame, direction)

    async def _speak(self, words: list[str]) -> None:
        for word in words:
            if self._spoken < self.words:
                self._spoken += 1
                await self.push_frame(TTSTextFrame(word, TextType.WORD))


@dataclass
class Conversation:
    """A pipeline that runs.

    Attributes:
        llm: the service under test.
        context: what user and assistant said, as the framework keeps it.
        worker: takes frames.
        recorder: what came out of the service.
        errors: what went wrong.
        assistant: writes what was spoken into the context.
        tail: comes behind that.
        stops: what the user said, as far as the framework took it for ended.
        stopped: set when there is more of it.
        spoken: how often the user spoke.
    """

    llm: LLMService
    context: LLMContext
    worker: PipelineWorker
    recorder: Recorder
    errors: Errors
    assistant: LLMAssistantAggregator
    tail: Recorder
    stops: list[str]
    stopped: asyncio.Event
    spoken: int = 0
    _seen: int = 0

    async def speak(self, text: str, *, hurried: bool = False) -> None:
        """Let the user say something; it interrupts what is being said.

        Args:
            text: the words.
            hurried: whether they come before the framework has written down what was said of the reply before.
        """
        await self.begin_to_speak(hurried=hurried)
        await self.stop_speaking(text)

    async def begin_to_speak(self, *, hurried: bool = False) -> None:
        """Let the user begin to say something: the first half of `speak`."""
        interruptions = len(self.tail.frames)
        await self.worker.queue_frame(ProposedUserStartedSpeakingFrame())
        if not hurried:
            await self._wait(self.tail.came, lambda: len(self.tail.frames) > interruptions)

    async def guess(self, text: str) -> None:
        """Let the recognizer believe that the user has said that, and stopped."""
        await self.worker.queue_frame(EagerTranscriptionFrame(text=text, user_id="user", timestamp=""))

    async def withdraw(self) -> None:
        """Let the recognizer hear that the user goes on."""
        await self.worker.queue_frame(EagerEndOfTurnCancelFrame())

    async def stop_speaking(self, text: str) -> None:
        """Let the user have said that: the second half of `speak`."""
        stops = len(self.stops)
        await self.worker.queue_frames(
            [
                TranscriptionFrame(text=text, user_id="user", timestamp="", finalized=True),
                ProposedUserStoppedSpeakingFrame(),
            ]
        )
        await self._wait(self.stopped, lambda: len(self.stops) > stops)
        self.spoken += 1

    async def _wait(self, came: asyncio.Event, wanted: Callable[[], bool], timeout: float = 60.0) -> None:
        async def wait() -> None:
            while not wanted():
                came.clear()
                await came.wait()

        await asyncio.wait_for(wait(), timeout)

    async def until(self, wanted: Callable[[list[Frame]], bool], timeout: float = 60.0) -> list[Frame]:
        """Wait until the frames since the last call hold what is wanted, and return them."""

        await self._wait(self.recorder.came, lambda: wanted(self.recorder.frames[self._seen :]), timeout)
        frames = self.recorder.frames[self._seen :]
        self._seen = len(self.recorder.frames)
        return frames

    async def ask(self, text: str, replies: int = 1) -> str:
        """Let the user say something, and return the text of the reply when it has come to its end."""
        await self.speak(text)
        return spoken(await self.until(lambda _: self.replied(replies)))

    def replied(self, replies: int = 1) -> bool:
        """Whether so many replies have ended since the user spoke last."""
        interruptions = [n for n, frame in enumerate(self.recorder.frames) if isinstance(frame, InterruptionFrame)]
        if len(interruptions) < self.spoken:
            return False
        since = self.recorder.frames[interruptions[-1] :]
        return sum(isinstance(frame, LLMFullResponseEndFrame) for frame in since) >= replies

    async def until_noted(self, words: int) -> None:
        """Wait until the framework has noted so many words of what is being spoken."""
        while len(self.assistant.aggregation_string().split()) < words:  # noqa: ASYNC110 - it has no event for it
            await asyncio.sleep(0.002)

    def said(self) -> list[tuple[str, str]]:
        """The context's messages that hold text."""
        return [(each["role"], each["content"]) for each in self.context.messages if each.get("content")]

    def metrics(self) -> list[Any]:
        """All the metrics that came."""
        return [data for frame in self.recorder.frames if isinstance(frame, MetricsFrame) for data in frame.data]


def spoken(frames: list[Frame]) -> str:
    """The text that frames hold."""
    return "".join(frame.text for frame in frames if isinstance(frame, LLMTextFrame))


@asynccontextmanager
async def conversing(
    llm: LLMService, context: LLMContext | None = None, *speaker: FrameProcessor, eager: bool = False
) -> AsyncIterator[Conversation]:
    """Run a pipeline around a service, and what speaks its replies.

    Args:
        eager: whether what the recognizer guesses is answered ahead.
    """
    context = context or LLMContext()
    strategies = UserTurnStrategies(
        start=[ExternalUserTurnStartStrategy()],
        stop=[EagerUserTurnStopStrategy() if eager else ExternalUserTurnStopStrategy(timeout=0.0)],
    )
    pair = LLMContextAggregatorPair(context, user_params=LLMUserAggregatorParams(user_turn_strategies=strategies))
    recorder, errors, tail = Recorder(), Errors(), Recorder(InterruptionFrame)
    stops: list[str] = []
    stopped = asyncio.Event()

    def stop(_aggregator: object, _strategy: object, message: UserTurnStoppedMessage) -> None:
        stops.append(str(message.content))
        stopped.set()

    pair.user().add_event_handler("on_user_turn_stopped", stop)
    worker = PipelineWorker(
        Pipeline([errors, pair.user(), llm, recorder, *speaker, pair.assistant(), tail]),
        params=PipelineParams(enable_metrics=True, enable_usage_metrics=True),
        cancel_on_idle_timeout=False,
        enable_rtvi=False,
    )
    started = asyncio.Event()
    worker.add_event_handler("on_pipeline_started", lambda *_: started.set())
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(started.wait(), 30)
        yield Conversation(llm, context, worker, recorder, errors, pair.assistant(), tail, stops, stopped)
        await worker.queue_frame(EndFrame())
        await asyncio.wait_for(running, 30)
    finally:
        if not running.done():
            await worker.cancel()
            await asyncio.wait_for(running, 30)
        if isinstance(llm, OpenAILLMService):
            await llm._client.close()  # it does not do it itself
