"""Flow-control windows: their arithmetic against a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from server.wire.http2.frames import ConnectionFault, ErrorCode
from server.wire.http2.windows import WINDOW_MAX, ReceiveWindow, opened


class Windows(RuleBasedStateMachine):
    """The peer's view and ours: what it may send, what the application holds."""

    def __init__(self) -> None:
        super().__init__()
        self.window = ReceiveWindow(100)
        self.held = 0
        self.peer_has = 100

    @precondition(lambda self: self.peer_has)
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(0, self.peer_has))
        self.window.receive(count)
        self.peer_has -= count
        self.held += count

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.held))
        increment = self.window.consume(count)
        self.held -= count
        self.peer_has += increment
        assert increment == 0 or increment * 2 >= self.window.size

    @invariant()
    def nothing_is_lost(self) -> None:
        window = self.window
        assert window.left == self.peer_has
        assert window.left + window.consumed + self.held == window.size
        assert window.consumed * 2 < window.size

    @precondition(lambda self: not self.held)
    @rule()
    def the_peer_is_never_stuck(self) -> None:
        assert self.peer_has * 2 > self.window.size


TestWindows = Windows.TestCase


@pytest.mark.wire("B2-17")
@given(st.integers(0, 1 << 20), st.integers(1, 1 << 20))
def test_b2_17_more_than_the_window_is_refused(size: int, excess: int) -> None:
    window = ReceiveWindow(size)
    window.receive(size)
    with pytest.raises(ConnectionFault) as caught:
        window.receive(excess)
    assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR
    assert caught.value.abuse == "window_overrun"


@pytest.mark.wire("B2-16")
@pytest.mark.parametrize("window", [0, 1, 65_535, -5, -WINDOW_MAX, WINDOW_MAX])
def test_b2_16_no_increment_and_no_overflow(window: int) -> None:
    with pytest.raises(ConnectionFault) as caught:
        opened(window, 0)
    assert caught.value.code is ErrorCode.PROTOCOL_ERROR
    assert caught.value.abuse == "window_update_zero"
    if window < WINDOW_MAX:
        assert opened(window, min(WINDOW_MAX - window, WINDOW_MAX)) <= WINDOW_MAX
    if window > 0:
        with pytest.raises(ConnectionFault) as caught:
            opened(window, WINDOW_MAX - window + 1)
        assert caught.value.code is ErrorCode.FLOW_CONTROL_ERROR
        assert caught.value.abuse == "window_overflow"


@given(st.integers(-WINDOW_MAX, WINDOW_MAX), st.integers(1, WINDOW_MAX))
def test_a_send_window_never_exceeds_its_maximum(window: int, increment: int) -> None:
    try:
        assert opened(window, increment) == window + increment <= WINDOW_MAX
    except ConnectionFault:
        assert window + increment > WINDOW_MAX
