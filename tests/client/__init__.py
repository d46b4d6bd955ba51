"""A client of the wire protocol, written from docs/protocol.md alone: it imports nothing of the server.

Three nouns. `Options` is what the commands in `tests/` share on their command line. A `Client` is one WebSocket with
typed frames. A `TurnRecord` follows one reply from the sent `start` to its `done`, with the times that a listener sees.
"""

try:
    import websockets as _  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "websockets":
        raise
    raise SystemExit(
        "error: expected the package `websockets`, found none; `pip install websockets`, or use the project's own "
        "environment: `make setup`, then `.venv/bin/python` in the place of `python3`"
    ) from None

from .connection import Client, ClientError, connect
from .frames import Ack, Done, Error, Final, Frame, Token, ToolCall, Unknown, Warmed, parse
from .options import Options, parser, positive, read_options, whole
from .turn import TurnRecord

__all__ = [
    "Ack",
    "Client",
    "ClientError",
    "Done",
    "Error",
    "Final",
    "Frame",
    "Options",
    "Token",
    "ToolCall",
    "TurnRecord",
    "Unknown",
    "Warmed",
    "connect",
    "parse",
    "parser",
    "positive",
    "read_options",
    "whole",
]
