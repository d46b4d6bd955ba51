"""A session's lease: what its server knows of the session in the store, and what the store does not know yet."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from sys import getsizeof

import msgspec

from runtime.engines import Sampling
from runtime.turns.sessions.history import HISTORY_MAX_BYTES
from runtime.turns.stores.record import TURN_IDS, StoredTurn

# Of this process; asking the system for another with each turn would cost as much as everything else about it.
_OWN = secrets.token_hex(5)
_numbers = count(1)
# As measured, and a little more: a lease without texts, and each turn that it knows by its name.
LEASE_OVERHEAD_BYTES, KNOWN_TURN_BYTES = 3_072, 256


def turn_id() -> str:
    """A name for a turn that no other has, and that sorts by the time of its making."""
    return f"{time.time_ns() // 1_000_000:012x}{next(_numbers) % 0x1000000:06x}{_OWN}"


class Lease:
    """What one session has of the store.

    Attributes:
        place: the session's name there.
        default: its sampling before anybody has asked for another.
        epoch: under which it may be written; 0 where it never was taken.
        gone: whether it is kept here no more, and so not written.
        lost: whether another server has taken it over. Then it is written no more.
        takes: how many are asking for it now.
        touched: whether a client has changed it here. Until then there is nothing to write.
        news: whether more than that a turn has begun is not written.
        anew: whether a client has given it its history while it was not taken yet.
        replaced: the epoch under which a client gave it its history, here or elsewhere.
        seam: where in the history begins what was said here.
        open: the turn that runs.
        unsettled: a turn that another server did not end. What the client says next shows whether it is said again.
        ended: turns that have ended and that the store has not confirmed.
        ids: of the last turns that the history has, or that were sent again.
        cuts: ids of turns that another server had not ended, and the places behind their utterances in the history.
        merged: ids of turns that lay beside the session in the store and that the history has now.
        too_long: whether it was told that it does not fit.
    """

    __slots__ = (
        "anew",
        "cuts",
        "default",
        "ended",
        "epoch",
        "gone",
        "ids",
        "lost",
        "merged",
        "news",
        "open",
        "place",
        "replaced",
        "seam",
        "takes",
        "too_long",
        "touched",
        "unsettled",
    )

    def __init__(self, place: str, default: Sampling) -> None:
        self.place = place
        self.default = default
        self.epoch = 0
        self.lost = False
        self.gone = False
        self.takes = 0
        self.touched = False
        self.news = False
        self.anew = False
        self.replaced = 0
        self.seam = 0
        self.open: StoredTurn | None = None
        self.unsettled: StoredTurn | None = None
        self.ended: list[StoredTurn] = []
        self.ids: deque[str] = deque(maxlen=TURN_IDS)
        self.cuts: dict[str, int] = {}
        self.merged: list[str] = []
        self.too_long = False

    @property
    def texts(self) -> list[str]:
        """What was said in the turns that it holds."""
        turns = [turn for turn in (self.open, self.unsettled, *self.ended) if turn is not None]
        return [text for turn in turns for text in (turn.utterance, turn.said)]

    @property
    def overhead(self) -> int:
        """Bytes of memory that it takes beside these."""
        known = len(self.ids) + len(self.cuts) + len(self.ended) + len(self.merged)
        return LEASE_OVERHEAD_BYTES + KNOWN_TURN_BYTES * known

    def begin(self, utterance: str, make_id: Callable[[], str] = turn_id) -> None:
        """Note that a turn runs."""
        self.touched = True
        self.open = StoredTurn(make_id(), utterance, "", self.epoch)

    def end(self, utterance: str, *, kept: bool) -> None:
        """Note that it has ended, and whether the history has it."""
        running, self.open = self.open, None
        if kept:
            name, epoch = (running.id, running.epoch) if running is not None else (turn_id(), self.epoch)
            self.ended.append(StoredTurn(name, utterance, "", epoch))
            self.ids.append(name)
            self._trim()

    def hear(self, said: str) -> None:
        """Note what the history has of the last turn's reply."""
        if self.ended:
            last = self.ended[-1]
            self.ended[-1] = StoredTurn(last.id, last.utterance, said, last.epoch)
            self._trim()

    def _trim(self) -> None:
        """Let the oldest go of what the store has not confirmed: no history would keep more, were it away for long."""
        del self.ended[:-TURN_IDS]
        size = sum(getsizeof(turn.utterance) + getsizeof(turn.said) for turn in self.ended)
        while self.ended and size > HISTORY_MAX_BYTES:
            oldest = self.ended.pop(0)
            size -= getsizeof(oldest.utterance) + getsizeof(oldest.said)

    def replace_history(self) -> None:
        """Note that a client has said itself what was said before: nothing of that is to be brought again."""
        self.touched = True
        self.replaced, self.anew = self.epoch, not self.epoch
        self.unsettled = None
        self.ended.clear()
        self.cuts.clear()

    def take(self, epoch: int) -> None:
        """Note an epoch under which it may be written from now on, and what was said here before it had one."""
        if self.anew:
            self.replaced, self.anew = epoch, False
        if not self.epoch:
            self.ended = [msgspec.structs.replace(turn, epoch=epoch) for turn in self.ended]
            if self.open is not None:
                self.open = msgspec.structs.replace(self.open, epoch=epoch)
        self.epoch = epoch

    def outdated(self, turn: StoredTurn) -> bool:
        """Whether a client has given the session its history since a turn began, and so left that out."""
        return turn.epoch < self.replaced

    def confirm(self, ended: Sequence[StoredTurn], merged: Sequence[str]) -> None:
        """Note what the store has."""
        if self.ended and ended:
            ids = [turn.id for turn in ended]
            self.ended = [turn for turn in self.ended if turn.id not in ids]
        if merged:
            self.merged = [name for name in self.merged if name not in merged]
