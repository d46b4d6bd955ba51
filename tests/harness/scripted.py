"""A scripted engine, renderer and classifier, and a server around them on a real socket.

For tests where timing and failure must be controlled. The real ones are tested in `tests/integration`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from runtime.deployment.classifier import Decision, ToolProbability
from runtime.deployment.models import Chat, Renderer
from runtime.deployment.serving import ChatServing, ServingPlan, ToolServing
from runtime.deployment.settings import RuntimeSettings
from runtime.deployment.traces import Tracer
from runtime.engines import Delta, EngineDeadError, EngineOptions, Load, Sampling, StartMark, TokenScore
from runtime.engines.places import Places
from runtime.server.process import Server, bind, web_config
from runtime.server.service import Service
from runtime.text.prompt import Budgets, Message, PersonaTooLongError, Prompt
from runtime.text.replies.reply_format import PLAIN, ReplyFormat
from runtime.turns.stores.interface import Store

KEY = "test-key"
REPLY = ("Sure", " thing", ", here", " it is.")


@dataclass
class ScriptedEngine:
    """An engine that replies with `reply`, or with what `script` makes of the prompt; a token is a word of it.

    Attributes:
        reply: the words of every reply.
        script: makes the reply of the prompt's words, instead.
        pause: seconds before each delta.
        pause_steps: steps of the loop before each delta, beside them.
        gate: when set, no delta comes before it is set.
        fail_after: raise `error` after so many deltas.
        error: what is raised.
        abort_seconds: how long an abort takes.
        abort_steps: how many steps of the loop it takes.
        block: tokens in a block of the prefix cache.
        refuse_reset: whether the caches cannot be reset.
        dead: whether every call fails, as after the engine's death.
        held: requests that run now, by number.
        most_held: the most that ran at once.
        prompts: the words of each prompt so far.
        samplings: the sampling of each request so far.
        warmed: the words of each prefix that was warmed.
        woken: how many requests had come at each wake-up.
        resets: how often the caches were reset.
        aborts: how many requests were aborted.
    """

    reply: Sequence[str] = REPLY
    script: Callable[[list[str]], Sequence[str]] | None = None
    pause: float = 0.0
    pause_steps: int = 0
    gate: asyncio.Event | None = None
    fail_after: int | None = None
    error: Exception = field(default_factory=lambda: RuntimeError("scripted failure with secret details"))
    abort_seconds: float = 0.0
    abort_steps: int = 0
    block: int = 1
    refuse_reset: bool = False
    dead: bool = False
    held: set[int] = field(default_factory=set)
    most_held: int = 0
    prompts: list[list[str]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    salts: list[str | None] = field(default_factory=list)
    warmed: list[list[str]] = field(default_factory=list)
    woken: list[int] = field(default_factory=list)
    resets: int = 0
    aborts: int = 0

    async def start(self) -> None:
        """Do nothing: there is nothing to load."""

    def start_marks(self) -> Sequence[StartMark]:
        return ()

    def wake(self) -> None:
        """Remember how many requests had come by then."""
        self.woken.append(len(self.prompts))

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Send the scripted reply, one delta a word."""
        words = Words.read(prompt)
        number = len(self.prompts)
        self.prompts.append(words)
        self.samplings.append(sampling)
        self.salts.append(cache_salt)
        self.held.add(number)
        self.most_held = max(self.most_held, len(self.held))
        finished = False
        try:
            reply = self.script(words) if self.script else self.reply
            for index, text in enumerate(reply):
                if self.gate is not None:
                    await self.gate.wait()
                await asyncio.sleep(self.pause)
                for _ in range(self.pause_steps):
                    await asyncio.sleep(0)
                if self.dead:
                    raise EngineDeadError("the scripted engine died")
                if self.fail_after is not None and index >= self.fail_after:
                    raise self.error
                last = index == len(reply) - 1
                on_delta(Delta(text, 1, "stop" if last else None, cached_tokens=3, token_ids=Words.ids_of(text)))
            finished = True
        finally:
            if not finished:
                self.aborts += 1
                # As a real engine's, an abort goes through also when whoever waits for it is cancelled.
                await wait_uncancelled(asyncio.ensure_future(self._abort(number)))
            self.held.discard(number)

    async def _abort(self, number: int) -> None:
        for _ in range(self.abort_steps):
            await asyncio.sleep(0)
        if self.abort_seconds:
            await asyncio.sleep(self.abort_seconds)
        self.held.discard(number)

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        """Remember the prefix in `warmed`."""
        if self.gate is not None:
            await self.gate.wait()
        if self.dead:
            raise EngineDeadError("the scripted engine died")
        self.warmed.append(Words.read(prompt))
        self.salts.append(cache_salt)
        return 0

    def reusable(self, tokens: int) -> int:
        """Return whole blocks of `block`."""
        return tokens // self.block * self.block

    async def score(self, tokens: Sequence[int]) -> list[TokenScore]:
        """Score every token as certain."""
        return [TokenScore(0.0, token) for token in tokens[1:]]

    async def load(self) -> Load:
        """Return the number of requests that run now."""
        await self.health()
        return Load(len(self.held), 0, 0.0)

    async def reset_caches(self) -> bool:
        """Count the reset in `resets`, unless it is to be refused."""
        self.resets += not self.refuse_reset
        return not self.refuse_reset

    async def health(self) -> None:
        """Raise EngineDeadError when the engine is dead."""
        if self.dead:
            raise EngineDeadError("the scripted engine died")

    async def shutdown(self) -> None:
        """Do nothing: there is nothing to stop."""


