"""Metrics: whatever happens, and whatever a client sends, their number is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Counter

from runtime.deployment.metrics import PREPARED_OUTCOMES, START_PHASES, Metrics
from runtime.deployment.principal_metrics import PrincipalFigures
from runtime.deployment.store_metrics import STORE_OPERATIONS

# Each label, and all that it may say. A label that is not here needs an entry: its values must be ours, not a client's.
CLOSED = {
    "outcome": {"done", "cancelled", "failed", "timeout", *PREPARED_OUTCOMES},
    "phase": set(START_PHASES),
    "kind": {"prompt", "cached", "completion", *STORE_OPERATIONS},
    "status": {"yes", "no", "timeout", "failed"},
    "code": {*map(str, range(1000, 1016)), "3xxx", "4xxx", "other", "4000", "4321"},
    "state": {"running", "waiting"},
    "reason": set(),
}


def labels(metrics: Metrics) -> set[tuple[str, str]]:
    """Every label's values, but the buckets of histograms."""
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    return {pair for sample in samples for pair in sample.labels.items() if pair[0] != "le"}


@given(st.lists(st.integers(), max_size=40) | st.lists(st.integers(2990, 5010), max_size=200))
def test_close_codes_are_a_closed_set_whatever_a_client_sends(codes: list[int]) -> None:
    metrics = Metrics(idle_code=4321)
    for code in codes:
        metrics.connection_closed(code)
    found = {value for name, value in labels(metrics) if name == "code"}
    assert found <= CLOSED["code"]
    total = sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "yap_connections_closed_total"
    )
    assert total == len(codes)


def test_every_label_is_known_to_be_closed() -> None:
    metrics = Metrics()
    declared = {
        name for collector in metrics.registry._collector_to_names for name in getattr(collector, "_labelnames", ())
    }
    assert declared == CLOSED.keys()


def test_every_value_is_there_from_the_start() -> None:
    """A counter that appears with its first event hides that event from a rate."""
    metrics = Metrics()
    before = labels(metrics)
    for name in ("outcome", "kind", "state", "phase"):
        assert {value for label, value in before if label == name} == CLOSED[name]
    assert {value for label, value in before if label == "status"} >= CLOSED["status"]
    assert ("code", "1000") in before
    assert len({value for label, value in before if label == "reason"}) == 5


def test_what_is_served_is_told() -> None:
    metrics = Metrics()
    metrics.serves({"version": "1.2"}, {"digest": "abc", "chat": 'a "quoted" name'})
    text = metrics.render().decode()
    assert 'yap_build_info{version="1.2"} 1.0' in text
    assert 'digest="abc"' in text


def test_principals_are_told_by_name_when_they_are_read() -> None:
    metrics = Metrics()
    assert b'key="' not in metrics.render()
    known = [PrincipalFigures("acme", 1, 2, 3, 4, 5, 6, 7, 8), PrincipalFigures("unnamed-1", 0, 0, 0, 0, 0, 0, 0, 0)]
    metrics.principals = lambda: known
    text = metrics.render().decode()
    for line in (
        'yap_key_connections{key="acme"} 1.0',
        'yap_key_sessions{key="acme"} 2.0',
        'yap_key_session_bytes{key="acme"} 3.0',
        'yap_key_turns_total{key="acme"} 4.0',
        'yap_key_tokens_total{key="acme",kind="prompt"} 5.0',
        'yap_key_tokens_total{key="acme",kind="cached"} 6.0',
        'yap_key_tokens_total{key="acme",kind="completion"} 7.0',
        'yap_key_refused_total{key="acme"} 8.0',
        'yap_key_turns_total{key="unnamed-1"} 0.0',
    ):
        assert line in text
    known.pop(0)
    assert "acme" not in metrics.render().decode()


def test_the_engines_own_metrics_are_passed_on_as_they_are() -> None:
    metrics = Metrics()
    assert b"vllm:" not in metrics.render()
    family = Counter("vllm:prompt_tokens", "Prefill tokens", ["engine"], registry=None)
    family.labels("0").inc(7)
    metrics.engines_own = family.collect
    assert b'vllm:prompt_tokens_total{engine="0"} 7.0' in metrics.render()
