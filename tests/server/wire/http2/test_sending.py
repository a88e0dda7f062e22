"""What a connection sends: answers, windows, turns, resets. Read back by hyperframe and hpack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2.events import Ended, Event, Opened, Reset, Writable
from server.wire.http2.frames import ErrorCode
from server.wire.http2.hpack import encode_fields
from server.wire.http2.sending import (
    ANSWERING,
    OUTPUT_CHUNK_BYTES,
    PENDING_HIGH_BYTES,
    PENDING_LOW_BYTES,
)
from server.wire.http2.stream import Stream
from tests.support.core_client import (
    ENDING,
    ENDING_BLOCK,
    OPENING,
    OPENING_BLOCK,
    CoreClient,
    Said,
    shape,
    with_limits,
)

WINDOW, FRAME_BYTES = 4, 5  # settings
HEAD = b"\0\0\0\0\1"


def ask(client: CoreClient, *stream_ids: int) -> None:
    """Whole requests on these streams."""
    said = client.send(*(client.request(stream_id) for stream_id in stream_ids))
    assert said.fault is None
    assert [stream_id for stream_id, _ in client.take_whole()] == list(stream_ids)


def assert_answered(
    said: Said, stream_id: int, body: bytes, decoder: Decoder | None = None
) -> None:
    assert said.fields(stream_id, decoder) == [OPENING, ENDING]
    assert said.body(stream_id) == body
    assert said.ended(stream_id)


def writable_events(client: CoreClient) -> list[Stream]:
    return [event.stream for event in client.take_events() if isinstance(event, Writable)]


# -- whole answers ---------------------------------------------------------------------------------


def test_an_answer_alone_is_as_one_among_others() -> None:
    said = []
    for ticks in ([[1], [3], [5]], [[1, 3, 5]]):
        client = CoreClient()
        ask(client, 1, 3, 5)
        for ids in ticks:
            client.connection.answer_all(ids, shape(1), [b"%d" % each for each in ids])
        said.append(client.connection.take_output())
    assert said[0] == said[1]


def test_answers_of_a_tick() -> None:
    client = CoreClient()
    ask(client, 1, 3, 5)
    client.connection.answer_all([5, 1], shape(2), [b"ab", memoryview(b"cd")])
    said = client.read()
    assert_answered(said, 5, HEAD + b"ab")
    assert_answered(said, 1, HEAD + b"cd")
    assert said.kinds == ["Headers", "Data", "Headers"] * 2
    assert client.connection.send_window == 65_535 - 14
    assert client.connection.floods.frames_sent == 2
    assert repr(client.connection.streams) == "{3: ANSWERING}"
    client.connection.answer_all([], shape(2), [])
    assert not client.read().frames


def test_an_empty_answer_has_no_data() -> None:
    client = CoreClient()
    ask(client, 1)
    said = client.answer(1, b"")
    assert said.kinds == ["Headers", "Headers"]


def test_a_stream_that_was_reset_is_passed_over() -> None:
    client = CoreClient()
    ask(client, 1, 3, 5)
    client.send(client.make.rst_stream(3))
    client.connection.answer_all([1, 3, 5], shape(1), [b"a", b"b", b"c"])
    said = client.read()
    assert said.kinds == ["Headers", "Data", "Headers"] * 2
    assert not said.body(3)
    assert client.connection.send_window == 65_535 - 12
    client.answer(3, b"late")
    client.connection.reset(3, ErrorCode.CANCEL)
    assert not client.read().frames


def test_a_stream_with_a_window_of_its_own_among_others() -> None:
    client = CoreClient()
    ask(client, 1, 3, 5)
    client.give(stream_id=3, increment=9)
    client.connection.answer_all([1, 3, 5], shape(1), [b"a", b"b", b"c"])
    said = client.read()
    for stream_id, tail in ((1, b"a"), (3, b"b"), (5, b"c")):
        assert_answered(said, stream_id, HEAD + tail)
    assert client.connection.send_window == 65_535 - 18
    assert not client.connection.streams


@pytest.mark.parametrize(
    "why", ["the connection's window", "the stream's window", "the peer's frames", "the transport"]
)
def test_an_answer_that_does_not_fit_is_the_same_in_pieces(why: str) -> None:
    client = CoreClient(settings={WINDOW: 10} if why == "the stream's window" else {})
    ask(client, 1, 3)
    size = 20_000 if why == "the peer's frames" else 40_000 if "connection" in why else 20
    if why == "the transport":
        client.connection.writable = False
    client.connection.answer_all([1, 3], shape(size), [bytes(size), bytes(size)])
    said = client.read()
    expected = HEAD + bytes(size)
    assert all(length <= 16_384 for _, length in said.data)
    if why == "the transport":
        assert not said.data
        client.connection.writable = True
        client.connection.flush()
        said.frames += client.read().frames
    elif why == "the stream's window":
        assert said.data == [(1, 10), (3, 10)]
        said.frames += client.give(stream_id=1, increment=100).frames
        said.frames += client.give(stream_id=3, increment=100).frames
    elif "connection" in why:
        assert sum(length for _, length in said.data) == 65_535
        said.frames += client.give(increment=100_000).frames
    assert_answered(said, 1, expected)
    assert_answered(said, 3, expected)
    assert not client.connection.streams


def test_answers_that_fit_one_by_one_but_not_together() -> None:
    client = CoreClient()
    ids = [1, 3, 5, 7, 9]
    ask(client, *ids)
    client.connection.answer_all(ids, shape(15_000), [bytes(15_000)] * 5)
    said = client.read()
    assert sum(length for _, length in said.data) == 65_535
    said.frames += client.give(increment=1 << 20).frames
    for stream_id in ids:
        assert_answered(said, stream_id, HEAD + bytes(15_000))


def test_the_peers_frames_may_be_larger() -> None:
    client = CoreClient(settings={FRAME_BYTES: 30_000, WINDOW: 100_000})
    client.give(increment=100_000)
    ask(client, 1)
    said = client.answer(1, bytes(70_000))
    assert [length for _, length in said.data] == [30_000, 30_000, 10_000]


def test_nothing_is_answered_before_its_request_is_there() -> None:
    client = CoreClient()
    client.send(client.make.headers(1))
    with pytest.raises(AssertionError, match="before the request"):
        client.connection.answer_all([1], shape(1), [b"a"])
    assert client.connection.stream(99) is None


@pytest.mark.parametrize("batch", [True, False])
def test_a_smaller_header_table_is_acknowledged_once_at_a_blocks_beginning(batch: bool) -> None:
    """RFC 7541 §4.2; hpack's decoder refuses a block without it."""
    client = CoreClient()
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    ask(client, 1, 3)
    # It shrank and grew again: the smallest is what must be acknowledged.
    client.send(client.make.settings([(1, 0), (1, 4_096)]), client.make.settings({1: 4_096}))
    if batch:
        client.connection.answer_all([1, 3], shape(1), [b"a", b"a"])
        said = client.read()
    else:
        said = client.answer(1, HEAD + b"a")
        said.frames += client.answer(3, HEAD + b"a").frames
    assert_answered(said, 1, HEAD + b"a", decoder)
    assert_answered(said, 3, HEAD + b"a", decoder)
    blocks = [*said.blocks(1), *said.blocks(3)]
    assert [block[:1] == b"\x20" for block in blocks] == [True, False, False, False]
    client.send(client.make.settings({1: 100}))
    ask(client, 5)
    assert client.answer(5, b"").blocks(5)[0][:1] != b"\x20"


