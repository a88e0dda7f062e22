from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from server import frames

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=100)), max_size=10)


@given(FRAMES, st.data())
def test_frames_survive_any_split(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = frames.FrameReader()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
    assert got == sent
    assert reader.pending_bytes == 0


@given(FRAMES)
def test_frames_byte_by_byte(sent: list[tuple[int, bytes]]) -> None:
    reader = frames.FrameReader()
    stream = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    assert [f for byte in stream for f in reader.feed(bytes([byte]))] == sent


async def test_reading_from_a_stream_and_its_torn_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(frames.frame(2, b"abc") + frames.frame(1, b"torn")[:-1])
    reader.feed_eof()
    assert await frames.read_frame(reader) == (2, b"abc")
    with pytest.raises(asyncio.IncompleteReadError):
        await frames.read_frame(reader)


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    header = (frames.FRAME_BYTES_MAX + 1).to_bytes(4, "little") + b"\x01"
    with pytest.raises(InvalidArgumentError, match="frame too large"):
        frames.FrameReader().feed(header)
