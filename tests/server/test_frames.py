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
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert asyncio.run(read_pieces(pieces, len(sent))) == sent


@given(FRAMES)
def test_frames_byte_by_byte(sent: list[tuple[int, bytes]]) -> None:
    stream = b"".join(frames.frame(kind, payload) for kind, payload in sent)
    assert asyncio.run(read_pieces([bytes([byte]) for byte in stream], len(sent))) == sent


async def read_pieces(pieces: list[bytes], frames_sent: int) -> list[tuple[int, bytes]]:
    """What a reader makes of a stream that arrives in these pieces."""
    reader = asyncio.StreamReader()

    async def feed() -> None:
        for piece in pieces:
            if piece:
                reader.feed_data(piece)
            await asyncio.sleep(0)
        reader.feed_eof()

    feeding = asyncio.create_task(feed())
    got = [await frames.read_frame(reader) for _ in range(frames_sent)]
    await feeding
    with pytest.raises(asyncio.IncompleteReadError) as ended:
        await frames.read_frame(reader)
    assert ended.value.partial == b""
    return got


async def test_reading_from_a_stream_and_its_torn_end() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(frames.frame(2, b"abc") + frames.frame(1, b"torn")[:-1])
    reader.feed_eof()
    assert await frames.read_frame(reader) == (2, b"abc")
    with pytest.raises(asyncio.IncompleteReadError):
        await frames.read_frame(reader)


async def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data((frames.FRAME_BYTES_MAX + 1).to_bytes(4, "little") + b"\x01")
    with pytest.raises(InvalidArgumentError, match="frame too large"):
        await frames.read_frame(reader)


def test_an_oversized_frame_is_not_made() -> None:
    with pytest.raises(InvalidArgumentError, match="frame too large"):
        frames.frame(frames.LOG, bytes(frames.FRAME_BYTES_MAX + 1))
