"""What is counted of each principal, told when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class PrincipalFigures:
    """What one principal has and has used.

    Attributes:
        name: the principal's; never a key.
        connections: that are open, or wait for a slot.
        sessions: that are kept.
        session_bytes: of memory that their texts take.
        turns: that ended.
        prompt_tokens, cached_tokens, completion_tokens: of all turns.
        refused: connections and sessions that were over its quota.
    """

    name: str
    connections: int
    sessions: int
    session_bytes: int
    turns: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    refused: int


class PrincipalCollector(Collector):
    """Tells the principals' figures when they are read. Those that are gone are in it no more."""

    def __init__(self, figures: Callable[[], Iterable[PrincipalFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """The figures as metrics, one sample a principal."""
        figures = list(self._figures())
        gauges: tuple[tuple[str, str, Callable[[PrincipalFigures], int]], ...] = (
            ("yap_key_connections", "Connections, by the key's holder", lambda one: one.connections),
            ("yap_key_sessions", "Sessions that are kept, by the key's holder", lambda one: one.sessions),
            ("yap_key_session_bytes", "Memory of sessions' texts, by the key's holder", lambda one: one.session_bytes),
        )
        for name, help_text, value in gauges:
            gauge = GaugeMetricFamily(name, help_text, labels=["key"])
            for one in figures:
                gauge.add_metric([one.name], value(one))
            yield gauge
        turns = CounterMetricFamily("yap_key_turns", "Turns that ended, by the key's holder", labels=["key"])
        refused = CounterMetricFamily("yap_key_refused", "Refused: over the key's quota", labels=["key"])
        tokens = CounterMetricFamily("yap_key_tokens", "Tokens, by the key's holder", labels=["key", "kind"])
        for one in figures:
            turns.add_metric([one.name], one.turns)
            refused.add_metric([one.name], one.refused)
            tokens.add_metric([one.name, "prompt"], one.prompt_tokens)
            tokens.add_metric([one.name, "cached"], one.cached_tokens)
            tokens.add_metric([one.name, "completion"], one.completion_tokens)
        yield from (turns, refused, tokens)