def test_one_block_ends_a_request_whatever_its_stream_is() -> None:
    client = CoreClient()
    ask(client, 1, 3)
    client.give(stream_id=3, increment=5)
    client.send(client.make.headers(5), client.make.data(5, b"more is to come"))
    connection = client.connection
    for stream_id in (1, 3, 5):
        assert connection.end_with(stream_id, ENDING_BLOCK)
        said = client.read()
        assert said.fields(stream_id) == [ENDING]
        assert said.ended(stream_id)
        assert not connection.end_with(stream_id, ENDING_BLOCK)  # it is gone
        assert client.read().frames == []
    assert not connection.streams
    assert not connection.grants


# -- streams ---------------------------------------------------------------------------------------


def test_a_streams_own_answer() -> None:
    client = CoreClient()
    stream = client.open(1)
    client.send(client.make.data(1, end_stream=True))
    connection = client.connection
    assert connection.stream(1) is stream
    connection.send_headers(stream, OPENING_BLOCK)
    connection.send_data(stream, b"one")
    connection.send_data(stream, b"")
    connection.send_data(stream, memoryview(b"two"))
    connection.send_trailers(stream, ENDING_BLOCK)
    said = client.read()
    assert_answered(said, 1, b"onetwo")
    assert said.kinds == ["Headers", "Data", "Data", "Headers"]
    # Once it has ended nothing can be sent any more.
    connection.send_headers(stream, OPENING_BLOCK)
    connection.send_data(stream, b"more")
    connection.send_trailers(stream, ENDING_BLOCK)
    assert not client.read().frames


