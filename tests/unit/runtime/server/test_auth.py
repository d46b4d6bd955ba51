"""Keys and origins."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from runtime.deployment.keys import ApiKey
from runtime.server.auth import Keyring, origin_allowed
from runtime.turns.principal import Principal


def keys_of(*keys: str) -> list[ApiKey]:
    """Keys, `name:key` for one that has a name."""
    parts = [key.rpartition(":") for key in keys]
    return [ApiKey(SecretStr(key), name or None) for name, _, key in parts]


def ring_of(*keys: str) -> Keyring:
    return Keyring(keys_of(*keys))


def principal_of(ring: Keyring, key: str) -> Principal:
    credential = ring.identify({"x-api-key": key}, {})
    assert credential is not None
    return credential.principal


def test_each_key_is_a_principal_of_its_own_with_a_name_that_says_nothing_of_it() -> None:
    ring = ring_of("one", "two")
    first, second = principal_of(ring, "one"), principal_of(ring, "two")
    assert [first.name, second.name] == ["unnamed-1", "unnamed-2"]
    assert first is not second
    assert first.cache_salt
    assert first.cache_salt != second.cache_salt
    assert "one" not in first.cache_salt
    assert ring.identify({}, {"api_key": "one"}) == ring.identify({"x-api-key": "one"}, {})


def test_keys_of_one_name_are_one_principal() -> None:
    ring = ring_of("acme:one", "acme:two", "beta:three")
    assert principal_of(ring, "one") is principal_of(ring, "two")
    assert [principal.name for principal in ring.principals] == ["acme", "beta"]


def test_with_one_cache_for_all_nobody_has_a_salt() -> None:
    assert principal_of(Keyring(keys_of("one"), separate_caches=False), "one").cache_salt is None


@pytest.mark.parametrize(
    ("headers", "query", "known"),
    [
        ({"authorization": "Bearer one"}, {}, True),
        ({"authorization": "bearer   one "}, {}, True),
        ({"authorization": "Bearer no"}, {"api_key": "one"}, False),
        ({"authorization": "Bearer"}, {"api_key": "one"}, False),
        ({"authorization": "Basic b25l"}, {"api_key": "one"}, True),
        ({"authorization": "Basic one"}, {}, False),
        ({"authorization": "one"}, {}, False),
        ({"x-api-key": "one", "authorization": "Bearer no"}, {}, True),
        ({"x-api-key": "no", "authorization": "Bearer one"}, {"api_key": "one"}, False),
        ({"x-api-key": ""}, {"api_key": "one"}, False),
    ],
)
def test_the_header_wins_over_bearer_and_that_over_the_query_also_when_wrong(
    headers: dict[str, str], query: dict[str, str], known: bool
) -> None:
    assert (ring_of("one").identify(headers, query) is not None) is known


@given(
    st.lists(st.lists(st.sampled_from(["acme:1", "acme:2", "beta:3", "4", "5"]), min_size=1, unique=True), min_size=1)
)
def test_a_principal_stays_the_same_as_long_as_its_name_or_its_key_is_there(rings: list[list[str]]) -> None:
    ring: Keyring | None = None
    known: dict[str, Principal] = {}  # by name, or by key
    salts: dict[str | None, Principal] = {}
    for keys in rings:
        gone = ring.replace(keys_of(*keys)) if ring is not None else ()
        ring = ring or ring_of(*keys)
        now = {key.partition(":")[0]: principal_of(ring, key.rpartition(":")[2]) for key in keys}
        assert {id(one) for one in gone} == {id(one) for name, one in known.items() if name not in now}
        assert all(now[name] is one for name, one in known.items() if name in now)
        for principal in now.values():  # whoever comes anew never has what another had
            assert salts.setdefault(principal.cache_salt, principal) is principal
        known = now


def test_a_key_that_was_taken_away_is_no_credential_any_more() -> None:
    ring = ring_of("acme:old", "acme:new", "beta:other")
    old, new, other = (ring.identify({"x-api-key": key}, {}) for key in ("old", "new", "other"))
    assert old is not None
    assert new is not None
    assert other is not None
    ring.replace(keys_of("acme:new", "acme:other"))
    assert ring.identify({"x-api-key": "old"}, {}) is None
    assert not ring.holds(old)
    assert ring.holds(new)
    assert not ring.holds(other)  # it is accepted, as another's


@pytest.mark.parametrize("key", ["", "on", "one ", "onе", "\udcff"])
def test_what_only_resembles_a_key_is_none(key: str) -> None:
    assert ring_of("one").identify({"x-api-key": key}, {}) is None


def test_the_time_tells_nothing_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, one is compared at most, and which one lies where is known to this process alone."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    ring = ring_of("first", "second", "third")
    for key in ("first", "third", "x" * 1000, ""):
        compared.clear()
        known = ring.identify({"x-api-key": key}, {})
        assert len(compared) == (known is not None)
        assert {len(side) for pair in compared for side in pair} <= {32}  # digests: no key's length shows
    assert ring._credentials.keys().isdisjoint(ring_of("first", "second", "third")._credentials)


@given(st.lists(st.sampled_from(["one", "two", "a:three", "b:four", "a:five", "a:one"]), min_size=1, max_size=8))
def test_the_first_holder_of_a_key_has_it_and_no_other_key_is_known(texts: list[str]) -> None:
    ring = Keyring(keys_of(*texts))
    first: dict[str, str | None] = {}
    for text in texts:
        name, colon, key = text.rpartition(":")
        first.setdefault(key, name if colon else None)
    for key in ("one", "two", "three", "four", "five", "six"):
        found = ring.identify({"x-api-key": key}, {})
        assert (found is not None) == (key in first)
        if found is not None:
            assert ring.holds(found)
            assert first[key] in (found.principal.name, None)
    assert len(ring) == len(ring.principals)


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
