"""The response cache: a request whose inputs were answered before is answered without a run.

Of models that ask for it (`response_cache { enable: true }`) only, and only while the server has a
cache. Identical requests that are under way at once share one run. A run yields all outputs, so
which of them a request wants is no part of the key.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from server.execution.lots import Timing, deadline_passed

Array = npt.NDArray[Any]
Key = tuple[int, bytes]  # a model version as it was loaded, and the digest of its feeds
Run = Callable[[list[Array], int, int | None, int, int], Awaitable[tuple[list[Array], Timing]]]
_DIGEST_BYTES = 32
# Of one entry: its key, its arrays' heads, its place in the table.
_ENTRY_BYTES = 512
_STRING_BYTES = 64
# To hash a mebibyte takes about a millisecond: longer, and it leaves the event loop.
_LEAVE_LOOP_BYTES = 1 << 20


class _Entry(NamedTuple):
    arrays: list[Array]
    size: int


class ResponseCache:
    """Answers by key, at most `bytes_max` of them: the one that was asked for longest ago goes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self.bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> list[Array] | None:
        """Return the answer of a key, which is then the latest one; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.arrays

    def put(self, key: Key, arrays: Sequence[Array]) -> None:
        """Keep a copy of an answer; one that does not fit at all is passed over."""
        size = _ENTRY_BYTES + sum(map(_size, arrays))
        if size > self._bytes_max or key in self._entries:
            return
        while self.bytes + size > self._bytes_max:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.size
            self.evictions += 1
        # Copies: a part of a batch would keep the whole of it. Nobody may change them.
        kept = [array.copy() for array in arrays]
        for array in kept:
            array.flags.writeable = False
        self._entries[key] = _Entry(kept, size)
        self.bytes += size

    def keep(self, owners: Collection[int]) -> None:
        """Forget the answers of all other model versions."""
        for key in [key for key in self._entries if key[0] not in owners]:
            self.bytes -= self._entries.pop(key).size


def digest(feeds: Sequence[Array]) -> bytes:
    """Return the digest of the content: shapes and elements, of the datatypes that a model has."""
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for feed in feeds:
        state.update(f"{feed.shape};".encode())
        if feed.dtype == object:
            for text in feed.reshape(-1):
                data = text.encode()
                state.update(len(data).to_bytes(8, "little"))
                state.update(data)
        else:
            state.update(np.ascontiguousarray(feed).data)
    return state.digest()


def _size(array: Array) -> int:
    if array.dtype != object:
        return array.nbytes
    return sum(_STRING_BYTES + len(text) for text in array.reshape(-1))


class _Shared:
    """A run that several requests wait for."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[tuple[list[Array], Timing, int]]) -> None:
        self.task = task
        self.waiting = 0


class CachedRun(NamedTuple):
    """What came of a request. `timing` is None for one that took no run of its own; `lookup_ns` is
    what the cache took."""

    arrays: list[Array]
    timing: Timing | None
    lookup_ns: int


class CachedRuns:
    """The runs of one model version, by way of the cache. `owner` is its number in the keys."""

    def __init__(self, cache: ResponseCache, owner: int, run: Run) -> None:
        self._cache = cache
        self._owner = owner
        self._run = run
        self._shared: dict[bytes, _Shared] = {}

    async def run(
        self,
        feeds: list[Array],
        rows: int,
        deadline_ns: int | None,
        priority: int = 0,
        timeout_ns: int = 0,
    ) -> CachedRun:
        """Return the outputs for `feeds`. Raises what the run raises, and DeadlineExceededError."""
        start_ns = time.monotonic_ns()
        if sum(feed.nbytes for feed in feeds) > _LEAVE_LOOP_BYTES:
            key = await asyncio.to_thread(digest, feeds)
        else:
            key = digest(feeds)
        arrays = self._cache.get((self._owner, key))
        lookup_ns = time.monotonic_ns() - start_ns
        if arrays is not None:
            return CachedRun(arrays, None, lookup_ns)
        shared = self._shared.get(key)
        leads = shared is None
        if shared is None:
            # A task of its own: whoever asked first may leave before the others do.
            task = asyncio.create_task(self._fill(key, feeds, rows, priority, timeout_ns))
            shared = self._shared[key] = _Shared(task)
            task.add_done_callback(lambda task: self._ended(key, task))
        arrays, timing, insert_ns = await self._wait(key, shared, deadline_ns)
        if not leads:
            return CachedRun(arrays, None, lookup_ns)
        return CachedRun(arrays, timing, lookup_ns + insert_ns)

    async def _fill(
        self, key: bytes, feeds: list[Array], rows: int, priority: int, timeout_ns: int
    ) -> tuple[list[Array], Timing, int]:
        arrays, timing = await self._run(feeds, rows, None, priority, timeout_ns)
        start_ns = time.monotonic_ns()
        self._cache.put((self._owner, key), arrays)
        return arrays, timing, time.monotonic_ns() - start_ns

    async def _wait(
        self, key: bytes, shared: _Shared, deadline_ns: int | None
    ) -> tuple[list[Array], Timing, int]:
        timeout_s = None
        if deadline_ns is not None:
            timeout_s = max(deadline_ns - time.monotonic_ns(), 0) / 1e9
        shared.waiting += 1
        try:
            done, _ = await asyncio.wait({shared.task}, timeout=timeout_s)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                # Nobody waits any more: who comes now begins anew.
                self._shared.pop(key, None)
                shared.task.cancel()
        if not done:
            raise deadline_passed()
        return shared.task.result()

    def _ended(self, key: bytes, task: asyncio.Task[tuple[list[Array], Timing, int]]) -> None:
        if not task.cancelled():
            task.exception()  # all who waited may have left: it is not lost, it is not needed
        shared = self._shared.get(key)
        if shared is not None and shared.task is task:
            del self._shared[key]
