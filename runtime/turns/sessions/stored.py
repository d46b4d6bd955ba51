"""A session as the store keeps it, and back: written whole, restored whole, or put behind what was said here since."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields

from runtime.engines import Sampling
from runtime.text.prompt import Message
from runtime.turns.sessions.heard import LastReply
from runtime.turns.sessions.history import History
from runtime.turns.sessions.lease import Lease
from runtime.turns.sessions.session import Session
from runtime.turns.stores.record import TURN_IDS, VERSION, Record, StoredReply, StoredSampling, StoredTurn, pack, unpack
from runtime.wire.messages import Bound

Clock = Callable[[], float]


def record_of(session: Session, lease: Lease, wall: Clock = time.time) -> Record:
    """A session as a record."""
    last = session.last_reply
    reply = None
    if last is not None:
        reply = StoredReply(last.request_id, last.said, last.kept, session.reply is not None)
    now, ages = wall(), session.updates.ages()
    return Record(
        version=VERSION,
        persona=session.persona,
        gender=session.gender,
        personality=session.personality,
        user_identity=session.user_identity,
        runtime_text=session.runtime_text,
        history=pack(session.history.messages()),
        sampling=_stored(session.sampling),
        sanitize=session.sanitize,
        prefixes=(session.check_screen_prefix, session.screen_checked_prefix),
        turns=tuple(lease.ids),
        cuts=tuple([(name, session.history.end - where) for name, where in lease.cuts.items()]),
        replaced=lease.replaced,
        open=lease.open or lease.unsettled,
        reply=reply,
        updates=tuple([now - age for age in ages]),
    )


def restore(session: Session, record: Record, bounds: Mapping[str, Bound], wall: Clock = time.time) -> None:
    """Make a session what a record says; turns that the store has not confirmed come behind it."""
    lease = _lease_of(session)
    session.persona = record.persona
    session.gender, session.personality, session.user_identity = (
        record.gender,
        record.personality,
        record.user_identity,
    )
    session.runtime_text = record.runtime_text
    session.history = History(unpack(record.history))
    session.sampling = sampling_of(record.sampling, lease.default, bounds)
    session.sanitize = record.sanitize
    session.check_screen_prefix, session.screen_checked_prefix = record.prefixes
    session.updates.restore(max(0.0, wall() - when) for when in record.updates)
    session.last_reply = session.reply = None
    if record.reply is not None and (session.turn is None or session.turn.ended):
        session.last_reply = LastReply(record.reply.request_id, record.reply.said, record.reply.kept)
        messages = session.history.messages()
        if record.reply.shown and messages and messages[-1].role == "assistant":
            session.reply = messages[-1]
    lease.ids.clear()
    lease.ids.extend(record.turns)
    lease.seam = session.history.end
    lease.replaced = record.replaced
    lease.cuts = {name: session.history.end - behind for name, behind in record.cuts}
    for turn in lease.ended:
        if turn.id in lease.cuts:  # it went on here, while another server had the session
            _complete(session, lease, turn, turn.id)
    # What was never written and is not in there: it was said here.
    lease.ended = [turn for turn in lease.ended if turn.id not in record.turns and not lease.outdated(turn)]
    lease.ids.extend(turn.id for turn in lease.ended)
    _leave_open(lease, record)
    for turn in lease.ended:
        if not _says_again(session, lease, turn):
            session.history.extend(said_in(turn))
        session.last_reply = session.reply = None


def put_behind(session: Session, record: Record, bounds: Mapping[str, Bound]) -> None:
    """Put what was said here, while the store did not answer, behind what a record says.

    What the client has said of persona, sampling and the rest counts; what it has not is the record's.
    """
    lease = _lease_of(session)
    anew = lease.replaced == lease.epoch  # the client has said itself what was said before
    session.persona = session.persona or record.persona
    session.gender = session.gender or record.gender
    session.personality = session.personality or record.personality
    session.user_identity = session.user_identity or record.user_identity
    if session.sampling == lease.default:
        session.sampling = sampling_of(record.sampling, lease.default, bounds)
    first = lease.ended[0] if lease.ended else lease.open
    if not anew:
        lease.replaced = record.replaced
        before, cuts = unpack(record.history), dict(record.cuts)
        last = next((name for name, behind in cuts.items() if behind == 0), None)
        if last is not None and first is not None and before and _same(before[-1].content, first):  # it was said again
            before.pop()
            cuts = {name: behind - 1 for name, behind in cuts.items() if name != last}
        here = session.history.messages()
        session.history = History((*before, *here))
        lease.seam = session.history.end - len(here)
        lease.cuts = {name: lease.seam - behind for name, behind in cuts.items()}
    own = list(lease.ids)
    lease.ids.clear()
    lease.ids.extend((*record.turns, *own))
    _leave_open(lease, record)
    if first is not None:  # the client has gone on already
        settle(session, first.utterance)


def settle(session: Session, words: str) -> None:
    """Take over the user's words of a turn that another server did not end: whoever goes on has said them.

    Not where the same words are what begins now: then the turn was sent again.
    """
    lease = session.lease
    turn = lease.unsettled if lease is not None else None
    if lease is None or turn is None:
        return
    lease.unsettled = None
    lease.ids.append(turn.id)
    lease.touched = lease.news = True
    if _same(words, turn):
        return
    _insert(session, lease, said_in(turn))
    session.last_reply = session.reply = None
    if not turn.said:
        lease.cuts[turn.id] = lease.seam
        while len(lease.cuts) > TURN_IDS:
            del lease.cuts[next(iter(lease.cuts))]


def merge(session: Session, turn: StoredTurn) -> None:
    """Take over a turn that a server left which had lost the session: before what was said here, and once."""
    lease = _lease_of(session)
    lease.merged.append(turn.id)
    unsettled = lease.unsettled
    if turn.id in lease.cuts:  # its utterance is there
        _complete(session, lease, turn, turn.id)
    elif unsettled is not None and unsettled.id == turn.id:  # it has ended meanwhile, and may be said again nonetheless
        lease.unsettled = turn
        lease.touched = lease.news = True
    elif turn.id not in lease.ids:
        lease.ids.append(turn.id)
        if lease.outdated(turn):
            return
        if not _says_again(session, lease, turn):
            _insert(session, lease, said_in(turn))


def sampling_of(stored: StoredSampling | None, default: Sampling, bounds: Mapping[str, Bound]) -> Sampling:
    """Sampling as this server allows it: what is outside its bounds has the server's default."""
    if stored is None:
        return default
    values = {field.name: getattr(stored, field.name, getattr(default, field.name)) for field in fields(Sampling)}
    for name, bound in bounds.items():
        value = values[name]
        if not (math.isfinite(value) and bound.low <= value <= bound.high):
            values[name] = getattr(default, name)
    if not 1 <= values["max_tokens"] <= default.max_tokens:
        values["max_tokens"] = default.max_tokens
    return Sampling(**values)


