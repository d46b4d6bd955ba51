"""The session key of a handshake: where it stands, what it may be, and that nothing else depends on it."""

from __future__ import annotations

import contextlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from runtime.server.session_key import SessionKeyError, session_key
from tests.harness.scripted import KEY, Client, serving
from tests.harness.waiting import eventually


def test_the_header_wins_over_the_query_and_that_over_the_cookie() -> None:
    cookie = {"cookie": 'theme=dark; yap_session="c"; other=x'}
    assert session_key({}, {}) is None
    assert session_key(cookie, {}) == "c"
    assert session_key(cookie, {"session": "q"}) == "q"
    assert session_key({**cookie, "x-session-id": "h"}, {"session": "q"}) == "h"
    assert session_key({"x-session-id": ""}, {"session": "q"}) == "q"


@given(st.text(), st.sampled_from(["header", "query", "cookie"]))
def test_any_text_is_a_key_or_refused_without_being_told(text: str, where: str) -> None:
    headers = {"header": {"x-session-id": text}, "cookie": {"cookie": f"yap_session={text}"}}.get(where, {})
    query = {"session": text} if where == "query" else {}
    if where != "cookie" and (len(text) > 256 or controls(text)):
        with pytest.raises(SessionKeyError) as refused:
            session_key(headers, query)
        assert len(text) < 20 or text not in str(refused.value)
    elif where != "cookie":
        assert session_key(headers, query) == (text or None)
    else:
        with contextlib.suppress(SessionKeyError):
            key = session_key(headers, query)
            assert key is None or (len(key) <= 256 and not controls(key))


def controls(text: str) -> bool:
    return any(unicodedata.category(letter) == "Cc" for letter in text)


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=256)
    | st.sampled_from(["👨‍👩‍👧", "a\xa0b", "\u2028"])
)
def test_what_names_a_session_is_a_key(text: str) -> None:
    assert session_key({}, {"session": text}) == (text or None)


@pytest.mark.parametrize("place", ["header", "query", "cookie"])
async def test_another_session_than_the_keys_is_served(place: str) -> None:
    async with serving() as running:
        headers = {"X-API-Key": KEY}
        url = running.url
        if place == "query":
            url += "?session=k%20ey"
        else:
            headers |= {"X-Session-Id": "key"} if place == "header" else {"Cookie": "yap_session=key"}
        async with connect(url, additional_headers=headers) as socket:
            frames = await Client(socket).turn(session_id="another", user_utterance="hi")
            assert frames[0]["session_id"] == "another"
            assert frames[-1]["type"] == "done"


async def test_what_is_no_key_is_told_and_takes_no_slot() -> None:
    async with serving() as running:
        for query, found in ((f"?session={'x' * 257}", "257 characters"), ("?session=a%0ab", "a control character")):
            async with connect(running.url + query, additional_headers={"X-API-Key": KEY}) as socket:
                client = Client(socket)
                frame = await client.receive()
                assert (frame["error_code"], frame["field"], frame["found"]) == ("invalid_session", "session", found)
                await socket.wait_closed()
                assert (socket.close_code, socket.close_reason) == (1008, "invalid_session")
        await eventually(lambda: running.service.admission.held == 0)


async def test_a_stranger_is_told_that_first() -> None:
    async with serving() as running, connect(running.url + f"?session={'x' * 999}") as socket:
        assert (await Client(socket).receive())["error_code"] == "authentication_failed"


async def test_the_key_is_in_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(log_turns=True) as running:
        headers = {"X-API-Key": KEY, "X-Session-Id": "jane.doe@example.com", "Cookie": "yap_session=jane.cookie"}
        async with connect(running.url + "?session=jane.query", additional_headers=headers) as socket:
            await Client(socket).turn(user_utterance="hi")
    told = capsys.readouterr()
    assert "turn" in told.out
    assert "jane" not in told.out + told.err
