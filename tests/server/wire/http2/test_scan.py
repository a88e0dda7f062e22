"""Whole requests found by compiled code: what a connection hears is the same without it.

The compiled code reads bytes of a client without bounds checks. `test_as_python` runs this file
again with the kernels as plain Python, where a place behind the bytes is an IndexError.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.wire.http2 import hpack, scan
from server.wire.http2.headers import Head, timeout_ns
from server.wire.http2.literals import encode_integer
from tests.support.core_client import PATIENT, CoreClient, with_limits
from tests.support.frame_factory import GRPC_FIELDS, FrameFactory, Pair
from tests.support.header_encoders import coded, raw

AS_PYTHON = "NUMBA_DISABLE_JIT"
MAKE = FrameFactory()
TOKEN = (b"authorization", b"Bearer " + b"t" * 80)


def literal(name: bytes, value: bytes, *, huffman: bool = False) -> bytes:
    """A field that is not indexed."""
    return b"\0" + raw(name) + (coded(value) if huffman else raw(value))


def block(*fields: Pair, huffman: bool = False) -> bytes:
    """A head that leaves the table alone, as of a client that indexes nothing."""
    every = [*GRPC_FIELDS, *fields]
    return b"".join(literal(name, value, huffman=huffman) for name, value in every)


def request(stream_id: int, head: bytes, body: bytes = b"body") -> bytes:
    return MAKE.headers(stream_id, head) + MAKE.data(stream_id, body, end_stream=True)


def requests(heads: Sequence[bytes], first: int = 1) -> bytes:
    return b"".join(request(first + 2 * at, head) for at, head in enumerate(heads))


def without_scan() -> ExitStack:
    """As if the compiled code never found anything."""
    stack = ExitStack()
    stack.enter_context(patch.object(scan, "scan", lambda *_: 0))
    stack.enter_context(patch.object(hpack, "match", lambda *_: None))
    return stack


def scans(send: Callable[[], Any]) -> list[int]:
    """How many requests each scan found while `send` ran."""
    found: list[int] = []
    real = scan.scan

    def counting(*arguments: Any) -> int:
        packed = real(*arguments)
        found.append(packed & scan.COUNT_MASK)
        return packed

    with patch.object(scan, "scan", counting):
        send()
    return found


def heard(client: CoreClient) -> list[tuple[Any, ...]]:
    """All that a connection told those above it."""
    connection = client.connection
    whole = [
        (stream_id, *of_head(head), body)
        for its, stream_id, head, body in client.whole
        if its is connection
    ]
    assert len(whole) == len(client.whole)
    states = [
        (at, type(state).__name__, getattr(state, "send_window", connection.grants.get(at)))
        for at, state in connection.streams.items()
    ]
    assert connection.grants.keys() <= connection.streams.keys()
    events = [(type(event).__name__, getattr(event, "data", None)) for event in connection.events]
    return [*whole, *sorted(states), *events, (connection._window.left, connection._last_id)]


def of_head(head: Head) -> tuple[Any, ...]:
    return (head.path, head.authority, head.fields, head.timeout_ns, head.problem)


# What a client may send, as (stream id) → frames.
VALUES = [b"00-1", b"00-22", b"", b" x", b"x\0", b"\xff" * 9, b"v" * 200, b"w" * 700]
TIMEOUTS = [b"1S", b"20u", b"99999999H", b"1", b"123456789n", b"5x", b"007m", b"3M", b"2H", b"4n"]
FIELDS = st.lists(
    st.one_of(
        st.tuples(st.just(b"traceparent"), st.sampled_from(VALUES)),
        st.tuples(st.just(b"grpc-timeout"), st.sampled_from(TIMEOUTS)),
        st.tuples(st.just(b"content-length"), st.sampled_from([b"4", b"5"])),
        st.tuples(st.just(b"authorization"), st.sampled_from(VALUES)),
    ),
    max_size=2,
)
LAYOUTS = st.lists(st.tuples(FIELDS, st.booleans()), min_size=1, max_size=2)
KINDS = (
    ["request"] * 8
    + ["granted"] * 4
    + [
        "grant",
        "head",
        "body",
        "late",
        "again",
        "padded",
        "ping",
        "reset",
        "split",
        "insert",
    ]
)
GRANTS = (5, 1 << 16, 1, (1 << 16) + 1, 0, 2**31 - 1)  # by the length of a value
STEP = st.tuples(
    st.sampled_from(KINDS), st.integers(0, 1), st.sampled_from(VALUES), st.sampled_from(TIMEOUTS)
)


class Script:
    """The frames of one client; stream ids rise."""

    def __init__(self, layouts: Sequence[tuple[list[Pair], bool]]) -> None:
        self._layouts = layouts
        self._next_id = 1
        self._open: list[int] = []
        self._youngest = b""  # the index of the youngest entry of the table, once there is one

    def head(self, layout: int, value: bytes, timeout: bytes) -> bytes:
        """The layout's block, with other values."""
        fields, huffman = self._layouts[layout % len(self._layouts)]
        fresh = {b"traceparent": value, b"authorization": value, b"grpc-timeout": timeout}
        said = [(name, fresh.get(name, was)) for name, was in fields]
        return block(*said, huffman=huffman) + self._youngest

    def step(self, kind: str, layout: int, value: bytes, timeout: bytes) -> bytes:
        head = self.head(layout, value, timeout)
        at = self._next_id
        if kind in {"request", "granted", "head", "padded", "split", "insert"}:
            self._next_id += 2
        if kind == "insert":
            self._youngest = b"\xbe"
            name = b"grpc-timeout" if layout else b"x"
            return request(at, head + b"\x40" + raw(name) + raw(timeout))
        if kind == "request":
            return request(at, head)
        if kind == "granted":
            grant = MAKE.window_update(at, GRANTS[len(value) % len(GRANTS)])
            again = grant if timeout == b"4n" else b""
            end = MAKE.data(at, b"body", end_stream=True)
            return MAKE.headers(at, head) + grant + again + end
        if kind == "grant" and self._open:
            return MAKE.window_update(self._open[0 if layout else -1], 5)
        if kind == "head":
            self._open.append(at)
            return MAKE.headers(at, head)
        if kind == "padded":
            return MAKE.headers(at, head, padding=3) + MAKE.data(at, b"body", end_stream=True)
        if kind == "split":
            return (
                MAKE.headers(at, head)
                + MAKE.data(at, b"bo")
                + MAKE.data(at, b"dy", end_stream=True)
            )
        if kind in {"body", "late"} and self._open:  # of the oldest head, or of the youngest
            stream_id = self._open.pop(0 if kind == "body" else -1)
            return MAKE.data(stream_id, b"body", end_stream=True)
        if kind == "again" and at > 1:
            return MAKE.data(at - 2, b"body", end_stream=True)
        if kind == "reset" and at > 1:
            return MAKE.rst_stream(at - 2)
        return MAKE.ping()