def _stored(sampling: Sampling) -> StoredSampling:
    return StoredSampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
        seed=sampling.seed,
    )


def said_in(turn: StoredTurn) -> list[Message]:
    """A turn as messages."""
    parts = (("user", turn.utterance), ("assistant", turn.said))
    return [Message(role, content) for role, content in parts if content.strip()]


def _leave_open(lease: Lease, record: Record) -> None:
    """Take note of a turn that another server did not end: what the client says next settles it."""
    turn = record.open
    running = lease.open is not None and turn is not None and lease.open.id == turn.id
    known = turn is None or turn.id in lease.ids or running or lease.outdated(turn)
    lease.unsettled = None if known else turn


def _same(words: str, turn: StoredTurn) -> bool:
    """Whether a turn's words are said again."""
    return words.strip() == turn.utterance.strip()


def _says_again(session: Session, lease: Lease, turn: StoredTurn) -> bool:
    """Let a turn take the place of one that was cut and had the same words; false where the history has none."""
    unsettled = lease.unsettled
    if unsettled is not None and unsettled.id < turn.id and _same(unsettled.utterance, turn):
        lease.unsettled = None
        lease.ids.append(unsettled.id)
        return False
    for name, place in lease.cuts.items():
        before = session.history.before(place)
        if name < turn.id and before is not None and before.role == "user" and _same(before.content, turn):
            _complete(session, lease, turn, name)
            return True
    return False


def _complete(session: Session, lease: Lease, turn: StoredTurn, cut: str) -> None:
    """Put the reply of a turn behind the utterance of one that was cut, which the history has."""
    place = lease.cuts.pop(cut)
    reply = [message for message in said_in(turn) if message.role == "assistant"]
    session.history.insert(place, reply)
    lease.cuts = {name: where + (len(reply) if where > place else 0) for name, where in lease.cuts.items()}
    lease.seam += len(reply) if lease.seam >= place else 0
    lease.touched = lease.news = True


def _insert(session: Session, lease: Lease, messages: list[Message]) -> None:
    last = session.last_reply
    if messages and last is not None and last.kept and lease.seam >= session.history.end:
        session.last_reply = session.reply = None  # it is not the last any more, and what is cut stands last
    session.history.insert(lease.seam, messages)
    lease.seam += len(messages)


def _lease_of(session: Session) -> Lease:
    if session.lease is None:
        raise RuntimeError("a session without a lease has nothing in the store")
    return session.lease
