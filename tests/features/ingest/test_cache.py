"""The cache of rows: bounded in bytes, the least recently used go first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from features.ingest.cache import ENTRY_BYTES, RowCache


def test_the_least_recently_used_row_goes_first() -> None:
    cache = RowCache(3 * (ENTRY_BYTES + 10))
    for key in (b"a", b"b", b"c"):
        cache.put(key, bytes(10))
    assert cache.get(b"a") == bytes(10)
    cache.put(b"d", bytes(10))
    assert cache.get(b"b") is None
    assert [cache.get(key) for key in (b"a", b"c", b"d")] == [bytes(10)] * 3


def test_a_row_larger_than_the_cache_is_not_kept() -> None:
    cache = RowCache(1000)
    cache.put(b"a", bytes(2000))
    assert (len(cache), cache.size_bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 400)), max_size=50))
def test_it_never_grows_beyond_its_bound_and_never_lies(puts: list[tuple[int, int]]) -> None:
    cache = RowCache(1500)
    last: dict[bytes, bytes] = {}
    for number, size in puts:
        key = b"%d" % number
        last[key] = bytes([number]) * size
        cache.put(key, last[key])
        assert cache.size_bytes <= 1500
        held = {k: v for k in last if (v := cache.get(k)) is not None}
        assert all(last[k] == v for k, v in held.items())
        assert cache.size_bytes == sum(len(v) + ENTRY_BYTES for v in held.values())
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)
