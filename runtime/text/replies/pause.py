"""A pause in a reply that nobody has asked for yet: it rests after so many tokens, and goes on when it is asked for.

Engines cannot hold a request. So it is ended, and what follows is made by another one whose prompt is the first one's
and what was said: all of that comes out of the prefix cache. That is the same reply only where no token depends on more
than the tokens before it. Where one does, the reply is spoilt by its rest: whoever asks for it has it made anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from runtime.engines import Delta, Generates, Sampling, continues

# A character's bytes may be tokens each: so many more may be made until a whole character has been said.
MOST_BEYOND = 8


class Pause:
    """Where one reply rests, and until when.

    Attributes:
        tokens: after which it rests.
        made: tokens so far, those before the rest and, where it was over sooner, before that.
        spoilt: whether what follows the rest would be another reply than an unbroken one.
        rests: called once, when the engine holds nothing of it any more before it is over.
    """

    def __init__(self, tokens: int, rests: Callable[[], None] = lambda: None) -> None:
        self.tokens = tokens
        self.rests = rests
        self.made = 0
        self.spoilt = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def over(self) -> bool:
        """Whether the reply was asked for."""
        return self._end.done()

    def end(self) -> None:
        """Let the reply go on, at once where it has not rested yet."""
        if not self._end.done():
            self._end.set_result(None)

    async def wait(self, *beside: asyncio.Future[None]) -> None:
        """Wait until it is over, or one of the futures is done."""
        if not self._end.done():
            await asyncio.wait((self._end, *beside), return_when=asyncio.FIRST_COMPLETED)


class _RestError(Exception):
    """The reply has come to its pause."""


class Pausing:
    """An engine's replies with one pause, which may fall into any of the requests that they are made of."""

    def __init__(self, engine: Generates, pause: Pause) -> None:
        self._engine = engine
        self._pause = pause

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        """Reply as `Engine.generate` does, resting where the pause says."""
        pause = self._pause
        told: list[int] = []
        here = 0  # tokens of this request

        def count(delta: Delta) -> None:
            nonlocal here
            if not pause.over:
                here += delta.tokens
                pause.made += delta.tokens
                told.extend(delta.token_ids)
            on_delta(delta)
            if pause.over or delta.finish_reason is not None or pause.made < pause.tokens:
                return
            # Of several tokens the last may begin a character, and the text is whole: the next prompt would end in it.
            if _whole(delta.text) and delta.tokens == 1:
                raise _RestError
            if pause.made >= pause.tokens + MOST_BEYOND:
                pause.spoilt = True
                raise _RestError

        try:
            await self._engine.generate(prompt, replace(sampling, each_token=True), count, cache_salt)
        except _RestError:
            pause.spoilt = pause.spoilt or len(told) != here or not _goes_on(self._engine, sampling)
        else:
            return
        pause.rests()
        await pause.wait()
        left = sampling.max_tokens - here
        if left > 0:
            await self._engine.generate([*prompt, *told], replace(sampling, max_tokens=left), on_delta, cache_salt)
        else:
            on_delta(Delta("", 0, "length"))


def _whole(text: str) -> bool:
    """Whether a text ends with a whole character: what another request says behind half of one cannot be read."""
    return bool(text) and not text.endswith("\ufffd")


def _goes_on(engine: Generates, sampling: Sampling) -> bool:
    """Whether a reply can be cut, and go on as if it had not been.

    A seed's numbers begin anew with each request, and these two penalties look at what a request has made, not at its
    prompt. The most probable token needs no number.
    """
    drawn = sampling.seed is not None and sampling.temperature > 0
    counted = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
    return not drawn and not counted and continues(engine)
