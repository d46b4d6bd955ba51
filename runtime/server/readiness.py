"""What `/readyz` answers: whether the server takes conversations, and its load for routers and autoscalers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from runtime.engines import Load

DEGRADED = "the classifier does not answer; decisions are no until it does"


@dataclass(frozen=True, slots=True)
class Readiness:
    """A server's state at one moment, field by field as it is answered.

    Attributes:
        status: loading, ready, degraded, draining or dead.
        reason: why it is not ready, or what of it does not work; empty when all is well.
        degraded: the parts that do not work though the server does.
        draining: whether it leaves: who is connected may end a turn, nobody new is taken.
        slots_free: connections that it would take now; none while it is not ready.
        slots_held: connections that it holds.
        slots: all of them.
        sessions: that it keeps, with a connection and without.
        requests_running: in the engine's scheduler, as of the last half second.
        requests_waiting: those that the engine has no room for yet.
        kv_cache_usage: the used part of its KV cache, 0 to 1.
    """

    status: str
    reason: str
    degraded: Sequence[str]
    draining: bool
    slots_free: int
    slots_held: int
    slots: int
    sessions: int
    requests_running: int
    requests_waiting: int
    kv_cache_usage: float

    @property
    def ready(self) -> bool:
        """Whether new conversations belong here."""
        return self.status == "ready"

    def answer(self) -> dict[str, object]:
        """The body as JSON has it."""
        return {**asdict(self), "kv_cache_usage": round(self.kv_cache_usage, 4)}


def readiness(
    phase: str, reason: str, degraded: Sequence[str], *, chat: bool, held: int, slots: int, sessions: int, load: Load
) -> Readiness:
    """Judge a server in one of its phases.

    Turns go on without decisions where `chat` is served; where decisions are all, a degraded server is not ready.
    """
    if phase == "ready" and degraded:
        phase, reason = "ready" if chat else "degraded", DEGRADED
    return Readiness(
        status=phase,
        reason=reason,
        degraded=list(degraded),
        draining=phase == "draining",
        slots_free=slots - held if phase == "ready" else 0,
        slots_held=held,
        slots=slots,
        sessions=sessions,
        requests_running=load.running,
        requests_waiting=load.waiting,
        kv_cache_usage=load.cache_usage,
    )
