"""The record: what the store keeps of a session, with a version, and bounded in bytes.

MessagePack of a map. A reader takes a record of its own version alone, and ignores fields that it does not know: a
field that older servers can do without is added under the same version, anything else raises it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from runtime.text.prompt import Message
from runtime.wire.frames import RequestId

VERSION = 1
# What MessagePack adds to a message of the history, at most.
_MESSAGE_BYTES = 7
# A session remembers so many of its last turns by their ids: a server that lost it brings no more than these.
TURN_IDS = 32


class RecordError(Exception):
    """A value that is no record of ours, or a session of which not even the newest words fit."""


class StoredTurn(msgspec.Struct, frozen=True, array_like=True):
    """A turn that the history may not have yet.

    Attributes:
        id: sorts by the time at which it began; no two turns have the same.
        utterance: the user's words; empty is none.
        said: what was heard of the reply.
        epoch: under which it began; 0 where its server had not taken the session.
    """

    id: str
    utterance: str
    said: str = ""
    epoch: int = 0


class StoredReply(msgspec.Struct, frozen=True, array_like=True):
    """The last reply, as `heard` may still cut it.

    Attributes:
        request_id: its turn's.
        said: what was sent of it.
        kept: whether the history has its turn.
        shown: whether the history's last message is it.
    """

    request_id: RequestId | None
    said: str
    kept: bool
    shown: bool


class StoredSampling(msgspec.Struct, frozen=True, array_like=True):
    """How replies are drawn.

    Attributes:
        temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty: as in `Sampling`.
        max_tokens, stop, seed: as well.
    """

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int | None


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One session.

    Attributes:
        version: of this schema.
        persona, gender, personality, user_identity, runtime_text: as the session has them.
        sampling, sanitize, prefixes: as well.
        history: who spoke (the user: true) and what they said, oldest first.
        turns: ids of the last turns that the history has.
        cuts: ids of those whose reply another server may still bring, and how many messages follow their utterance.
        replaced: the epoch under which a client gave it its history; turns that began under an older one are not in it.
        open: the turn that runs, or that another server did not end; none between turns.
        reply: the last one; none once the next turn has begun.
        updates: when the persona was changed, in seconds of the wall clock, as far as that still counts.
    """

    version: int
    persona: str = ""
    gender: str | None = None
    personality: str | None = None
    user_identity: str | None = None
    runtime_text: str = ""
    history: tuple[tuple[bool, str], ...] = ()
    sampling: StoredSampling | None = None
    sanitize: bool = True
    prefixes: tuple[str, str] = ("", "")
    turns: tuple[str, ...] = ()
    cuts: tuple[tuple[str, int], ...] = ()
    replaced: int = 0
    open: StoredTurn | None = None
    reply: StoredReply | None = None
    updates: tuple[float, ...] = ()


class _Version(msgspec.Struct, frozen=True):
    version: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)
_version_decoder = msgspec.msgpack.Decoder(_Version)
_turn_decoder = msgspec.msgpack.Decoder(StoredTurn)


def encode(record: Record, max_bytes: int) -> bytes:
    """A record as bytes; where they are too many, the oldest of the history go.

    Raises:
        RecordError: what remains without a history is too long, or it holds what is no Unicode text.
    """
    try:
        data = _encoder.encode(record)
    except UnicodeEncodeError:
        raise RecordError("it holds what is no Unicode text") from None
    if len(data) <= max_bytes:
        return data
    bare = _encoder.encode(msgspec.structs.replace(record, history=()))
    room = max_bytes - len(bare) - _MESSAGE_BYTES - len("history")
    if room < 0:
        raise RecordError(f"without its history it takes {len(bare)} bytes of {max_bytes}")
    kept = len(record.history)
    for _, content in reversed(record.history):
        room -= len(content.encode()) + _MESSAGE_BYTES
        if room < 0:
            break
        kept -= 1
    return _encoder.encode(msgspec.structs.replace(record, history=record.history[kept:]))


def decode(data: bytes) -> Record:
    """A record of bytes.

    Raises:
        RecordError: it is none, or of another version.
    """
    try:
        version = _version_decoder.decode(data).version
        if version != VERSION:
            raise RecordError(f"expected version {VERSION}, found {version}")
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RecordError("it is no session") from None


def encode_turn(turn: StoredTurn) -> bytes:
    """A turn by itself, as a server writes it that has lost the session."""
    return _encoder.encode(turn)


def decode_turn(data: bytes) -> StoredTurn:
    """A turn of bytes.

    Raises:
        RecordError: it is none.
    """
    try:
        return _turn_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RecordError("it is no turn") from None


def pack(messages: Sequence[Message]) -> tuple[tuple[bool, str], ...]:
    """Messages as a record has them."""
    return tuple([(message.role == "user", message.content) for message in messages])


def unpack(history: Sequence[tuple[bool, str]]) -> list[Message]:
    """Messages of a record."""
    return [Message("user" if is_user else "assistant", content) for is_user, content in history]
