"""Runs: whatever follows on the first frame, only what is like it is taken, and in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2 import runs
from tests.support.frame_factory import FrameFactory, split_frames

BLOCK = b"\x82\x86" * 5
MAKE = FrameFactory()
MANY = 1 << 30


def head(stream_id: int, block: bytes = BLOCK) -> bytes:
    return MAKE.headers(stream_id, block)


def data(stream_id: int, body: bytes) -> bytes:
    return MAKE.data(stream_id, body, end_stream=True)


def request(stream_id: int, body: bytes) -> bytes:
    return head(stream_id) + data(stream_id, body)


def ids(count: int, first: int = 7) -> tuple[int, ...]:
    return tuple(range(first, first + 2 * count, 2))


def test_a_run_of_each_kind() -> None:
    bodies = tuple(b"%04d" % stream_id for stream_id in ids(8))
    found = runs.heads(b"before" + b"".join(map(head, ids(8))), 6, len(BLOCK), MANY)
    assert found == ids(8)
    all_data = b"".join(map(data, ids(8), bodies))
    assert runs.bodies(all_data, 0, 4, MANY) == (ids(8), bodies)
    all_requests = b"".join(map(request, ids(8), bodies))
    assert runs.requests(all_requests, 0, len(BLOCK), 4, MANY) == (ids(8), bodies)
    assert len(all_requests) == 8 * runs.size_of(len(BLOCK), 4)


def test_bodies_come_in_any_order_and_may_be_empty() -> None:
    frames = b"".join(data(stream_id, b"") for stream_id in (9, 1, 5, 9))
    assert runs.bodies(frames, 0, 0, MANY) == ((9, 1, 5, 9), (b"",) * 4)


def test_fewer_than_four_are_no_run() -> None:
    assert runs.heads(b"".join(map(head, ids(3))), 0, len(BLOCK), MANY) == ()
    frames = b"".join(map(head, ids(8)))
    assert runs.heads(frames, 0, len(BLOCK), 3) == ()
    assert runs.heads(frames, 0, len(BLOCK), 0) == ()
    assert runs.bodies(data(1, b"x") * 3, 0, 1, MANY) == ((), ())
    assert runs.requests(request(1, b"x") * 3, 0, len(BLOCK), 1, MANY) == ((), ())


def test_a_power_of_two_is_taken() -> None:
    for count, taken in ((4, 4), (7, 4), (8, 8), (31, 16), (300, 128)):
        assert runs.heads(b"".join(map(head, ids(count))), 0, len(BLOCK), MANY) == ids(taken)


def test_where_a_run_ends() -> None:
    good = [head(stream_id) for stream_id in ids(4)]
    for other in (
        head(ids(5)[4] + 2),  # not the next stream
        head(ids(5)[4], BLOCK[:-1] + b"\x87"),  # another block
        MAKE.headers(ids(5)[4], BLOCK, end_stream=True),  # other flags
        head(ids(5)[4] | 1 << 31),  # the reserved bit
    ):
        frames = b"".join([*good, other, *good])
        assert runs.heads(frames, 0, len(BLOCK), MANY) == ids(4)
    pairs = [request(stream_id, b"x") for stream_id in ids(4)]
    crossed = head(15) + data(13, b"x")
    assert runs.requests(b"".join([*pairs, *pairs[:4]]), 0, len(BLOCK), 1, MANY)[0] == ids(4)
    assert runs.requests(b"".join([*pairs, crossed] * 2), 0, len(BLOCK), 1, MANY) == ((), ())
    unfinished = MAKE.data(15, b"x")
    frames = b"".join([*(data(stream_id, b"x") for stream_id in ids(4)), *[unfinished] * 4])
    assert runs.bodies(frames, 0, 1, MANY)[0] == ids(4)


FRAMES = st.one_of(
    st.builds(head, st.integers(1, 9).map(lambda at: 2 * at + 5)),
    st.builds(data, st.integers(1, 9).map(lambda at: 2 * at + 5), st.binary(max_size=2)),
    st.just(MAKE.ping()),
)


@given(
    count=st.integers(1, 20),
    kind=st.sampled_from(["heads", "bodies", "requests"]),
    rest=st.lists(FRAMES, max_size=30),
)
def test_what_is_found_is_there(count: int, kind: str, rest: list[bytes]) -> None:
    """Read frame by frame, by another parser, the same frames begin the input."""
    first = {
        "heads": [head(stream_id) for stream_id in ids(count)],
        "bodies": [data(stream_id, b"ab") for stream_id in ids(count)],
        "requests": [request(stream_id, b"ab") for stream_id in ids(count)],
    }[kind]
    frames = b"".join([*first, *rest])
    if kind == "heads":
        found = runs.heads(frames, 0, len(BLOCK), MANY)
        expected = b"".join(map(head, found))
    elif kind == "bodies":
        found, bodies = runs.bodies(frames, 0, 2, MANY)
        expected = b"".join(map(data, found, bodies))
    else:
        found, bodies = runs.requests(frames, 0, len(BLOCK), 2, MANY)
        expected = b"".join(map(request, found, bodies))
    assert frames.startswith(expected)
    assert len(split_frames(expected)) == len(found) * (2 if kind == "requests" else 1)
    assert not found or len(found) >= min(count, runs.RUN_MIN)