@given(
    LAYOUTS,
    st.lists(STEP, min_size=1, max_size=30),
    st.lists(st.integers(1, 2000), max_size=4),
    st.sampled_from([PATIENT, with_limits(streams_max=3)]),
)
@example([([(b"traceparent", b"")], False)], [("request", 0, b"00-1", b"")] * 12, [], PATIENT)
def test_nobody_hears_a_difference(
    layouts: list[tuple[list[Pair], bool]], steps: list[Any], cuts: list[int], limits: Any
) -> None:
    script = Script(layouts)
    data = b"".join(script.step(*step) for step in steps)
    client, other = CoreClient(limits), CoreClient(limits)
    for piece in pieces(data, cuts):
        said = client.send(piece)
        with without_scan():
            expected = other.send(piece)
        assert said.kinds == expected.kinds
        assert said.fault == expected.fault
        assert said.resets == expected.resets
        assert said.increments == expected.increments
    assert heard(client) == heard(other)


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    at = 0
    for cut in cuts:
        yield data[at : at + cut]
        at += cut
    yield data[at:]


def traced(number: int, *, huffman: bool = False) -> bytes:
    trace = (b"traceparent", b"00-%032d-%016d-01" % (number, number))
    return block(TOKEN, trace, (b"grpc-timeout", b"%dm" % number), huffman=huffman)


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("order", ["pairs", "heads first", "bodies backwards", "granted"])
def test_a_busy_read_is_one_scan(order: str, *, huffman: bool) -> None:
    client = CoreClient()
    client.send(request(1, traced(0, huffman=huffman)))
    client.whole.clear()
    ids = range(3, 67, 2)
    heads = [MAKE.headers(at, traced(at, huffman=huffman)) for at in ids]
    bodies = [MAKE.data(at, b"body %02d" % at, end_stream=True) for at in ids]
    frames = {
        "pairs": [frame for pair in zip(heads, bodies, strict=True) for frame in pair],
        "heads first": [*heads, *bodies],
        "granted": [
            frame
            for at, head, body in zip(ids, heads, bodies, strict=True)
            for frame in (head, MAKE.window_update(at, 5), body)
        ],
        "bodies backwards": [*heads, *bodies[::-1]],
    }[order]
    found = scans(lambda: client.send(*frames))
    assert found[0] == 32
    if order == "bodies backwards":  # whole requests come in the order of their ends
        ids = ids[::-1]
    else:
        assert len(found) == 1
    whole = [(at, body) for _, at, _, body in client.whole]
    assert whole == [(at, b"body %02d" % at) for at in ids]
    for _, at, head, _ in client.whole:
        assert head.timeout_ns == at * 10**6
        assert dict(head.fields)[b"traceparent"] == b"00-%032d-%016d-01" % (at, at)
        assert dict(head.fields)[TOKEN[0]] == TOKEN[1]
        assert head.route is client.whole[0][2].route


