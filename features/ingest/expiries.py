"""Which rows need a new time to live when they are appended to.

The store takes longer to set an expiry than to append. A row's may stand for a while: what was
appended since must stay for the reach of its windows, and the time to live is longer than that by a
slack. So only rows that got none within a part of that slack get a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from features.ingest.apply import STORAGE_SLACK_US, Changes

# A time to live that leaves a row's own as it is.
KEEP_TTL = 0
# A row's expiry is set anew after two of these at the latest.
PERIOD_S = STORAGE_SLACK_US / 1e6 / 4
# About 100 MiB of keys; more rows than that get theirs more often.
KEYS_MAX = 500_000


class Expiries:
    """The keys whose expiry was set lately, in two generations."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._since_s = 0.0

    def split(self, changes: Sequence[Changes], now_s: float) -> list[Changes]:
        """Return the same changes, those that only append to rows with an expiry by themselves."""
        self._turn(now_s)
        groups: list[Changes] = []
        for group in changes:
            if not group.compact_step:
                groups.append(group)
                continue
            kept = Changes([], [], KEEP_TTL, group.compact_step)
            fresh = Changes([], [], group.ttl_ms, group.compact_step)
            for key, value in zip(group.keys, group.values, strict=True):
                side = kept if key in self._young or key in self._old else fresh
                side.keys.append(key)
                side.values.append(value)
            groups += [side for side in (kept, fresh) if side.keys]
        return groups

    def put(self, keys: Sequence[bytes], now_s: float) -> None:
        """Remember that these have an expiry that was set by now."""
        self._turn(now_s)
        self._young.update(key for key in keys if key not in self._old)

    def clear(self) -> None:
        """Forget everything: whether it was set is unknown."""
        self._young, self._old = set(), set()

    def _turn(self, now_s: float) -> None:
        if now_s - self._since_s > PERIOD_S or len(self._young) > self._keys_max // 2:
            self._young, self._old = set(), self._young
            self._since_s = now_s