async def wait_uncancelled(work: asyncio.Future[None]) -> None:
    """Wait for a future to its end even when the waiting task is cancelled; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class Words:
    """A vocabulary of whole words, so that a test can read a prompt."""

    ids: dict[str, int] = {}  # noqa: RUF012
    words: list[str] = []  # noqa: RUF012

    @classmethod
    def ids_of(cls, text: str) -> list[int]:
        """Return the ids of a text's words; new words are added."""
        found = []
        for word in text.split():
            if word not in cls.ids:
                cls.ids[word] = len(cls.words)
                cls.words.append(word)
            found.append(cls.ids[word])
        return found

    @classmethod
    def read(cls, ids: Sequence[int]) -> list[str]:
        """Return the words of ids."""
        return [cls.words[number] for number in ids]


@dataclass
class ScriptedRenderer:
    """A renderer of prompts like `[system …] [user …] [assistant …]`, a token a word."""

    budgets: Budgets = field(default_factory=Budgets)
    error: Exception | None = None

    def count(self, text: str) -> int:
        """Return the number of words."""
        return len(text.split())

    def render(self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str) -> Prompt:
        """Render the whole prompt."""
        if self.error is not None:
            raise self.error
        text = self._prefix(persona, runtime_text, history)
        return Prompt(Words.ids_of(f"{text} [user] {utterance}"), len(history))

    def render_inline(
        self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str
    ) -> Prompt | None:
        """Return none, as a slow renderer does, so that tests go through the slow path."""
        return None

    def render_prefix(self, *, persona: str, runtime_text: str, history: Sequence[Message] | None) -> list[int]:
        """Render the prompt up to the utterance."""
        return Words.ids_of(self._prefix(persona, runtime_text, history or ()))

    def _prefix(self, persona: str, runtime_text: str, history: Sequence[Message]) -> str:
        if (found := self.count(persona)) > self.budgets.persona:
            raise PersonaTooLongError(found, self.budgets.persona)
        system = f"[system] {persona} {runtime_text}" if persona or runtime_text else ""
        return " ".join([system, *(f"[{message.role}] {message.content}" for message in history)])


@dataclass
class ScriptedClassifier:
    """A classifier that says yes to utterances with "look" in them, after a pause or when a gate opens.

    With `tools` it asks for those that an utterance names.
    """

    pause: float = 0.0
    gate: asyncio.Event | None = None
    error: Exception | None = None
    tools: tuple[str, ...] = ()
    asked: list[tuple[list[str], str]] = field(default_factory=list)
    running: int = 0

    async def decide(self, history: Sequence[str], utterance: str) -> Decision:
        """Return the scripted decision."""
        self.asked.append((list(history), utterance))
        self.running += 1
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(self.pause))
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        if self.tools:
            named = [name for name in self.tools if name in utterance]
            calls = tuple(ToolProbability(name, 0.95 - 0.01 * index) for index, name in enumerate(named))
            return Decision("take_screenshot" in named, 0.9, calls)
        return Decision(take_screenshot="look" in utterance, probability=0.9)


