"""Prompt caches of keys: what one finds in the cache never depends on what another said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.engines import Delta, Sampling
from runtime.host.texts.cache import TextCache
from runtime.text.prompt import Message, Prompt
from tests.harness.scripted import ScriptedEngine, ScriptedRenderer, serving

KEYS = ("alice", "mallory")
WORDS = ("Acme", "Falcon", "Otter")


class CachingEngine(ScriptedEngine):
    """Has a prefix cache as real engines do: a prompt finds the longest beginning that came with the same salt."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str | None, list[int]]] = []

    def _find(self, prompt: Sequence[int], salt: str | None) -> int:
        found = max((_common(known, prompt) for of, known in self.seen if of == salt), default=0)
        self.seen.append((salt, list(prompt)))
        return found

    async def generate(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        on_delta: Callable[[Delta], None],
        cache_salt: str | None = None,
    ) -> None:
        on_delta(Delta("Yes.", 1, "stop", cached_tokens=self._find(prompt, cache_salt)))

    async def warm(self, prompt: Sequence[int], cache_salt: str | None = None) -> int:
        return self._find(prompt, cache_salt)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


# Who, whether a turn or a prefill, and the persona.
ACTIONS = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(["start", "warm"]), st.lists(st.sampled_from(WORDS), max_size=4)),
    max_size=10,
)


async def found(actions: list[tuple[str, str, list[str]]], sharing: str = "key") -> dict[str, list[int]]:
    """What each key is told of the cache."""
    told: dict[str, list[int]] = {key: [] for key in KEYS}
    values = {"text_api_key": ",".join(KEYS), "cache_sharing": sharing, "ws_max_messages_per_window": 0}
    async with (
        serving(CachingEngine(), **values) as running,
        running.client(KEYS[0]) as one,
        running.client(KEYS[1]) as other,
    ):
        clients = dict(zip(KEYS, (one, other), strict=True))
        for number, (key, what, words) in enumerate(actions):
            client, persona = clients[key], " ".join(words)
            if what == "warm" and persona:
                await client.send(type="warm_persona", persona_text=persona)
                await client.until("warmed")
            else:
                frames = await client.turn(session_id=str(number), persona_text=persona, user_utterance="hi")
                told[key].append(frames[-1]["usage"]["cached_tokens"])
    return told


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_what_a_key_finds_does_not_depend_on_others(actions: list[tuple[str, str, list[str]]]) -> None:
    together = asyncio.run(found(actions))
    for key in KEYS:
        alone = asyncio.run(found([action for action in actions if action[0] == key]))
        assert together[key] == alone[key]


class Tokenized(ScriptedRenderer):
    """Keeps what it tokenized, as the runtime's renderer does; how often it had to is what a client sees as time."""

    def __init__(self, *, inline: bool) -> None:
        super().__init__()
        self.inline = inline
        self.anew: list[str] = []
        self.tokens = TextCache(self._tokenize, limit=1_000_000, entry_limit=100_000)

    def _tokenize(self, text: str) -> int:
        self.anew.append(text)
        return len(text)

    def render(self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str) -> Prompt:
        self.tokens(persona)
        return super().render(persona=persona, runtime_text=runtime_text, history=history, utterance=utterance)

    def render_inline(
        self, *, persona: str, runtime_text: str, history: Sequence[Message], utterance: str
    ) -> Prompt | None:
        parts = {"persona": persona, "runtime_text": runtime_text, "utterance": utterance}
        return self.render(history=history, **parts) if self.inline else None

    def render_prefix(self, *, persona: str, runtime_text: str, history: Sequence[Message] | None) -> list[int]:
        self.tokens(persona)
        return super().render_prefix(persona=persona, runtime_text=runtime_text, history=history)


@pytest.mark.parametrize("what", ["start", "inline", "warm", "long"])
@pytest.mark.parametrize(("sharing", "times"), [("key", 2), ("server", 1)])
async def test_what_another_key_had_tokenized_is_tokenized_anew(what: str, sharing: str, times: int) -> None:
    # Else a right guess would be answered sooner than a wrong one.
    renderer = Tokenized(inline=what == "inline")
    secret = "Falcon " * (2000 if what == "long" else 3)
    async with serving(renderer=renderer, text_api_key=",".join(KEYS), cache_sharing=sharing) as running:
        for key in (*KEYS, *KEYS):
            async with running.client(key) as client:
                if what == "warm":
                    await client.send(type="warm_persona", persona_text=secret)
                    await client.until("warmed")
                else:
                    await client.send(type="start", session_id=key, persona_text=secret, user_utterance="hi")
                    while (await client.receive())["type"] not in ("done", "error"):
                        pass
    assert renderer.anew.count(secret.strip()) + renderer.anew.count(secret) == times


GUESS = [("alice", "start", ["Acme", "Falcon"]), ("mallory", "start", ["Acme", "Falcon"])]


def test_a_right_guess_at_anothers_prompt_finds_nothing() -> None:
    assert asyncio.run(found(GUESS))["mallory"] == [0]


def test_where_the_server_shares_its_cache_it_does() -> None:
    assert asyncio.run(found(GUESS, "server"))["mallory"][0] > 0


def test_what_a_key_warms_its_own_turns_find() -> None:
    warm = [("alice", "warm", ["Acme", "Falcon"]), ("alice", "start", ["Acme", "Falcon"])]
    assert asyncio.run(found(warm))["alice"][0] >= 3


async def test_keys_of_one_holder_share_its_cache(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("acme: one\nacme: two\n")
    async with serving(CachingEngine(), text_api_key=None, text_api_key_file=file) as running:
        for key, expected in (("one", False), ("two", True)):
            async with running.client(key) as client:
                frames = await client.turn(session_id=key, persona_text="Acme", user_utterance="hi")
                assert (frames[-1]["usage"]["cached_tokens"] > 0) is expected
