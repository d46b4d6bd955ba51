"""What is deployed: a chat model, a classifier, or both; and what a turn needs besides them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol, TypedDict, TypeVar

from runtime import defaults
from runtime.deployment.breaker import Breaker
from runtime.deployment.classifier import Decision
from runtime.deployment.metrics import Metrics
from runtime.deployment.traces import Tracer
from runtime.engines import Engine, EngineDeadError, Places, Sampling
from runtime.host.texts.cache import TextCache, for_salt
from runtime.text.prompt import BOUNDARY_TOKENS, Budgets, Message, PersonaTooLongError, Prompt
from runtime.text.replies import reply
from runtime.text.replies.pause import Pause, Pausing
from runtime.text.replies.reply_format import PLAIN, ReplyFormat
from runtime.text.replies.speech import Speech

T = TypeVar("T")

# Characters of a token that few texts have on average.
LONG_TOKEN = 16
# Bytes of the system prompts that are known to fit.
FITTING_BYTES = 8 * 2**20


class PromptParts(TypedDict):
    """What a prompt is made of."""

    persona: str
    runtime_text: str
    history: Sequence[Message]
    utterance: str


class Renderer(Protocol):
    """Texts in, token ids out. Blocking, and called in a thread, but for `render_inline`."""

    def count(self, text: str) -> int:
        """Tokens of a text."""

    def render(self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str) -> Prompt:
        """The prompt of a turn."""

    def render_inline(
        self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str
    ) -> Prompt | None:
        """The prompt of a turn where rendering it is quicker than a hop to a thread, else None."""

    def render_prefix(self, *, persona: str, runtime_text: str, history: Sequence[Message] | None) -> list[int]:
        """The part of a prompt that the next turn will share."""


class Classifier(Protocol):
    """Decides whether an utterance asks to look at the screen."""

    async def decide(self, history: Sequence[str], utterance: str) -> Decision:
        """The decision, given the user's earlier turns, oldest first."""


