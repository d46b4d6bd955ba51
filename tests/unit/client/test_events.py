"""What a server may send: every text is a frame or a ProtocolError, and no frame breaks the client."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from yap_client import ProtocolError, Unknown, connect, events
from yap_client.dialogue import Dialogue
from yap_client.events import decode
from yap_client.session import Session

DEEP = "[" * 100_000 + "]" * 100_000
# Each is wrong in a way of its own; `id` is that of the turn that runs.
WRONG = {
    "deep in an unknown frame": '{"type":"weird","x":' + DEEP + "}",
    "deep in an unknown field": '{"type":"token","text":"a","request_id":"id","x":' + DEEP + "}",
    "deep objects": '{"type":"weird","x":' + '{"x":' * 100_000 + "1" + "}" * 100_001,
    "deep alone": DEEP,
    "no UTF-8 in an unknown frame": b'{"type":"weird","x":"\xff"}',
    "no UTF-8 in a type": b'{"type":"\xff"}',
    "no UTF-8 in a name": b'{"type":"weird","\xff":1}',
    "no UTF-8 in a token": b'{"type":"token","text":"\xff","request_id":"id"}',
    "no JSON": "weird",
    "no object": "[]",
}

names = st.sampled_from(sorted(events._TYPES | {"weird", "", "ACK"}))
fields = st.sampled_from(
    sorted({field for kind in get_args(events._Known) for field in kind.__struct_encode_fields__} | {"type"})
)
ids = st.sampled_from(["", "turn", "ask", "cancel", "other", 7, 1.5])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | ids,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields | st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
# Near enough to a frame to be taken for one often.
frames = st.builds(
    lambda more, type_, id_: json.dumps({"type": type_, "request_id": id_, **more}),
    st.dictionaries(fields, values, max_size=6)
    | st.fixed_dictionaries({"for": st.sampled_from(["start", "heard", "chat_prompt"]), "ok": st.booleans()})
    | st.fixed_dictionaries({"text": st.text(max_size=8)})
    | st.fixed_dictionaries({"error_code": st.text(max_size=8) | st.sampled_from(["draining", "no_active_session"])})
    | st.fixed_dictionaries({"cancelled": st.booleans(), "failed": st.booleans()}),
    names,
    ids,
)


def read(text: str | bytes) -> object:
    """The frame, or none."""
    try:
        return decode(text)
    except ProtocolError as wrong:
        assert len(str(wrong)) < 1000  # noqa: PT017 - one line, whatever came
        return None


@given(st.text(st.characters(categories=None)) | st.binary() | frames)
@example("\ud800")
@example('{"type":"weird","x":"\ud800"}')
@example('{"type":"weird","x":' + "9" * 5000 + "}")
def test_every_text_and_all_bytes_are_a_frame_or_a_protocol_error(text: str | bytes) -> None:
    read(text)
    if isinstance(text, str):
        whole = text.encode("utf-8", "surrogatepass")
        for cut in (whole[: len(whole) // 2], whole[:-2], whole.replace(b'":"', b'":"\xff', 1)):
            read(cut)


@pytest.mark.parametrize("name", WRONG)
def test_a_text_that_is_wrong_in_its_own_way_is_a_protocol_error(name: str) -> None:
    with pytest.raises(ProtocolError, match="does not speak this protocol"):
        decode(WRONG[name])


def test_a_frame_of_a_newer_server_is_unknown_and_whole() -> None:
    assert decode('{"type":"weird","x":[1]}') == Unknown(type="weird", raw={"type": "weird", "x": [1]})


@given(st.lists(frames, max_size=12), st.booleans())
def test_no_frame_breaks_a_dialogue(texts: list[str], begun: bool) -> None:
    dialogue = Dialogue(Session("s1", {"persona": "You are Mia."}, None, None))
    dialogue.connected()
    dialogue.received('{"type":"pong"}')
    turn = dialogue.say("start", {"user_utterance": "one"}, "one")
    if begun:
        dialogue.received(json.dumps({"type": "ack", "for": "start", "ok": True, "request_id": turn.id}))
    ask = dialogue.request("chat_prompt", {"session_id": "s1", "persona_text": "You are Mia."})
    heard = dialogue.heard(turn, {"chars": 1})
    dialogue.cancel(turn)
    known = {"turn": turn.id, "ask": ask.id, "cancel": next(iter(dialogue._outbox.cancels), "")}
    for text in texts:
        frame = json.loads(text)
        frame["request_id"] = known.get(str(frame["request_id"]), frame["request_id"])
        try:
            dialogue.received(json.dumps(frame))
        except ProtocolError:
            break
    dialogue.lost("the socket was cut", 1006)
    dialogue.end()
    assert turn.over
    assert ask.over
    assert heard.over


@pytest.mark.parametrize("name", WRONG)
async def test_a_client_that_gets_a_wrong_frame_says_so_and_is_left_in_peace(name: str) -> None:
    async def lie(socket: ServerConnection) -> None:
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "ping":
                await socket.send(json.dumps({"type": "pong", "request_id": message["request_id"]}))
            elif message["type"] == "start":
                await socket.send(WRONG[name])

    async with serve(lie, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/ws", "k") as talk:
            turn = talk.say("one")
            await turn.wait()
            with pytest.raises(ProtocolError, match="does not speak this protocol"):
                await talk.say("two").reply()