@pytest.mark.wire("B3-02")
def test_b3_02_trailers_only() -> None:
    client = CoreClient()
    ask(client, 1)
    stream = client.connection.stream(1)
    assert stream is not None
    client.connection.send_headers(stream, ENDING_BLOCK, end_stream=True)
    said = client.read()
    assert said.kinds == ["Headers"]
    assert said.ended(1)
    assert not client.connection.streams


@pytest.mark.wire("B3-03")
@pytest.mark.parametrize("with_data", [False, True])
def test_b3_03_a_client_that_still_sends_is_told_to_stop(with_data: bool) -> None:
    client = CoreClient()
    stream = client.open(1)
    if with_data:
        client.connection.send_headers(stream, OPENING_BLOCK)
        client.connection.send_data(stream, b"some")
        client.connection.send_trailers(stream, ENDING_BLOCK)
    else:
        client.connection.send_headers(stream, ENDING_BLOCK, end_stream=True)
    said = client.read()
    assert said.kinds[-2:] == ["Headers", "RstStream"]
    assert said.resets == {1: "NO_ERROR"}
    # What crossed it is passed over, and its window returned.
    before = client.connection._window.left + client.connection._window.consumed
    assert client.send(client.make.data(1, b"crossed")).fault is None
    assert client.connection._window.left + client.connection._window.consumed == before
    assert not client.take_events()


def test_a_large_header_block_is_split() -> None:
    client = CoreClient()
    ask(client, 1)
    fields = [*OPENING, (b"x-large", b"v" * 40_000)]
    client.connection.answer(1, encode_fields(fields), b"body", ENDING_BLOCK)
    said = client.read()
    decoder = Decoder()
    decoder.max_header_list_size = 1 << 20
    assert said.fields(1, decoder) == [fields, ENDING]
    assert said.kinds == ["Headers", "Continuation", "Continuation", "Data", "Headers"]


def test_trailers_wait_for_their_data() -> None:
    client = CoreClient(settings={WINDOW: 3})
    ask(client, 1)
    said = client.answer(1, b"12345678")
    assert said.body(1) == b"123"
    assert not said.ended(1)
    said = client.give(stream_id=1, increment=4)
    assert said.kinds == ["Data"]
    said = client.give(stream_id=1, increment=4)
    assert said.kinds == ["Data", "Headers"]
    assert said.ended(1)
    assert not client.connection.blocked
    assert client.connection.pending_bytes == 0


def test_a_reset_forgets_what_waits() -> None:
    client = CoreClient(settings={WINDOW: 3})
    ask(client, 1, 3)
    client.answer(1, bytes(50))
    client.answer(3, bytes(70))
    assert client.connection.pending_bytes == 47 + 67
    client.connection.reset(1, ErrorCode.CANCEL)
    assert client.read().resets == {1: "CANCEL"}
    assert client.connection.pending_bytes == 67
    ask(client, 5)
    client.connection.send_window = 0
    client.connection.answer(5, OPENING_BLOCK, b"12345", ENDING_BLOCK)
    assert set(client.connection.blocked) == {5}
    client.connection.reset(5, ErrorCode.CANCEL)
    assert not client.connection.blocked
    client.read()
    client.send(client.make.rst_stream(3))
    assert client.connection.pending_bytes == 0
    assert isinstance(client.take_events()[-1], Reset)
    assert client.send(client.make.settings({WINDOW: 1_000})).kinds == ["Settings"]