class Chat:
    """A chat model: its engine, and its renderer, behind a thread pool wherever tokenizing would hold up the loop.

    Attributes:
        form: how its replies begin, and what in them is no speech.
        places: what of the engine turns take, and replies that nobody has asked for yet may have beside them.
    """

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        pool: Executor,
        budgets: Budgets,
        *,
        form: ReplyFormat = PLAIN,
        thinking: int = 0,
        places: Places | None = None,
    ) -> None:
        self.engine = engine  # loaded
        self.places = places if places is not None else Places()
        self.form = form
        self._thinking = thinking  # tokens of thought beside a reply's
        self._renderer = renderer  # makes prompts
        self._pool = pool  # where that takes long
        self._budgets = budgets  # of a prompt's parts
        # System prompts that were found to fit: clients send the same with every turn.
        self._fitting = TextCache(len, limit=FITTING_BYTES, entry_limit=FITTING_BYTES // 16)

    async def persona_excess(
        self, persona: str, runtime_text: str, cache_salt: str | None = None
    ) -> PersonaTooLongError | None:
        """What is too long about a system prompt: the persona itself, or no room is left for an utterance."""
        budgets = self._budgets
        # A token is at least one byte, so short texts need no counting.
        if len(persona.encode()) + len(runtime_text.encode()) <= budgets.persona:
            return None
        both = f"{len(persona)} {persona}{runtime_text}"  # tells where the one ends
        with for_salt(cache_salt):
            if both in self._fitting:
                return None
        try:
            tokens = (await self.render(persona, runtime_text, (), "", cache_salt)).token_ids
        except PersonaTooLongError as error:
            return error
        room = budgets.input - budgets.utterance - BOUNDARY_TOKENS
        if len(tokens) > room:
            return PersonaTooLongError(len(tokens), room)
        with for_salt(cache_salt):
            self._fitting.keep(both, len(tokens))
        return None

    async def render(
        self,
        persona: str,
        runtime_text: str,
        history: Sequence[Message],
        utterance: str,
        cache_salt: str | None = None,
    ) -> Prompt:
        """A turn's prompt. What has another salt shares no cache with it, so that no time tells of it."""
        # Most turns are quick. When many begin at once, handing each to a thread and back costs more than rendering it,
        # and the threads wait for the loop, which holds the interpreter.
        parts: PromptParts = {
            "persona": persona,
            "runtime_text": runtime_text,
            "history": history,
            "utterance": utterance,
        }
        with for_salt(cache_salt):
            prompt = self._renderer.render_inline(**parts)
        if prompt is None:
            prompt = await self._in_thread(lambda: self._renderer.render(**parts), cache_salt)
        return prompt

    async def history_fits(
        self, persona: str, runtime_text: str, history: Sequence[Message], cache_salt: str | None = None
    ) -> bool:
        """Whether a turn's prompt holds the whole history. The persona must be within its budget."""
        prompt = await self.render(persona, runtime_text, history, "", cache_salt)
        return prompt.history_kept == len(history)

    async def utterance_budget(self, utterance: str, cache_salt: str | None = None) -> int | None:
        """The budget of utterances in tokens, where this one is over it; none where it fits."""
        budget = self._budgets.utterance
        # A token is at least one byte, so short texts need no counting; and of most long ones the beginning tells.
        if len(utterance.encode()) <= budget:
            return None

        def over() -> bool:
            characters = budget * LONG_TOKEN
            while self._renderer.count(utterance[:characters]) <= budget:
                if characters >= len(utterance):
                    return False
                characters *= 4
            return True

        return budget if await self._in_thread(over, cache_salt) else None

    async def reply(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        speech: Speech,
        cache_salt: str | None = None,
        pause: Pause | None = None,
    ) -> None:
        """Have a reply to a prompt said, to its end. What has another salt shares no prefix cache with it.

        With a `pause` it rests where that says, until the pause is over.
        """
        engine = self.engine if pause is None else Pausing(self.engine, pause)
        await reply.generate(engine, prompt, sampling, speech, self.form, self._thinking, cache_salt)

    async def render_prefix(
        self, persona: str, runtime_text: str, history: Sequence[Message] | None, cache_salt: str | None = None
    ) -> list[int]:
        """Token ids of what the next turn's prompt will begin with."""
        return await self._in_thread(
            lambda: self._renderer.render_prefix(persona=persona, runtime_text=runtime_text, history=history),
            cache_salt,
        )

    async def _in_thread(self, work: Callable[[], T], cache_salt: str | None) -> T:
        def salted() -> T:
            with for_salt(cache_salt):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, salted)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Everything that turns share.

    Attributes:
        chat: none in a tool-only deployment.
        classifier: none in a chat-only deployment.
        metrics: what turns count themselves in.
        generation_timeout: seconds for a whole turn.
        tool_timeout: seconds after which an undecided classifier means no.
        breaker: says when the classifier is not to be waited for.
        died: called with the error when the engine turns out to be dead.
        tracer: takes what is known of turns that ended; none where nobody asked for traces.
        log_turns: whether each turn's end is an event of the log.
        warmed: called when something was put into the prefix cache on a client's request.
        prepare_tokens: how much of a reply is made before its `start`; 0 for nothing.
        prepare_ttl: seconds that it is held.
    """

    chat: Chat | None
    classifier: Classifier | None
    metrics: Metrics
    generation_timeout: float = defaults.GENERATION_TIMEOUT_S
    tool_timeout: float = defaults.TOOL_TIMEOUT_S
    breaker: Breaker = field(default_factory=Breaker)
    died: Callable[[EngineDeadError], None] = lambda error: None
    tracer: Tracer | None = None
    log_turns: bool = False
    warmed: Callable[[], None] = lambda: None
    prepare_tokens: int = defaults.PREPARE_TOKENS
    prepare_ttl: float = defaults.PREPARE_TTL_S

    def wake_engine(self) -> None:
        """Tell the chat model's engine, if there is one, that work is on its way."""
        if self.chat is not None:
            self.chat.engine.wake()
