"""Keys and origins."""

from __future__ import annotations

import hmac

import pytest
from pydantic import SecretStr

from runtime.server.auth import Keyring, origin_allowed


def ring_of(*keys: str) -> Keyring:
    return Keyring([SecretStr(key) for key in keys])


def test_each_key_is_a_principal_of_its_own() -> None:
    ring = ring_of("one", "two")
    first, second = (ring.identify({"x-api-key": key}, {}) for key in ("one", "two"))
    assert first is not None
    assert second is not None
    assert first != second
    assert "one" not in first
    assert ring.identify({}, {"api_key": "one"}) == first


@pytest.mark.parametrize("key", ["", "on", "one ", "onе", "\udcff"])
def test_what_only_resembles_a_key_is_none(key: str) -> None:
    assert ring_of("one").identify({"x-api-key": key}, {}) is None


def test_every_key_is_compared_in_constant_time_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    ring = ring_of("first", "second", "third")
    for key in ("first", "third", "x" * 1000, ""):
        compared.clear()
        ring.identify({"x-api-key": key}, {})
        assert len(compared) == 3
        assert {len(side) for pair in compared for side in pair} == {32}  # digests: no key's length shows


def test_the_header_wins_also_when_it_is_wrong() -> None:
    assert ring_of("one").identify({"x-api-key": "no"}, {"api_key": "one"}) is None


@pytest.mark.parametrize("keys", [[], [""], ["one", ""]])
def test_a_keyring_without_keys_is_refused(keys: list[str]) -> None:
    with pytest.raises(ValueError, match="API key"):
        ring_of(*keys)


@pytest.mark.parametrize(
    ("origin", "allowed", "expected"),
    [
        ("https://a.example", [], True),
        (None, ["https://a.example"], True),
        ("https://a.example", ["https://a.example/"], True),
        ("http://a.example", ["https://a.example"], False),
        ("https://a.example.evil", ["https://a.example"], False),
    ],
)
def test_origins(origin: str | None, allowed: list[str], expected: bool) -> None:
    assert origin_allowed(origin, allowed) is expected