@pytest.mark.wire("B3-33")
def test_b3_33_a_producer_is_asked_to_pause_and_told_to_go_on() -> None:
    client = CoreClient(settings={WINDOW: 0})
    client.give(increment=100_000)
    stream = client.open(1)
    connection = client.connection
    connection.send_headers(stream, OPENING_BLOCK)
    while not connection.is_full(stream):
        connection.send_data(stream, bytes(10_000))
    assert PENDING_HIGH_BYTES < stream.pending_bytes <= PENDING_HIGH_BYTES + 10_000
    client.give(stream_id=1, increment=stream.pending_bytes - PENDING_LOW_BYTES - 1)
    assert not writable_events(client)
    client.give(stream_id=1, increment=1)
    assert writable_events(client) == [stream]
    client.give(stream_id=1, increment=PENDING_LOW_BYTES)
    assert not writable_events(client)
    assert not stream.pending


@pytest.mark.wire("B3-33")
@pytest.mark.parametrize("window", [1, 1_000, 16_384, 20_000])
def test_b3_33_streams_take_turns_at_the_connections_window(window: int) -> None:
    """However the window opens: nobody gets ahead of the others by more than a frame."""
    client = CoreClient(settings={WINDOW: 1 << 20})
    ask(client, 1, 3, 5)
    client.connection.send_window = 0
    for stream_id in (1, 3, 5):
        client.connection.answer(stream_id, OPENING_BLOCK, bytes(200_000), ENDING_BLOCK)
    client.read()
    sent = dict.fromkeys((1, 3, 5), 0)
    for _ in range(7):
        for stream_id, count in client.give(increment=window).data:
            sent[stream_id] += count
    assert sum(sent.values()) == 7 * window
    assert max(sent.values()) - min(sent.values()) <= min(window, 16_384)


def test_a_stream_without_a_window_holds_up_nobody() -> None:
    client = CoreClient(settings={WINDOW: 5})
    ask(client, 1, 3)
    client.answer(1, bytes(1_000))
    client.answer(3, bytes(1_000))
    assert not client.connection.more_output  # nothing that a flush could send
    said = client.give(stream_id=3, increment=995)
    assert said.ended(3)
    assert not client.connection.more_output
    assert client.connection.pending_bytes == 995


def test_a_shrunk_window_stops_a_stream_that_waited_for_the_connections() -> None:
    client = CoreClient()
    ask(client, 1, 3)
    client.connection.send_window = 0
    client.connection.answer(1, OPENING_BLOCK, bytes(1_000), ENDING_BLOCK)
    assert list(client.connection.blocked) == [1]
    client.send(client.make.settings({WINDOW: 0}))
    said = client.give(increment=5_000)
    assert not said.data
    assert not client.connection.blocked
    assert client.send(client.make.settings({WINDOW: 10})).data == [(1, 10)]


def test_output_comes_in_chunks() -> None:
    client = CoreClient(settings={WINDOW: 8 << 20})
    client.give(increment=8 << 20)
    ask(client, 1)
    connection = client.connection
    connection.answer(1, OPENING_BLOCK, bytes(3 << 20), ENDING_BLOCK)
    sizes = []
    while output := connection.take_output():
        sizes.append(len(output))
        if connection.more_output:
            connection.flush()
    assert sum(sizes) > 3 << 20
    assert max(sizes) < OUTPUT_CHUNK_BYTES + 20_000
    assert len(sizes) == 3


def test_a_full_transport_is_not_written_to() -> None:
    client = CoreClient(settings={WINDOW: 1 << 20})
    client.give(increment=1 << 20)
    ask(client, 1)
    connection = client.connection
    connection.writable = False
    connection.answer(1, OPENING_BLOCK, bytes(100_000), ENDING_BLOCK)
    assert not connection.more_output
    assert client.read().kinds == ["Headers"]
    connection.flush()
    assert not client.read().frames
    connection.writable = True
    assert connection.more_output
    connection.flush()
    assert client.read().ended(1)


def test_pieces_of_any_size_arrive_in_order() -> None:
    client = CoreClient(settings={WINDOW: 7})
    stream = client.open(1)
    connection = client.connection
    connection.send_headers(stream, OPENING_BLOCK)
    said = Said([])
    for piece in (b"abc", b"defghij", b"k", b"lmnopqrstuvwxyz"):
        connection.send_data(stream, piece)
        said.frames += client.give(stream_id=1, increment=4).frames
    connection.send_trailers(stream, ENDING_BLOCK)
    said.frames += client.give(stream_id=1, increment=100).frames
    assert said.body(1) == b"abcdefghijklmnopqrstuvwxyz"
    assert said.ended(1)


