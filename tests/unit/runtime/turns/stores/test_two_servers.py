"""Two servers and a real store: what a client finds on the second one of what it said on the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.scripted import ScriptedEngine, serving
from tests.harness.stores.session_store import MISSING, VALKEY, Valkey, valkey

pytestmark = pytest.mark.skipif(VALKEY is None, reason=MISSING)


@pytest.fixture(scope="module")
def store() -> Iterator[Valkey]:
    with valkey() as server:
        yield server


def last_prompt(engine: ScriptedEngine) -> str:
    return " ".join(engine.prompts[-1])


async def test_a_client_that_moves_goes_on(store: Valkey) -> None:
    async with serving(session_store=store.url) as one, serving(session_store=store.url) as two:
        async with one.client() as client:
            await client.turn(session_id="m", persona_text="You are Mia.", user_utterance="remember 42", gender="woman")
            await client.turn(session_id="m", user_utterance="and 43")
        async with two.client() as client:
            ack = (await client.turn(session_id="m", user_utterance="what was it"))[0]
        assert ack["chat_prompt"] is True
        assert ack["gender"] == "female" or ack["gender"] == "woman"
        text = last_prompt(two.engine)
        assert "You are Mia." in text
        assert text.count("remember 42") == text.count("and 43") == 1
        assert text.count("Sure thing, here it is.") == 2
