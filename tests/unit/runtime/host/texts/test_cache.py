"""The cache counts bytes: whatever texts come, it holds no more than its limit."""

from __future__ import annotations

import sys
from array import array
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from runtime.host.texts.cache import _FOR, ENTRY_BYTES, TextCache, for_salt
from runtime.text.text_tokens import CACHE_BYTES, CACHED_CHUNK_BYTES


def held(cache: TextCache[array[int]]) -> int:
    return sum(
        ENTRY_BYTES + sys.getsizeof(text) + sys.getsizeof(value) for (_, text), (value, _) in cache._entries.items()
    )


@given(texts=st.lists(st.text("aé🙂", max_size=300), max_size=60), limit=st.integers(0, 5_000))
def test_what_is_held_is_counted_and_never_above_the_limit(texts: list[str], limit: int) -> None:
    cache = TextCache(lambda text: array("I", map(ord, text)), limit=limit, entry_limit=2_000)
    for text in texts:
        assert cache(text).tolist() == list(map(ord, text))
        assert cache.used == held(cache) <= limit


def test_what_was_used_last_stays() -> None:
    made: list[str] = []

    def make(text: str) -> int:
        made.append(text)
        return 0

    cache = TextCache(make, limit=3 * (ENTRY_BYTES + sys.getsizeof("a") + sys.getsizeof(0)), entry_limit=10_000)
    for text in ("a", "b", "c", "a", "d", "a", "c", "b"):
        cache(text)
    assert made == ["a", "b", "c", "d", "b"]


@given(
    asked=st.lists(st.tuples(st.sampled_from([None, "alice", "mallory"]), st.sampled_from("abc")), max_size=30),
    key=st.sampled_from(["alice", "mallory"]),
)
def test_what_was_made_for_a_salt_does_not_depend_on_others(asked: list[tuple[str | None, str]], key: str) -> None:
    def made(asked: list[tuple[str | None, str]]) -> list[str]:
        made: list[str] = []
        cache = TextCache(lambda text: made.append(f"{_FOR.get()}:{text}"), limit=100_000, entry_limit=1_000)
        for salt, text in asked:
            with for_salt(salt):
                cache(text)
        return [one for one in made if one.startswith(key)]

    assert made(asked) == made([one for one in asked if one[0] == key])


def test_what_is_too_large_is_not_kept() -> None:
    cache = TextCache(lambda text: array("I", bytes(4 * len(text))), limit=CACHE_BYTES, entry_limit=CACHED_CHUNK_BYTES)
    cache("x" * CACHED_CHUNK_BYTES)
    assert len(cache) == cache.used == 0
    for n in range(2_000):
        cache(f"{n}{'🙂' * 10_000}")
    assert 0.9 * CACHE_BYTES < cache.used <= CACHE_BYTES


def test_threads_may_share_it() -> None:
    cache = TextCache(lambda text: array("I", map(ord, text)), limit=20_000, entry_limit=5_000)
    texts = [str(n % 37) * (n % 11) for n in range(2_000)]
    with ThreadPoolExecutor(4) as pool:
        assert [found.tolist() for found in pool.map(cache, texts)] == [list(map(ord, text)) for text in texts]
    assert cache.used == held(cache) <= 20_000
