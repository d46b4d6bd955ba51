"""What is written of a session: whole, bounded, and refused where it is none; and how it is sealed."""

from __future__ import annotations

import contextlib
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines import Sampling
from runtime.host.ratelimit import SlidingWindow
from runtime.text.prompt import Message
from runtime.turns.sessions import stored
from runtime.turns.sessions.heard import LastReply
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.session import Session
from runtime.turns.stores.record import (
    VERSION,
    Record,
    RecordError,
    StoredReply,
    StoredSampling,
    StoredTurn,
    decode,
    decode_turn,
    encode,
    encode_turn,
)
from runtime.turns.stores.sealing import OVERHEAD, Sealer, SealError
from runtime.wire.messages import DEFAULT_BOUNDS, SamplingChange, Start

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
HISTORIES = st.lists(st.tuples(st.booleans(), TEXTS), max_size=12).map(tuple)


def session_of(session_id: str = "s") -> tuple[Session, Lease]:
    session = Session(session_id, Sampling(), ("LOOK:", "SEEN:"), SlidingWindow(4, 60))
    session.lease = Lease("place", session.sampling)
    return session, session.lease


@given(HISTORIES, TEXTS, st.none() | st.sampled_from(["woman", "man"]), st.booleans(), st.floats(0, 1.2))
def test_a_session_comes_back_as_it_was(
    history: tuple[tuple[bool, str], ...], persona: str, gender: str | None, sanitize: bool, temperature: float
) -> None:
    session, lease = session_of()
    messages = tuple(Message("user" if user else "assistant", text) for user, text in history)
    change = SamplingChange({"temperature": temperature}, sanitize, 20, ("END",), 7)
    session.apply(Start(session_id="s", persona=persona, history=messages, gender=gender, sampling=change))
    session.updates.take()
    data = encode(stored.record_of(session, lease), 1 << 20)
    other, _ = session_of()
    stored.restore(other, decode(data), DEFAULT_BOUNDS)
    same = ("persona", "gender", "sampling", "sanitize", "check_screen_prefix", "screen_checked_prefix")
    assert {name: getattr(other, name) for name in same} == {name: getattr(session, name) for name in same}
    assert other.history.messages() == session.history.messages()
    assert other.updates.used == 1


@given(HISTORIES, st.integers(60, 600))
def test_what_is_too_long_loses_its_oldest_words(history: tuple[tuple[bool, str], ...], most: int) -> None:
    record = Record(version=VERSION, persona="p", history=history)
    data = encode(record, most)
    assert len(data) <= most
    kept = decode(data).history
    assert kept == history[len(history) - len(kept) :]
    if len(kept) < len(history):  # and no more of them than it must
        longer = Record(version=VERSION, persona="p", history=history[len(history) - len(kept) - 1 :])
        assert len(encode(longer, 1 << 20)) > most - 20 - 5 * len(history)


def test_what_does_not_fit_without_its_history_is_refused() -> None:
    with pytest.raises(RecordError, match="without its history it takes"):
        encode(Record(version=VERSION, persona="x" * 500, history=((True, "a"),)), 400)
    with pytest.raises(RecordError, match="Unicode"):
        encode(Record(version=VERSION, persona="\ud83d"), 400)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    for read in (decode, decode_turn):
        with contextlib.suppress(RecordError):
            read(data)


def test_another_version_is_refused_and_a_new_field_is_not() -> None:
    import msgspec

    with pytest.raises(RecordError, match=f"expected version {VERSION}, found {VERSION + 1}"):
        decode(msgspec.msgpack.encode({"version": VERSION + 1, "history": "another form"}))
    assert decode(msgspec.msgpack.encode({"version": VERSION, "persona": "p", "mood": [1]})).persona == "p"
    turn = StoredTurn("1", "hi", "there")
    assert decode_turn(encode_turn(turn)) == turn


@given(st.floats(), st.floats(), st.integers(-9, 999), st.integers(-5, 10_000))
def test_sampling_from_the_store_keeps_to_this_servers_bounds(
    temperature: float, top_p: float, top_k: int, max_tokens: int
) -> None:
    found = StoredSampling(temperature, top_p, top_k, 0.0, 1.0, 0.0, 0.0, max_tokens, (), None)
    default = Sampling(max_tokens=150)
    sampling = stored.sampling_of(found, default, DEFAULT_BOUNDS)
    for name, bound in DEFAULT_BOUNDS.items():
        value = getattr(sampling, name)
        assert math.isfinite(value)
        assert bound.low <= value <= bound.high
    assert 1 <= sampling.max_tokens <= 150


@given(st.binary(max_size=100), st.binary(max_size=20), st.integers(0, 10_000), st.booleans())
def test_a_sealed_value_opens_in_its_place_alone_and_not_when_altered(
    value: bytes, place: bytes, where: int, keyed: bool
) -> None:
    sealer = Sealer([os.urandom(32), os.urandom(32)] if keyed else ())
    sealed = sealer.seal(value, place)
    assert sealer.open(sealed, place) == value
    assert len(sealed) <= len(value) + OVERHEAD
    if not keyed:
        return
    index = where % len(sealed)
    altered = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
    for wrong, at in ((altered, place), (sealed, place + b"x"), (sealed[:-1], place), (b"", place)):
        with pytest.raises(SealError):
            sealer.open(wrong, at)
    with pytest.raises(SealError):
        Sealer().open(sealed, place)
    with pytest.raises(SealError):
        Sealer([os.urandom(32)]).open(sealed, place)


def test_keys_are_changed_one_after_the_other() -> None:
    old, new = os.urandom(32), os.urandom(32)
    written = Sealer([old]).seal(b"v", b"p")
    both = Sealer([new, old])
    assert both.open(written, b"p") == b"v"
    assert Sealer([new]).open(both.seal(b"v", b"p"), b"p") == b"v"


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("left", [0, 1, 2])
@pytest.mark.parametrize("chars", [0, 2, 8])
def test_a_reply_is_cut_where_it_stands_last_and_nothing_is_doubled(left: int, here: bool, chars: int) -> None:
    """What other servers said meanwhile comes behind what the store had, and before what was said here."""
    session, lease = session_of()
    known = ((True, "u1"), (False, "R1 whole"))
    record = Record(version=VERSION, history=known, turns=("1",), reply=StoredReply("t1", "R1 whole", True, True))
    stored.restore(session, record, DEFAULT_BOUNDS)
    if here:
        session.reply = Message("assistant", "R2 whole")
        session.history.extend((Message("user", "u2"), session.reply))
        session.last_reply = LastReply("t2", "R2 whole", True)
    for number in range(left):
        stored.merge(session, StoredTurn(f"left {number}", f"v{number}", f"S{number}", 0))
    session.cut(chars)
    before = [text for number in range(left) for text in (f"v{number}", f"S{number}")]
    cut = [part for part in ("R2 whole" if here else "R1 whole",) if chars]
    expected = ["u1", "R1 whole", *before, "u2", *(part[:chars] for part in cut)] if here else ["u1"]
    if not here:
        expected += ["R1 whole", *before] if left else [part[:chars] for part in cut]
    assert [message.content for message in session.history.messages()] == expected
    again, _ = session_of()
    stored.restore(again, decode(encode(stored.record_of(session, lease), 1 << 20)), DEFAULT_BOUNDS)
    again.cut(chars)
    assert [message.content for message in again.history.messages()] == expected
