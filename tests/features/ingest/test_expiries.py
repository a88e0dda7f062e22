"""Expiries: a row that is appended to has one that outlives what was appended."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from features.ingest.apply import STORAGE_SLACK_US, Changes
from features.ingest.expiries import KEEP_TTL, PERIOD_S, Expiries

REACH_S = 1000.0
TTL_MS = int(1000 * (REACH_S + STORAGE_SLACK_US / 1e6))


class Rows(RuleBasedStateMachine):
    """A store beside it: what every row's expiry is, and until when it must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.expiries = Expiries(keys_max=6)
        self.now_s = 0.0
        self.expires_s: dict[bytes, float] = {}

    @rule(keys=st.sets(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), min_size=1))
    def append(self, keys: set[bytes]) -> None:
        values = [key * 2 for key in keys]
        written = self.expiries.split(
            [Changes(list(keys), values, TTL_MS, 100), Changes([b"set"], [b"x"], 5)], self.now_s
        )
        assert Changes([b"set"], [b"x"], 5) in written
        groups = [group for group in written if group.compact_step]
        assert {g.ttl_ms for g in groups} <= {KEEP_TTL, TTL_MS}
        pairs = [pair for g in groups for pair in zip(g.keys, g.values, strict=True)]
        assert sorted(pairs) == sorted(zip(keys, values, strict=True))
        for group in groups:
            for key in group.keys:
                if group.ttl_ms != KEEP_TTL:
                    self.expires_s[key] = self.now_s + TTL_MS / 1000
                assert self.expires_s[key] >= self.now_s + REACH_S
        self.expiries.put(written)

    @rule(periods=st.sampled_from([0.1, 0.5, 1.0, 1.5]))
    def wait(self, periods: float) -> None:
        self.now_s += periods * PERIOD_S

    @rule()
    def lose(self) -> None:
        """A write whose reply never came."""
        self.expiries.clear()


TestRows = Rows.TestCase


def test_it_is_not_set_anew_every_time() -> None:
    expiries = Expiries()
    group = Changes([b"a"], [b"x"], TTL_MS, 100)
    first = expiries.split([group], 10.0)
    assert first == [group]
    expiries.put(first)
    assert expiries.split([group], 11.0) == [group._replace(ttl_ms=KEEP_TTL)]
