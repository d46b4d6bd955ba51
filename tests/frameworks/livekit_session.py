"""A LiveKit agent session of text in, LLM, text out, as an application has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from livekit.agents import Agent, AgentSession, llm
from livekit.agents.voice import SpeechHandle, io


class Text(io.TextOutput):
    """Keeps what the session has to say, with the turn that it was said in.

    Attributes:
        turn: the one that runs, as the test counts them.
        said: turn and text of each piece.
    """

    def __init__(self) -> None:
        super().__init__(label="text", next_in_chain=None)
        self.turn = -1
        self.said: list[tuple[int, str]] = []
        self._came = asyncio.Event()

    async def capture_text(self, text: str) -> None:
        self.said.append((self.turn, text))
        self._came.set()

    def flush(self) -> None:
        pass

    async def until(self, pieces: int, handle: SpeechHandle) -> None:
        """Wait until so many pieces of the turn have come, or it is over."""
        played = asyncio.ensure_future(handle.wait_for_playout())
        while sum(turn == self.turn for turn, _ in self.said) < pieces and not played.done():
            self._came.clear()
            came = asyncio.ensure_future(self._came.wait())
            await asyncio.wait({came, played}, return_when=asyncio.FIRST_COMPLETED)
            came.cancel()
        played.cancel()


@asynccontextmanager
async def conversing(model: llm.LLM, agent: Agent) -> AsyncIterator[tuple[AgentSession, Text]]:
    """Run an agent of text in, text out."""
    text = Text()
    async with AgentSession(llm=model) as session:
        session.output.transcription = text
        session.output.set_transcription_enabled(True)
        await session.start(agent)
        yield session, text
    await model.aclose()