def test_a_window_that_came_with_the_head_is_the_answers() -> None:
    """Exactly: a byte more than the client has given would end the connection."""
    client = CoreClient(settings={4: 10})
    client.send(request(1, traced(0)))
    granted = [
        frame
        for at in (3, 5)
        for frame in (
            MAKE.headers(at, traced(at)),
            MAKE.window_update(at, at),
            MAKE.data(at, b"body", end_stream=True),
        )
    ]
    assert scans(lambda: client.send(*granted)) == [2]
    assert client.connection.grants == {3: 3, 5: 5}
    assert client.answer(3, bytes(100)).data == [(3, 13)]
    assert client.answer(5, bytes(2)).data == [(5, 2)]
    assert client.connection.grants == {}


def test_blocks_that_come_again_as_they_are() -> None:
    client = CoreClient()
    client.send(requests([block(), block()]))
    assert scans(lambda: client.send(requests([block()] * 20, first=5))) == [20]
    heads = {head for _, stream_id, head, _ in client.whole if stream_id >= 5}
    assert len(heads) == 1


@pytest.mark.parametrize("turns", [1, 2, 6])
def test_several_templates_in_one_read(turns: int) -> None:
    client = CoreClient()
    kinds = [block(), traced(1), block((b"x", b"1"))]
    client.send(requests([*kinds, *kinds]))
    heads = [kind for kind in kinds for _ in range(turns)] * 2
    assert scans(lambda: client.send(requests(heads, first=13))) == [len(heads)]
    expected = [count for count in (2, 5, 3) for _ in range(turns)] * 2
    assert [len(head.fields) for *_, head, _ in client.whole[6:]] == expected
    # Each of them alone, too, however old its template is.
    for number, kind in enumerate(kinds):
        alike = requests([kind] * 16, first=101 + 40 * number)
        assert scans(partial(client.send, alike)) == [16]


class Indexing:
    """A client that has its deadline in the dynamic table, and its token never."""

    def __init__(self, timeout: bytes) -> None:
        self.first = block() + b"\x40" + raw(b"grpc-timeout") + raw(timeout)
        self.again = block() + b"\xbe"

    def call(self, token: bytes) -> bytes:
        return self.again + b"\x10" + raw(b"authorization") + raw(token)


@pytest.mark.parametrize("way", ["scan", "decode"])
@pytest.mark.parametrize("timeout", [b"1S", b"87600H", b"99999999H"])
def test_a_deadline_in_the_table_is_one_of_every_call(way: str, timeout: bytes) -> None:
    one, client = Indexing(timeout), CoreClient()
    client.send(request(1, one.first))
    for at in range(3, 13, 2):
        head = MAKE.headers(at, one.call(b"%d" % at), padding=1 if way == "decode" else None)
        client.send(head, MAKE.data(at, b"body", end_stream=True))
    assert [head.timeout_ns for *_, head, _ in client.whole] == [timeout_ns(timeout)] * 6
    assert dict(client.whole[-1][2].fields)[b"authorization"] == b"11"


@pytest.mark.parametrize("way", ["scan", "decode"])
@pytest.mark.parametrize("timeout", [b"1S", b"40031H", b"87600H", b"160128H", b"99999999M"])
def test_long_deadlines(way: str, timeout: bytes) -> None:
    client = CoreClient()
    for at in range(1, 11, 2):
        fields = (b"grpc-timeout", timeout if at > 5 else b"1S"), (b"x", b"%d" % at)
        head = MAKE.headers(at, block(*fields), padding=1 if way == "decode" else None)
        client.send(head, MAKE.data(at, b"body", end_stream=True))
    assert [head.timeout_ns for *_, head, _ in client.whole[3:]] == [timeout_ns(timeout)] * 2


