"""What is written on the wire, letter by letter: the contract's own lines."""

from __future__ import annotations

import pytest

from runtime.wire.frames import (
    Ack,
    Capacity,
    ChatPromptAck,
    ConnectionClosed,
    Done,
    Draining,
    Error,
    Final,
    Frame,
    HeardAck,
    Pong,
    Token,
    ToolCall,
    Usage,
    Warmed,
    encode,
)

NOW = "2026-11-22T10:40:15+00:00"
LINES: list[tuple[Frame, str]] = [
    (
        Ack(to="start", ok=True, session_id="s1", now=NOW, gender="female", personality="flirty", chat_prompt=True),
        '{"type":"ack","for":"start","ok":true,"session_id":"s1","now":"2026-11-22T10:40:15+00:00",'
        '"gender":"female","personality":"flirty","chat_prompt":true}',
    ),
    (
        ToolCall(status="yes", raw=[{"name": "take_screenshot"}]),
        '{"type":"toolcall","status":"yes","raw":[{"name":"take_screenshot"}]}',
    ),
    (ToolCall(status="no", raw=[]), '{"type":"toolcall","status":"no","raw":[]}'),
    (Token(text="Sure thing,"), '{"type":"token","text":"Sure thing,"}'),
    (
        Final(normalized_text="Sure thing, here it is."),
        '{"type":"final","normalized_text":"Sure thing, here it is."}',
    ),
    (
        Done(
            usage=Usage(
                prompt_tokens=412,
                cached_tokens=384,
                completion_tokens=37,
                finish_reason="stop",
                ttft_ms=38.1,
                duration_ms=512.9,
            )
        ),
        '{"type":"done","usage":{"prompt_tokens":412,"cached_tokens":384,"completion_tokens":37,'
        '"finish_reason":"stop","ttft_ms":38.1,"duration_ms":512.9}}',
    ),
    (Done(cancelled=True), '{"type":"done","cancelled":true}'),
    (Done(failed=True), '{"type":"done","failed":true}'),
    (Pong(), '{"type":"pong"}'),
    (
        Warmed(segment="persona_static", tokens=398, bytes=1604),
        '{"type":"warmed","segment":"persona_static","tokens":398,"bytes":1604}',
    ),
    (
        ChatPromptAck(to="chat_prompt", ok=True, code=200, message="updated"),
        '{"type":"ack","for":"chat_prompt","ok":true,"code":200,"message":"updated"}',
    ),
    (
        HeardAck(to="heard", ok=True, session_id="s1", chars=12),
        '{"type":"ack","for":"heard","ok":true,"session_id":"s1","chars":12}',
    ),
    (ConnectionClosed(reason="client_request"), '{"type":"connection_closed","reason":"client_request"}'),
    (
        Error(
            error_code="server_at_capacity",
            message="Server is at capacity.",
            capacity=Capacity(active=24, max=24, available=0, at_capacity=True),
        ),
        '{"type":"error","error_code":"server_at_capacity","message":"Server is at capacity.",'
        '"capacity":{"active":24,"max":24,"available":0,"at_capacity":true}}',
    ),
    (
        Error(error_code="message_rate_limited", message="…", retry_in=12),
        '{"type":"error","error_code":"message_rate_limited","message":"…","retry_in":12}',
    ),
    (Draining(deadline_s=25), '{"type":"draining","deadline_s":25,"reconnect":true}'),
]


@pytest.mark.parametrize(("frame", "line"), LINES, ids=lambda value: type(value).__name__)
def test_a_frame_is_written_as_the_contract_writes_it(frame: Frame, line: str) -> None:
    assert encode(frame) == line


def test_every_kind_of_frame_is_among_them() -> None:
    assert {type(frame) for frame, _ in LINES} == set(Frame.__subclasses__())


@pytest.mark.parametrize("request_id", ["r1", 7, 0, "", 1.5])
def test_the_request_id_comes_last_on_any_frame(request_id: str | int | float) -> None:
    for frame, line in LINES:
        frame.request_id = request_id
        shown = f'"{request_id}"' if isinstance(request_id, str) else request_id
        try:
            assert encode(frame) == f'{line[:-1]},"request_id":{shown}}}'
        finally:
            frame.request_id = None
