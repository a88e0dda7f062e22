"""The flood counters against a model of a token bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2.frames import ConnectionFault, ErrorCode
from server.wire.http2.limits import BUDGETS, Budget, Floods, Limits

SECOND_NS = 1_000_000_000


def spent_until_refused(floods: Floods, name: str, now_ns: int) -> int:
    count = 0
    fault: ConnectionFault | None = None
    while fault is None:
        try:
            floods.spend(name, now_ns)
            count += 1
        except ConnectionFault as caught:
            fault = caught
    assert (fault.code, fault.reason, fault.abuse) == (ErrorCode.ENHANCE_YOUR_CALM, name, name)
    return count


@pytest.mark.parametrize("name", BUDGETS)
def test_a_burst_then_a_rate(name: str) -> None:
    budget = BUDGETS[name]
    floods = Floods(SECOND_NS)
    assert spent_until_refused(floods, name, SECOND_NS) == budget.burst
    # The one too many was counted.
    count = spent_until_refused(floods, name, 3 * SECOND_NS)
    assert count == max(2 * budget.per_second - 1, 0)


@pytest.mark.parametrize("name", BUDGETS)
def test_rest_brings_back_no_more_than_the_burst(name: str) -> None:
    floods = Floods(0)
    assert spent_until_refused(floods, name, 10**6 * SECOND_NS) == BUDGETS[name].burst


@pytest.mark.parametrize("name", BUDGETS)
def test_frames_that_we_sent_earn(name: str) -> None:
    floods = Floods(0)
    budget = BUDGETS[name]
    assert spent_until_refused(floods, name, 0) == budget.burst
    floods.frames_sent += 10
    assert spent_until_refused(floods, name, 0) == max(10 * budget.per_frame - 1, 0)


@given(
    steps=st.lists(st.tuples(st.integers(0, 3 * SECOND_NS), st.integers(0, 3)), max_size=60),
    budget=st.builds(Budget, st.integers(1, 5), st.integers(0, 2), st.integers(0, 2)),
)
def test_spending_follows_the_model(steps: list[tuple[int, int]], budget: Budget) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "model", budget)
        floods = Floods(0)
        now_ns = earned_before = 0
        spent = 0
        for wait_ns, sent in steps:
            now_ns += wait_ns
            floods.frames_sent += sent
            earned = now_ns // SECOND_NS * budget.per_second
            earned += floods.frames_sent * budget.per_frame
            spent = max(spent - (earned - earned_before), 0) + 1
            earned_before = earned
            try:
                floods.spend("model", now_ns)
                assert spent <= budget.burst
            except ConnectionFault:
                assert spent > budget.burst


@pytest.mark.wire("B2-08")
def test_b2_08_empty_frames_in_a_row() -> None:
    floods = Floods(0)
    for _ in range(3):
        floods.empty_frame(3)
    floods.empty_frames = 0
    for _ in range(3):
        floods.empty_frame(3)
    with pytest.raises(ConnectionFault) as caught:
        floods.empty_frame(3)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    assert caught.value.abuse == "empty_frame_flood"


def test_windows_that_honest_clients_would_overrun_are_refused() -> None:
    Limits(connection_window_bytes=65_535, stream_window_bytes=1)
    with pytest.raises(ValueError, match="connection_window_bytes is 65534"):
        Limits(connection_window_bytes=65_534)
