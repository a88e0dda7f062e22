"""The frame writers, read back by hyperframe."""

from __future__ import annotations

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2 import frames
from server.wire.http2.frames import ConnectionFault, ErrorCode, FrameType
from tests.support.core_client import parse

STREAM_IDS = st.integers(1, frames.STREAM_ID_MAX)


@given(st.integers(11, 255), st.integers(0, 255), STREAM_IDS, st.integers(0, 70_000))
def test_a_frame_of_any_kind(kind: int, flags: int, stream_id: int, length: int) -> None:
    written = frames.frame(kind, flags, stream_id, bytes(length))
    (read,) = parse(written)
    assert (read.type, read.flag_byte, read.stream_id) == (kind, flags, stream_id)
    assert len(read.body) == length
    assert written.startswith(frames.frame_head(length, kind, flags))


def test_settings() -> None:
    (read,) = parse(frames.settings({3: 256, 4: 2**31 - 1}))
    assert isinstance(read, SettingsFrame)
    assert read.settings == {3: 256, 4: 2**31 - 1}
    (ack,) = parse(frames.SETTINGS_ACK)
    assert isinstance(ack, SettingsFrame)
    assert ack.flags == {"ACK"}


@pytest.mark.parametrize("ack", [False, True])
def test_ping(ack: bool) -> None:
    (read,) = parse(frames.ping(b"12345678", ack=ack))
    assert isinstance(read, PingFrame)
    assert (read.opaque_data, "ACK" in read.flags) == (b"12345678", ack)


@given(STREAM_IDS, st.sampled_from(ErrorCode), st.text(max_size=50))
def test_goaway(last_id: int, code: ErrorCode, debug: str) -> None:
    (read,) = parse(frames.goaway(last_id, code, debug))
    assert isinstance(read, GoAwayFrame)
    assert (read.last_stream_id, read.error_code) == (last_id, code)
    assert read.additional_data == debug.encode()


@given(STREAM_IDS, st.sampled_from(ErrorCode))
def test_rst_stream(stream_id: int, code: ErrorCode) -> None:
    (read,) = parse(frames.rst_stream(stream_id, code))
    assert isinstance(read, RstStreamFrame)
    assert (read.stream_id, read.error_code) == (stream_id, code)


@given(st.integers(0, frames.STREAM_ID_MAX), st.integers(1, 2**31 - 1))
def test_window_update(stream_id: int, increment: int) -> None:
    (read,) = parse(frames.window_update(stream_id, increment))
    assert isinstance(read, WindowUpdateFrame)
    assert (read.stream_id, read.window_increment) == (stream_id, increment)


@given(st.binary(max_size=100), st.booleans(), st.integers(1, 101))
def test_a_block_longer_than_a_frame_goes_on_in_continuations(
    block: bytes, end_stream: bool, frame_bytes_max: int
) -> None:
    written = frames.headers(7, block, end_stream=end_stream, frame_bytes_max=frame_bytes_max)
    first, *rest = parse(written)
    assert isinstance(first, HeadersFrame)
    assert all(isinstance(each, ContinuationFrame) for each in rest)
    assert b"".join(bytes(each.data) for each in [first, *rest]) == block
    assert all(len(each.data) <= frame_bytes_max for each in [first, *rest])
    assert ("END_STREAM" in first.flags) == end_stream
    ends = ["END_HEADERS" in each.flags for each in [first, *rest]]
    assert ends == [False] * len(rest) + [True]


def test_the_longest_frame() -> None:
    head = frames.frame_head(frames.FRAME_BYTES_LARGEST, FrameType.DATA, 0)
    assert head == b"\xff\xff\xff\0\0"


def test_a_fault_says_what_it_is() -> None:
    fault = ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no preface")
    assert str(fault) == "PROTOCOL_ERROR: no preface"
    assert (fault.code, fault.reason, fault.abuse) == (ErrorCode.PROTOCOL_ERROR, "no preface", "")
