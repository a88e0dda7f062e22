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
# A row's expiry is set anew after three of these at the latest.
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
        since_s = now_s - self._since_s
        if since_s > PERIOD_S or len(self._young) > self._keys_max // 2:
            # What was set longer ago than two periods is not known to last another one.
            self._young, self._old = set(), self._young if since_s <= 2 * PERIOD_S else set()
            self._since_s = now_s
        groups: list[Changes] = []
        for group in changes:
            if group.compact_step:
                groups += self._split_one(group)
            else:
                groups.append(group)
        return groups

    def _split_one(self, group: Changes) -> list[Changes]:
        fresh = set(group.keys).difference(self._young, self._old)
        if len(fresh) == len(group.keys):
            return [group]
        kept = group._replace(ttl_ms=KEEP_TTL)
        if not fresh:
            return [kept]
        pairs = list(zip(group.keys, group.values, strict=True))
        return [
            side._replace(keys=[key for key, _ in mine], values=[value for _, value in mine])
            for side, mine in (
                (kept, [pair for pair in pairs if pair[0] not in fresh]),
                (group, [pair for pair in pairs if pair[0] in fresh]),
            )
        ]

    def put(self, written: Sequence[Changes]) -> None:
        """Remember whose expiry these have set, as `split` returned them."""
        for group in written:
            if group.compact_step and group.ttl_ms != KEEP_TTL:
                self._young.update(group.keys)

    def clear(self) -> None:
        """Forget everything: whether it was set is unknown."""
        self._young, self._old = set(), set()
