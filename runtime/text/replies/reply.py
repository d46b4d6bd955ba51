"""Having a reply generated: thought within its own budget, then speech within its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from runtime.engines import Delta, Generates, Sampling
from runtime.text.replies.reply_format import ReplyFormat
from runtime.text.replies.speech import Speech

# Ways to draw that are kept: a server's turns share a few. Not those with a text or a seed of a client's own.
KNOWN_SAMPLINGS = 256


class _EnoughThoughtError(Exception):
    """Thought has used up its budget."""


class _EnoughSpeechError(Exception):
    """Speech has used up its budget."""


class _StopSaidError(Exception):
    """Speech has come to what ends it."""


async def generate(
    engine: Generates,
    prompt: Sequence[int],
    sampling: Sampling,
    speech: Speech,
    form: ReplyFormat,
    thinking: int = 0,
    cache_salt: str | None = None,
) -> None:
    """Have a reply said, to its end.

    Thought that goes over its budget is cut off the way that the template ends it, and the reply goes on behind it: a
    second request, whose prompt comes out of the prefix cache.

    Args:
        engine: a started one.
        prompt: token ids.
        sampling: `max_tokens` bounds what is spoken, and what is thought as well where `thinking` is 0.
        speech: is fed; the caller finishes it.
        form: of the model's replies.
        thinking: tokens that thought may take beside `max_tokens`.
        cache_salt: of all its requests; see `Engine.generate`.

    Raises:
        EngineDeadError, ValueError: as `Engine.generate`.
    """
    if form.stop_token_ids or form.shows_special_tokens:
        make = _ending if sampling.seed is None and not sampling.stop else _ending.__wrapped__
        sampling = make(sampling, form.stop_token_ids, form.shows_special_tokens)
    if not thinking and not sampling.stop and not form.marks.stops:
        await engine.generate(prompt, sampling, speech.feed, cache_salt)
        return
    try:
        if thinking:
            await _think_and_speak(engine, prompt, sampling, speech, form, thinking, cache_salt)
        else:
            # Where a stop text ends it, what comes behind that is not to be counted.
            each = replace(sampling, each_token=True) if sampling.stop else sampling
            await engine.generate(prompt, each, lambda delta: _feed(speech, delta), cache_salt)
    except _StopSaidError:
        return  # the engine has ended the request


@lru_cache(KNOWN_SAMPLINGS)
def _ending(sampling: Sampling, stop_token_ids: tuple[int, ...], shows_special_tokens: bool) -> Sampling:
    """The sampling of replies that end as a model's do."""
    ends = (*sampling.stop_token_ids, *stop_token_ids)
    return replace(sampling, stop_token_ids=ends, show_special_tokens=shows_special_tokens)


def _feed(speech: Speech, delta: Delta) -> None:
    speech.feed(delta)
    if speech.stopped and delta.finish_reason is None:
        raise _StopSaidError


async def _think_and_speak(
    engine: Generates,
    prompt: Sequence[int],
    sampling: Sampling,
    speech: Speech,
    form: ReplyFormat,
    thinking: int,
    cache_salt: str | None,
) -> None:
    told: list[int] = []
    may_think, ended = True, False

    def on_delta(delta: Delta) -> None:
        nonlocal ended
        _feed(speech, delta)
        ended = delta.finish_reason is not None
        if delta.finish_reason != "stop":  # the token that ended the turn must not stand in its middle
            told.extend(delta.token_ids)
        if may_think and speech.hidden and (ended or speech.hidden_tokens >= thinking):
            raise _EnoughThoughtError
        if not ended and speech.spoken_tokens >= sampling.max_tokens:
            raise _EnoughSpeechError

    try:
        try:
            # Its tokens are counted here: what is thought, and what is said.
            longest = replace(sampling, max_tokens=sampling.max_tokens + thinking, each_token=True)
            await engine.generate(prompt, longest, on_delta, cache_salt)
        except _EnoughThoughtError:
            may_think = False
            room = sampling.max_tokens - speech.spoken_tokens
            ending = speech.end_hidden(form.thought_ends)
            if ending and room > 0:
                behind = [*prompt, *told, *form.encode(ending)]
                await engine.generate(behind, replace(sampling, max_tokens=room), on_delta, cache_salt)
            elif not ended:
                speech.feed(Delta("", 0, "length"))
    except _EnoughSpeechError:
        speech.feed(Delta("", 0, "length"))