@pytest.mark.wire("B2-01")
def test_b2_01_a_window_that_drips_earns_nothing() -> None:
    """Frames cut short by the client's window give it no budget for more WINDOW_UPDATEs."""
    client = CoreClient(settings={WINDOW: 0})
    ask(client, 1)
    client.answer(1, bytes(1 << 20))
    earned = client.connection.floods.frames_sent
    for _ in range(1_999):
        said = client.give(stream_id=1, increment=1)
        assert said.data == [(1, 1)]
    assert client.connection.floods.frames_sent == earned
    client.give(stream_id=1, increment=1)
    assert client.give(stream_id=1, increment=1).fault == (
        "ENHANCE_YOUR_CALM",
        "window_update_flood",
    )
    # With windows worth a frame it goes on and on.
    client = CoreClient(settings={WINDOW: 0})
    ask(client, 1)
    client.give(increment=8 << 20)
    client.answer(1, bytes(6 << 20))
    for _ in range(4_000):
        assert client.give(stream_id=1, increment=1_024).fault is None


def test_the_last_resets_are_remembered() -> None:
    """Frames cross our reset: of as many streams as a client may think are open."""
    client = CoreClient(with_limits(streams_max=10))
    for stream_id in range(1, 1_201, 2):
        stream = client.open(stream_id)
        client.connection.send_headers(stream, ENDING_BLOCK, end_stream=True)
    client.read()
    assert len(client.connection._reset_ids) == 266
    assert client.send(client.make.data(1_199, b"crossed")).fault is None
    assert client.send(client.make.data(1, b"too late")).fault == (
        "STREAM_CLOSED",
        "a frame on a closed stream",
    )


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("answer"), st.integers(0, 60_000)),
            st.tuples(st.just("connection"), st.integers(1, 30_000)),
            st.tuples(st.just("stream"), st.integers(1, 30_000)),
            st.tuples(st.just("initial"), st.integers(0, 40_000)),
            st.tuples(st.just("writable"), st.integers(0, 1)),
            st.tuples(st.just("frames"), st.integers(16_384, 40_000)),
        ),
        max_size=40,
    )
)
def test_windows_are_kept_whatever_comes(steps: list[tuple[str, int]]) -> None:
    """A model of the client's windows: never overrun, and never left unused."""
    client = CoreClient()
    connection = client.connection
    windows: dict[int, int] = {}
    wanted: dict[int, int] = {}
    ours = frame_bytes = initial = 65_535
    frame_bytes = 16_384
    next_id = 1
    for what, value in steps:
        if what == "answer":
            ask(client, next_id)
            windows[next_id], wanted[next_id] = initial, value
            said = client.answer(next_id, bytes(value))
            next_id += 2
        elif what == "connection":
            ours += value
            said = client.give(increment=value)
        elif what == "stream" and connection.streams:
            stream_id = max(connection.streams)
            windows[stream_id] += value
            said = client.give(stream_id=stream_id, increment=value)
        elif what == "initial":
            for stream_id in windows:
                windows[stream_id] += value - initial
            initial = value
            said = client.send(client.make.settings({WINDOW: value}))
        elif what == "frames":
            frame_bytes = value
            said = client.send(client.make.settings({FRAME_BYTES: value}))
        else:
            connection.writable = bool(value)
            connection.flush()
            said = client.read()
        for stream_id, count in said.data:
            assert count <= frame_bytes
            ours -= count
            windows[stream_id] -= count
            wanted[stream_id] -= count
            assert windows[stream_id] >= 0
        assert ours >= 0
        assert connection.send_window == ours
        assert connection.pending_bytes == sum(wanted.values())
        for stream_id, left in wanted.items():
            assert (left > 0) == (stream_id in connection.streams)
            if connection.writable:
                assert not left or not ours or windows[stream_id] <= 0


def test_events_are_in_order() -> None:
    client = CoreClient()
    stream = client.open(1)
    client.send(client.make.data(1, end_stream=True))
    events: list[Event] = client.take_events()
    assert events == [Ended(stream)]
    client.send(client.make.headers(3, client.make.block(), end_stream=True))
    kinds: list[Callable[..., Event]] = [type(event) for event in client.take_events()]
    assert kinds == [Opened, Ended]
    assert repr(ANSWERING) == "ANSWERING"
