"""A stream's states, against what its history says and against h2's own state machine."""

from __future__ import annotations

import pytest
from h2.stream import H2StreamStateMachine, StreamInputs, StreamState
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.wire.http2.frames import ConnectionFault, ErrorCode
from server.wire.http2.headers import Head, HeadTable
from server.wire.http2.hpack import Decoder, encode_fields
from server.wire.http2.stream import Input, State, Stream
from tests.support.frame_factory import GRPC_FIELDS

H2_STATES = {
    State.OPEN: StreamState.OPEN,
    State.HALF_CLOSED_REMOTE: StreamState.HALF_CLOSED_REMOTE,
    State.HALF_CLOSED_LOCAL: StreamState.HALF_CLOSED_LOCAL,
    State.CLOSED: StreamState.CLOSED,
}
H2_INPUTS = {
    Input.RECEIVE: StreamInputs.RECV_DATA,
    Input.RECEIVE_END: StreamInputs.RECV_END_STREAM,
    Input.RECEIVE_RESET: StreamInputs.RECV_RST_STREAM,
    Input.SEND: StreamInputs.SEND_DATA,
    Input.SEND_END: StreamInputs.SEND_END_STREAM,
    Input.SEND_RESET: StreamInputs.SEND_RST_STREAM,
}
BY_PEER = (Input.RECEIVE, Input.RECEIVE_END, Input.RECEIVE_RESET)


def stream(head: Head | None = None) -> Stream:
    return Stream(1, head, receive_bytes=100, send_window=10, now_ns=0)


def head(*fields: tuple[bytes, bytes]) -> Head:
    decoder = Decoder(HeadTable(lambda _: None))
    return decoder.decode(encode_fields([*GRPC_FIELDS, *fields]))


class Streams(RuleBasedStateMachine):
    """What happened decides the state: each side has ended or not, or one of them has reset."""

    @initialize()
    def begin(self) -> None:
        self.stream = stream()
        self.h2 = H2StreamStateMachine(1)
        self.h2.process_input(StreamInputs.RECV_HEADERS)
        self.h2.process_input(StreamInputs.SEND_HEADERS)
        self.peer_ended = self.we_ended = self.reset = False

    @rule(what=st.sampled_from(Input))
    def move(self, what: Input) -> None:
        over = self.reset or (self.peer_ended and self.we_ended)
        if what is Input.RECEIVE_RESET or what is Input.SEND_RESET:
            legal = not over
        elif what in BY_PEER:
            legal = not self.peer_ended and not over
        else:
            legal = not self.we_ended and not over
        if legal:
            self.stream.move(what)
            self.h2.process_input(H2_INPUTS[what])
            self.peer_ended |= what is Input.RECEIVE_END
            self.we_ended |= what is Input.SEND_END
            self.reset |= what in {Input.RECEIVE_RESET, Input.SEND_RESET}
        elif what in BY_PEER:
            with pytest.raises(ConnectionFault) as caught:
                self.stream.move(what)
            assert caught.value.code is ErrorCode.STREAM_CLOSED
        else:
            with pytest.raises(AssertionError):
                self.stream.move(what)

    @invariant()
    def the_state_is_what_happened(self) -> None:
        state = self.stream.state
        assert (state is State.CLOSED) == (self.reset or (self.peer_ended and self.we_ended))
        if state is not State.CLOSED:
            assert (state is State.HALF_CLOSED_REMOTE) == self.peer_ended
            assert (state is State.HALF_CLOSED_LOCAL) == self.we_ended
        assert self.h2.state is H2_STATES[state]


TestStreams = Streams.TestCase


@given(st.lists(st.integers(0, 20), max_size=6), st.integers(0, 60))
def test_a_body_has_the_length_that_was_announced(pieces: list[int], announced: int) -> None:
    one = stream(head((b"content-length", b"%d" % announced)))
    total = 0
    for piece in pieces:
        total += piece
        assert one.received(piece, ended=False) == (total <= announced)
    assert one.received(0, ended=True) == (total == announced)


@given(st.lists(st.integers(0, 20), max_size=6))
def test_a_body_that_was_not_announced_may_have_any_length(pieces: list[int]) -> None:
    for one in (stream(head()), stream(None)):
        assert all(one.received(piece, ended=False) for piece in pieces)
        assert one.received(0, ended=True)
        assert one.body_bytes == sum(pieces)