def settings(**values: Any) -> RuntimeSettings:
    """Make RuntimeSettings for tests, from field names as keywords."""
    return RuntimeSettings(**{"artifact": "unused", "text_api_key": KEY, "host": "127.0.0.1", **values})


@dataclass
class Running:
    """A server that runs in this process."""

    service: Service
    server: Server
    engine: ScriptedEngine
    classifier: ScriptedClassifier | None
    port: int

    @property
    def url(self) -> str:
        """The address of `/ws`."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @asynccontextmanager
    async def client(self, key: str | None = KEY, **options: Any) -> AsyncIterator[Client]:
        """Connect a client."""
        headers = {"X-API-Key": key} if key is not None else {}
        async with connect(self.url, additional_headers=headers, **options) as socket:
            yield Client(socket)


@dataclass
class Client:
    """A client that sends and receives JSON objects."""

    socket: ClientConnection

    async def send(self, **message: Any) -> None:
        """Send one message."""
        await self.socket.send(json.dumps(message))

    async def receive(self, timeout: float = 60.0) -> dict[str, Any]:
        """Receive one frame."""
        frame = json.loads(await asyncio.wait_for(self.socket.recv(), timeout))
        assert isinstance(frame, dict)
        return frame

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Receive frames up to the first of a kind, and return all of them."""
        frames = [await self.receive()]
        while frames[-1]["type"] != kind:
            frames.append(await self.receive())
        return frames

    async def turn(self, **message: Any) -> list[dict[str, Any]]:
        """Send a `start` and return the turn's frames."""
        await self.send(**{"type": "start", "session_id": "s1", **message})
        return await self.until("done")

    async def silent(self, seconds: float = 0.05) -> bool:
        """Tell whether no frame comes for a while."""
        try:
            await asyncio.wait_for(self.socket.recv(), seconds)
        except asyncio.TimeoutError:
            return True
        return False


@asynccontextmanager
async def serving(
    engine: ScriptedEngine | None = None,
    classifier: ScriptedClassifier | None = None,
    *,
    chat: bool = True,
    renderer: Renderer | None = None,
    max_out: int = 150,
    form: ReplyFormat = PLAIN,
    thinking: int = 0,
    places: int | None = None,
    opened: bool = True,
    listens_on: int = 0,
    tracer: Tracer | None = None,
    store: Store | None = None,
    **values: Any,
) -> AsyncIterator[Running]:
    """Run a server on a loopback port (0: a free one) over scripted parts; `chat=False` makes it tool-only.

    `places` are what the engine runs at once. Where that is not known, as of a scripted one, a request that waits for
    the next step counts as one for which there is no room, and ends what was prepared.
    """
    engine = engine or ScriptedEngine()
    chosen = settings(**values)
    service = Service(chosen)
    service.tracer = tracer
    service.store = store
    pool = ThreadPoolExecutor(2)
    renderer = renderer or ScriptedRenderer()
    budgets = renderer.budgets if isinstance(renderer, ScriptedRenderer) else Budgets()
    stack = None
    if chat:
        stack = Chat(engine, renderer, pool, budgets, form=form, thinking=thinking, places=Places(places))
    plan = ServingPlan(
        "both" if chat and classifier else "chat" if chat else "tool",
        ChatServing(budgets, max_out, EngineOptions()) if chat else None,
        ToolServing(0.66, 128, 0.2) if classifier else None,
        None,
    )
    if opened:
        service.open(stack, classifier, plan)
    listener = bind("127.0.0.1", listens_on)
    server = Server(web_config(service))
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield Running(service, server, engine, classifier, listener.getsockname()[1])
        # Whatever a test did: no prompt of a key's may lie in a cache that others share.
        assert chosen.cache_sharing == "server" or None not in engine.salts
    finally:
        server.should_exit = True
        await task
        pool.shutdown()
        if service.ended.done() and not service.ended.cancelled():
            service.ended.exception()
