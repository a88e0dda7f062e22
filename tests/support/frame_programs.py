"""Programs of HTTP/2 frames for the fuzzer: legal ones, illegal ones, and what is between.

A program is a list of steps, plain tuples as Hypothesis makes and shrinks them. `Script` turns one
step after the other into frames; it keeps the state that a client has (its HPACK encoder, the
stream ids in use), so that most steps make sense and some make none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.support.frame_factory import GRPC_FIELDS, Pair, split_frames
from tests.support.frame_factory import FrameFactory as Factory

Step = tuple[Any, ...]

# Only the layer above acts in these; they send nothing.
ANSWER, EARLY, CANCEL, HOLD = "answer", "answer early", "cancel", "hold"

STREAMED: list[Pair] = [
    (name, b"/test.Service/Stream" if name == b":path" else value) for name, value in GRPC_FIELDS
]
_WITHOUT_TE = GRPC_FIELDS[:-1]


def with_length(length: bytes, fields: list[Pair] = GRPC_FIELDS) -> list[Pair]:
    return [*fields, (b"content-length", length)]


LEGAL_FIELDS: list[list[Pair]] = [
    GRPC_FIELDS,
    STREAMED,
    [*GRPC_FIELDS, (b"grpc-timeout", b"1S"), (b"x-a", b"1"), (b"x-a", b"2")],
    [*STREAMED, (b"x-wide", b"w" * 900), (b"x-wider", b"v" * 1900)],
    [*GRPC_FIELDS, *((b"x-%d" % at, b"v") for at in range(40))],
    [*STREAMED, (b"x-larger-than-the-table", b"t" * 4200)],
    [*GRPC_FIELDS[:3], (b"host", b"localhost"), *GRPC_FIELDS[4:]],
    [*GRPC_FIELDS, (b"x-empty", b""), (b"cookie", b"a=b"), (b"cookie", b"c=d")],
    [(b":method", b"GET"), *STREAMED[1:]],
]
LENGTH_FIELDS: list[list[Pair]] = [
    with_length(b"5"),
    with_length(b"10", STREAMED),
    with_length(b"0"),
    with_length(b"0", STREAMED),
]
ILLEGAL_FIELDS: list[list[Pair]] = [
    [],
    GRPC_FIELDS[1:],
    [*GRPC_FIELDS, (b":path", b"/")],
    [GRPC_FIELDS[0], *GRPC_FIELDS],
    [*GRPC_FIELDS[:2], (b":path", b""), *GRPC_FIELDS[3:]],
    [*GRPC_FIELDS[:2], (b":path", b"no slash"), *GRPC_FIELDS[3:]],
    [*GRPC_FIELDS, (b"X-Upper", b"1")],
    [*GRPC_FIELDS, (b"x-a", b"1\r\nx-b: 2")],
    [*GRPC_FIELDS, (b"x-a", b" 1")],
    [*GRPC_FIELDS, (b"", b"1")],
    [*GRPC_FIELDS, (b"x:y", b"1")],
    [*GRPC_FIELDS, (b"connection", b"close")],
    [*GRPC_FIELDS, (b"transfer-encoding", b"chunked")],
    [*GRPC_FIELDS, (b"host", b"elsewhere")],
    [*_WITHOUT_TE, (b"te", b"gzip")],
    [(b":status", b"200"), *GRPC_FIELDS],
    [*GRPC_FIELDS[:3], *GRPC_FIELDS[4:]],
]
# h2 ends the connection for these.
FATAL_FIELDS: list[list[Pair]] = [
    with_length(b"x"),
    with_length(b"-1"),
    [*with_length(b"5"), (b"content-length", b"6")],
    [*GRPC_FIELDS, *((b"x-%d" % at, b"v") for at in range(140))],
    [*GRPC_FIELDS, (b"x-huge", b"h" * 17_000)],
]
TRAILERS: list[list[Pair]] = [
    [(b"x-checksum", b"1")],
    [],
    [(b":path", b"/")],
    [(b"X-Upper", b"1")],
    [(b"te", b"gzip")],
]


# Which stream: a new one, one whose request goes on, one used before, and the wrong ones.
_NEW = st.sampled_from([("new", 0)] * 8 + [("skipped", 3), ("reserved bit", 0)])
_SENDING = st.tuples(st.just("sending"), st.integers(0, 3))
_USED = st.tuples(st.just("used"), st.integers(0, 3))
_WRONG = st.sampled_from([("zero", 0), ("even", 0), ("even", 1), ("gap", 0), ("idle", 5)])
_ANYWHERE = st.one_of(_NEW, _SENDING, _USED, _WRONG)

_PADDING = st.sampled_from([None, None, None, 0, 1, 200, 255])
_ANY_FIELDS = st.sampled_from([*LEGAL_FIELDS, *ILLEGAL_FIELDS])
_FIELDS = st.sampled_from(LEGAL_FIELDS * 6 + LENGTH_FIELDS * 2 + ILLEGAL_FIELDS)
_SIZES = st.sampled_from([5, 0, 1, 5, 10, 100, 4_000, 16_000, 16_384])


def _settings(*values: tuple[int, list[int]]) -> st.SearchStrategy[list[tuple[int, int]]]:
    pair = st.sampled_from([(key, value) for key, choice in values for value in choice])
    return st.lists(pair, max_size=3, unique_by=lambda pair: pair[0])


_LEGAL_SETTINGS = _settings(
    (4, [65_535, 0, 1, 10, 100, 20_000]), (5, [16_384, 16_385, 30_000, 2**24 - 1]),
    (1, [4_096, 0, 50, 10_000]), (2, [0, 1]), (3, [0, 1, 100]), (6, [16_384, 2**31]),
    (0, [1]), (7, [2**32 - 1]), (0xFFFF, [0]),
)  # fmt: skip
_ANY_SETTINGS = _settings(
    (4, [0, 2**31 - 1, 2**31, 2**32 - 1]), (5, [0, 16_383, 2**24]), (2, [1, 2]), (3, [0]),
)  # fmt: skip
_INCREMENTS = st.sampled_from([1, 10, 1_000, 65_535, 10**6])
_ANY_INCREMENTS = st.sampled_from(
    [
        0,
        1,
        2**30,
        2**31 - 1,
        2**31,
        2**31 + 9,
        2**31 - 65_536,
        2**31 - 65_535,
    ]
)
_CUTS = st.lists(st.integers(0, 60), min_size=1, max_size=4)
_DEPENDENCY = st.sampled_from([None, None, (0, 16, False), (3, 256, True)])


def _request(where: Any, fields: Any) -> st.SearchStrategy[Step]:
    return st.one_of(
        st.tuples(st.just("request"), where, fields, st.booleans(), st.none(), st.none()),
        st.tuples(st.just("request"), where, fields, st.booleans(), _PADDING, _DEPENDENCY),
        st.tuples(st.just("split request"), where, fields, st.booleans(), _CUTS),
    )


def _data(where: Any) -> st.SearchStrategy[Step]:
    return st.one_of(
        st.tuples(st.just("data"), where, _SIZES, st.booleans(), st.none()),
        st.tuples(st.just("data"), where, _SIZES, st.booleans(), _PADDING),
    )


_ANSWERS = st.one_of(
    st.tuples(st.just(ANSWER), st.sampled_from([0, 7, 20_000, 100_000]), st.booleans()),
    st.tuples(st.just(EARLY), st.integers(0, 2)),
    st.tuples(st.just(CANCEL), st.integers(0, 2)),
)
# The peer goes on after these …
_PEACEFUL = st.one_of(
    *[_request(_NEW, st.just(LEGAL_FIELDS[0])), _request(_NEW, _FIELDS)] * 3,
    *[_data(_SENDING)] * 6,
    *[_ANSWERS] * 5,
    st.tuples(st.just("trailers"), _SENDING, st.sampled_from(TRAILERS), st.just(True)),
    st.tuples(st.just("rst"), _USED, st.sampled_from([8, 0, 2, 99])),
    *[st.tuples(st.just("settings"), _LEGAL_SETTINGS, st.just(False))] * 3,
    st.tuples(st.just("settings"), st.just([]), st.just(True)),
    st.tuples(st.just("ping"), st.binary(min_size=8, max_size=8), st.booleans()),
    st.tuples(st.just("window"), st.one_of(_USED, st.just(("zero", 0))), _INCREMENTS),
    st.tuples(st.just("window"), st.one_of(_USED, st.just(("zero", 0))), _INCREMENTS),
    st.tuples(st.just("priority"), st.one_of(_USED, st.just(("idle", 5))), st.just(0)),
    st.tuples(st.just("table size"), st.sampled_from([4_096, 0, 60, 200])),
    st.tuples(
        st.just("raw"), st.sampled_from([11, 16, 200]), st.integers(0, 255), _ANYWHERE,
        st.binary(max_size=12),
    ),
)  # fmt: skip
# … and often not after these.
_HOSTILE = st.one_of(
    _request(_ANYWHERE, _ANY_FIELDS),
    _request(_NEW, st.sampled_from(FATAL_FIELDS)),
    _data(_ANYWHERE),
    st.tuples(st.just("trailers"), _ANYWHERE, st.sampled_from(TRAILERS), st.booleans()),
    st.tuples(st.just("rst"), _ANYWHERE, st.just(8)),
    st.tuples(st.just("settings"), _ANY_SETTINGS, st.just(False)),
    st.tuples(st.just("window"), _ANYWHERE, _ANY_INCREMENTS),
    st.tuples(st.just("priority"), _ANYWHERE, st.integers(0, 5)),
    st.tuples(st.just("table size"), st.just(4_097)),
    st.tuples(
        st.just("raw"), st.integers(0, 10),
        st.sampled_from([0, 1, 4, 5, 8, 9, 13, 32, 36, 45, 255]), _ANYWHERE,
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from([bytes(4), bytes(5), bytes(6), bytes(8), b"\xff", b"\5abcde"]),
        ),
    ),
    st.tuples(st.just("block"), _NEW, st.binary(min_size=1, max_size=20), st.booleans()),
    st.tuples(st.just("torn headers"), _NEW, st.sampled_from(LEGAL_FIELDS), st.integers(0, 40)),
    st.tuples(st.just("crossed headers"), _ANYWHERE, st.integers(0, 9)),
    st.tuples(st.just("continuation"), _ANYWHERE, st.binary(max_size=8), st.booleans()),
    st.tuples(st.just("goaway"), st.sampled_from([0, 1, 11])),
    st.tuples(st.just("oversize"), st.integers(0, 10), _ANYWHERE),
)  # fmt: skip


def calls(
    count: int, size: int, extra: int, batch: bool, fields: list[Pair] = GRPC_FIELDS
) -> list[Step]:
    """So many whole requests, answered together."""
    request = ("request", ("new", 0), fields, False, None, None)
    body = ("data", ("sending", 0), size, True, None)
    return [request, body] * count + [(ANSWER, extra, batch)]


def stalled(window: int, last: Step) -> list[Step]:
    """An answer that is larger than its window, and what happens then."""
    return [("settings", [(4, window)], False), *calls(1, 5, 20_000, True), last]


def unread(padding: int | None, count: int) -> list[Step]:
    """A body whose bytes nobody takes yet; from 40,000 on it has no window left."""
    body = ("data", ("sending", 0), 16_384, False, padding)
    return [(HOLD, True), ("request", ("new", 0), STREAMED, False, None, None), *[body] * count]


# Scenes: several steps that belong together.
_SCENES = st.one_of(
    st.builds(
        calls, st.integers(2, 4), st.sampled_from([5, 0, 100]),
        st.sampled_from([0, 7, 16_000, 20_000]), st.booleans(),
    ),
    st.builds(
        stalled, st.sampled_from([0, 1, 10_000]),
        st.sampled_from([
            ("rst", ("used", 0), 8), ("window", ("used", 0), 10_000), ("answer", 0, True),
            ("settings", [(4, 65_535)], False), ("settings", [(4, 5)], False),
        ]),
    ),
    st.builds(unread, st.sampled_from([None, 0, 255]), st.integers(1, 3)),
    st.just([(HOLD, False)]),
)  # fmt: skip


def _programs(step: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    scenes = st.one_of(*[step.map(lambda one: [one])] * 3, _SCENES)
    return st.lists(scenes, min_size=4, max_size=25).map(
        lambda parts: [step for part in parts for step in part]
    )


PEACEFUL_PROGRAMS = _programs(_PEACEFUL)
PROGRAMS = st.tuples(PEACEFUL_PROGRAMS, st.lists(_HOSTILE, max_size=3), PEACEFUL_PROGRAMS).map(
    lambda parts: [step for part in parts for step in part]
)


class Script:
    """Turns the steps of one program into frames: one item of bytes for each frame."""

    def __init__(self) -> None:
        self.factory = Factory()
        self.used: list[int] = []
        self._sending: list[int] = []  # those whose request has not ended

    def start(self) -> Iterator[bytes]:
        yield self.factory.preface()

    def frames(self, step: Step) -> Iterator[bytes]:
        """The frames of a step; none for what the layer above does."""
        make = self.factory
        kind, *rest = step
        if kind == "request":
            where, fields, end_stream, padding, priority = rest
            stream_id = self._stream_id(where, ends=end_stream)
            block = make.block(fields)
            if len(block) > 16_000:
                yield from split_frames(
                    make.split_headers(stream_id, block, cuts=[16_000], end_stream=end_stream)
                )
                return
            yield make.headers(
                stream_id, block, end_stream=end_stream, padding=padding, priority=priority
            )
        elif kind == "split request":
            where, fields, end_stream, cuts = rest
            stream_id = self._stream_id(where, ends=end_stream)
            block = make.block(fields)
            cuts = [*cuts, *range(16_000, len(block), 16_000)]
            yield from split_frames(
                make.split_headers(stream_id, block, cuts=cuts, end_stream=end_stream)
            )
        elif kind == "data":
            where, size, end_stream, padding = rest
            size = min(size, 16_384 - (0 if padding is None else padding + 1))
            if where[0] == "sending" and not self._sending:
                return
            stream_id = self._stream_id(where, ends=end_stream)
            yield make.data(stream_id, _body(size), end_stream=end_stream, padding=padding)
        elif kind == "trailers":
            where, fields, end_stream = rest
            if where[0] == "sending" and not self._sending:
                return
            stream_id = self._stream_id(where, ends=end_stream)
            yield make.headers(stream_id, fields, end_stream=end_stream)
        elif kind == "rst":
            if rest[0][0] == "used" and not self.used:
                return
            yield make.rst_stream(self._stream_id(rest[0], ends=True), rest[1])
        elif kind == "settings":
            yield make.settings(() if rest[1] else rest[0], ack=rest[1])
        elif kind == "ping":
            yield make.ping(rest[0], ack=rest[1])
        elif kind == "window":
            if rest[0][0] == "used" and not self.used:
                return
            yield make.window_update(self._stream_id(rest[0]), rest[1])
        elif kind == "priority":
            yield make.priority(self._stream_id(rest[0]), rest[1])
        elif kind == "table size":
            make.encoder.header_table_size = rest[0]
        elif kind == "raw":
            frame_kind, flags, where, payload = rest
            yield make.raw(frame_kind, flags, self._stream_id(where), payload)
        elif kind == "block":
            where, block, end_stream = rest
            yield make.headers(self._stream_id(where), block, end_stream=end_stream)
        elif kind == "torn headers":
            where, fields, cut = rest
            yield make.headers(self._stream_id(where), make.block(fields)[:cut], end_headers=False)
        elif kind == "crossed headers":
            where, other = rest
            yield make.headers(self._stream_id(("new", 0)), end_headers=False)
            yield make.raw(other, 4, self._stream_id(where), bytes(8 if other == 6 else 4))
        elif kind == "continuation":
            where, block, end_headers = rest
            yield make.continuation(self._stream_id(where), block, end_headers=end_headers)
        elif kind == "goaway":
            yield make.goaway(0, rest[0])
        elif kind == "oversize":
            yield make.raw(rest[0], 0, self._stream_id(rest[1]), bytes(16_385))

    def _stream_id(self, where: tuple[str, int], *, ends: bool = False) -> int:
        """`ends`: the frame has END_STREAM."""
        how, count = where
        following = self.used[-1] + 2 if self.used else 1
        if how in {"new", "skipped", "reserved bit"}:
            stream_id = following + (2 * count if how == "skipped" else 0)
            self.used.append(stream_id)
            if not ends:
                self._sending.append(stream_id)
            return stream_id | (1 << 31 if how == "reserved bit" else 0)
        if how == "zero":
            return 0
        if how == "even":
            return following + 1 if count else 2
        if how == "gap":
            return max(following - 4, 1)
        if how == "idle":
            return following + count + 1
        choice = self._sending if how == "sending" else self.used
        if not choice:
            return self._stream_id(("new", 0), ends=ends)
        stream_id = choice[-1 - count % len(choice)]
        if ends and stream_id in self._sending:
            self._sending.remove(stream_id)
        return stream_id


def _body(size: int) -> bytes:
    return (b"%d:" % size * (size // 2 + 1))[:size]