def test_a_head_whose_body_comes_later() -> None:
    client = CoreClient()
    client.send(request(1, traced(1)))
    head = MAKE.headers(5, traced(2))
    assert scans(lambda: client.send(request(3, traced(3)), head)) == [2]
    assert [at for _, at, _, _ in client.whole] == [1, 3]
    client.send(MAKE.data(5, b"late", end_stream=True))
    assert [(at, body) for _, at, _, body in client.whole[2:]] == [(5, b"late")]


def test_no_more_than_may_be_open() -> None:
    client = CoreClient(with_limits(streams_max=10))
    client.send(request(1, traced(1)))
    heads = [traced(number) for number in range(14)]
    assert scans(lambda: client.send(requests(heads, first=3)))[0] == 9
    assert len(client.whole) == 10


def test_no_more_than_the_window() -> None:
    client = CoreClient(with_limits(connection_window_bytes=70_000))
    client.send(request(1, traced(1)))
    bodies = b"".join(request(at, traced(at), b"x" * 16_000) for at in range(3, 15, 2))
    found = scans(lambda: client.send(bodies))
    assert found[0] == 5  # the fifth one's head; its body is more than the window
    assert client.connection.closed
    assert client.abuse == {"window_overrun": 1}


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 511, 512, 513, 3000, 5000])
@pytest.mark.parametrize("huffman", [False, True])
def test_strings_of_any_length(size: int, *, huffman: bool) -> None:
    client = CoreClient()
    client.send(request(1, block((b"traceparent", b"1"))))
    value = b"~" * size if size < 1000 else b"a" * size
    client.send(request(3, block((b"traceparent", value), huffman=huffman)))
    assert client.whole[1][2].fields[-1] == (b"traceparent", value)


@pytest.mark.parametrize(
    "string",
    [
        b"\x05abcd", b"\x7f", b"\x7f\x80", b"\x7f\x80\x80\x00", b"\x82\xff\xff", b"\x81\x00", b"",
        b"\x02 a", b"\x02a\t", b"\x01\0", b"\x01\r", b"\x01\n",
    ],
)  # fmt: skip
def test_what_is_no_string_or_no_legal_value_is_left_alone(string: bytes) -> None:
    client = CoreClient()
    start = block((b"traceparent", b"1"))[:-2]
    client.send(request(1, start + raw(b"1")))
    assert scan.match(start + raw(b"2"), client.connection._decoder.code) == (0, -1, False)
    assert scan.match(start + string, client.connection._decoder.code) is None
    assert scans(lambda: client.send(request(3, start + string)))[0] == 0


def test_a_length_in_three_bytes_is_left_to_the_other_decoder() -> None:
    assert encode_integer(127 + 200, 0x7F, 0) == b"\x7f\xc8\x01"
    client = CoreClient()
    start = block((b"traceparent", b"1"))[:-2]
    client.send(request(1, start + raw(b"1")))
    long_way = b"\x7f\xc8\x81\x00" + b"v" * 327
    client.send(request(3, start + long_way))
    assert client.whole[1][2].fields[-1] == (b"traceparent", b"v" * 327)


def test_without_templates_nothing_is_recognised() -> None:
    assert scan.match(block(), b"") is None
    assert scan.scan(request(1, block()), 0, b"", 0, 1 << 30, 100, 1 << 20, 0) == 0


def test_a_read_that_is_too_long_to_scan() -> None:
    client = CoreClient()
    client.send(request(1, traced(1)))
    code = client.connection._decoder.code
    long = request(3, traced(2)) + bytes(scan.DATA_BYTES_MAX)
    assert scan.scan(long, 0, code, 1, 1 << 30, 100, 1 << 20, 0) == 0
    assert scan.scan(long[:-1000], 0, code, 1, 1 << 30, 100, 1 << 20, 0) & scan.COUNT_MASK == 1


def test_what_changes_the_table_ends_what_was_learnt() -> None:
    client = CoreClient()
    client.send(requests([block(), block(), traced(1)]))
    assert client.connection._decoder.code
    inserted = block() + b"\x40" + raw(b"x") + raw(b"1")
    client.send(request(7, inserted))
    assert not client.connection._decoder.code
    assert not client.connection._decoder.templates
    # The same bytes now mean another field.
    first, second = block() + b"\xbe", block() + b"\x40" + raw(b"y") + raw(b"2")
    client.send(requests([first, first, first, second, first, first], first=9))
    assert [head.fields[-1] for *_, head, _ in client.whole[4:]] == [
        (b"x", b"1"), (b"x", b"1"), (b"x", b"1"), (b"y", b"2"), (b"y", b"2"), (b"y", b"2"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(AS_PYTHON in os.environ, reason="this is that run")
def test_as_python() -> None:
    arguments = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env=os.environ | {AS_PYTHON: "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
