"""A client of Yap Text Inference: streamed replies, barge-in, and a connection that comes back.

    async with connect("ws://127.0.0.1:8000/ws", key, persona="You are Mia.") as talk:
        async for event in talk.say("Hello!"):
            if isinstance(event, Token):
                print(event.text, end="")

Three nouns. A `Talk` is one session with a server. A `Turn` is one thing that was said, and an iterator over the events
of its reply. An event is a frame of the server's, or `Interrupted`.
"""

from __future__ import annotations

from yap_client.arguments import Facts, Sampling
from yap_client.errors import (
    AuthenticationError,
    CapacityError,
    ClosedError,
    ProtocolError,
    RateLimitError,
    RefusedError,
    ServerGoneError,
    YapError,
)
from yap_client.events import (
    Ack,
    Done,
    Error,
    Event,
    Final,
    Interrupted,
    Pong,
    Token,
    Tool,
    ToolCall,
    TurnEvent,
    Unknown,
    Usage,
    Warmed,
)
from yap_client.network.backoff import Backoff
from yap_client.sync import SyncTalk, SyncTurn
from yap_client.sync import connect as connect_sync
from yap_client.talk import Talk, connect
from yap_client.transcript import Message
from yap_client.turn import Turn

__version__ = "0.1.0"

__all__ = [
    "Ack",
    "AuthenticationError",
    "Backoff",
    "CapacityError",
    "ClosedError",
    "Done",
    "Error",
    "Event",
    "Facts",
    "Final",
    "Interrupted",
    "Message",
    "Pong",
    "ProtocolError",
    "RateLimitError",
    "RefusedError",
    "Sampling",
    "ServerGoneError",
    "SyncTalk",
    "SyncTurn",
    "Talk",
    "Token",
    "Tool",
    "ToolCall",
    "Turn",
    "TurnEvent",
    "Unknown",
    "Usage",
    "Warmed",
    "YapError",
    "connect",
    "connect_sync",
]
