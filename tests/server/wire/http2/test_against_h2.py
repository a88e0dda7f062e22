"""Frame sequences, legal and illegal, against h2 as the oracle (wire.md, B2).

What is compared is in `tests/support/oracle_run.py`; what may differ is in the table below. What a
campaign finds goes into `corpus/`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, StreamReset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.wire.http2.limits import Limits
from tests.support import corpus
from tests.support.echo_servers import OurEcho, echo, read_output
from tests.support.frame_factory import GRPC_FIELDS, PREFACE, Pair, split_frames
from tests.support.frame_programs import (
    PEACEFUL_PROGRAMS,
    PROGRAMS,
    STREAMED,
    Script,
    Step,
    calls,
    unread,
    with_length,
)
from tests.support.oracle_run import (
    LIMITS,
    Difference,
    Duel,
    answers_wait,
    ends_without_its_body,
    has_closed_streams,
    increments,
    increments_by_nothing,
    was_not_reset,
    was_reset,
)

CORPUS = Path(__file__).parent / "corpus"
EAGER = settings(deadline=None, suppress_health_check=list(HealthCheck))
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=4)

# Every difference that is meant: (frame, h2's verdict), our verdict, and why. See `Difference`.
DIFFERENCES = [
    Difference(
        r"(HEADERS|CONTINUATION): GOAWAY PROTOCOL_ERROR "
        r"\(ProtocolError: Error decoding header block: .*\)",
        r"GOAWAY COMPRESSION_ERROR \(.*\)",
        "§4.3 names COMPRESSION_ERROR; h2 has one code for all",
    ),
    Difference(
        r"(HEADERS|CONTINUATION): GOAWAY ENHANCE_YOUR_CALM \(DenialOfServiceError: .*\)",
        r"fine|RST (PROTOCOL_ERROR|REFUSED_STREAM)",
        "a header list over the advertised size is answered by the layer above; trailers are not",
    ),
    Difference(
        r"(HEADERS|CONTINUATION): GOAWAY PROTOCOL_ERROR "
        r"\(ProtocolError: Trailers must have END_STREAM set\)",
        r"RST PROTOCOL_ERROR",
        "§8.1.1: trailers that end nothing are malformed, a stream error",
    ),
    Difference(
        r"(HEADERS|CONTINUATION): GOAWAY PROTOCOL_ERROR "
        r"\(ProtocolError: (Invalid|Conflicting) content-length header.*\)",
        r"RST (PROTOCOL_ERROR|REFUSED_STREAM)",
        "§8.1.1: a malformed content-length is a stream error",
    ),
    Difference(
        r"(HEADERS|CONTINUATION): fine",
        r"RST PROTOCOL_ERROR",
        "§8.1.1: content-length and no body; h2 looks at it with DATA only",
        when=ends_without_its_body,
    ),
    Difference(
        r"(DATA|HEADERS|CONTINUATION): GOAWAY PROTOCOL_ERROR \(InvalidBodyLengthError: .*\)",
        r"RST PROTOCOL_ERROR",
        "§8.1.1: a body of another length than announced is a stream error",
    ),
    Difference(
        r"(HEADERS|PRIORITY|CONTINUATION): GOAWAY PROTOCOL_ERROR "
        r"\(ProtocolError: Stream \d+ may not depend on itself\)",
        r"fine|RST .*",
        "§5.3.2 deprecates priorities: read and passed over",
    ),
    Difference(
        r"HEADERS: GOAWAY PROTOCOL_ERROR \(ProtocolError: Received frame with invalid padding.\)",
        r"fine|RST .*",
        "hyperframe refuses padding around an empty header block; §6.2 does not",
    ),
    Difference(
        r"(DATA|HEADERS|CONTINUATION): RST STREAM_CLOSED",
        r"fine",
        "§5.1: frames that crossed a reset are ignored; h2 resets once more (CVE-2025-8671)",
        when=was_reset,
        goes_on=True,
    ),
    Difference(
        r"(DATA|HEADERS|CONTINUATION): RST STREAM_CLOSED",
        r"GOAWAY STREAM_CLOSED \(a frame (on a closed stream|after END_STREAM|on a stream .*)\)",
        "§5.1 lets it be a connection error: no resets for an attacker (CVE-2025-8671)",
        when=was_not_reset,
    ),
    Difference(
        r"WINDOW_UPDATE: RST FLOW_CONTROL_ERROR",
        r"GOAWAY FLOW_CONTROL_ERROR \(a window above 2\^31-1\)",
        "§6.9.1 lets it be a connection error: no resets for an attacker (CVE-2025-8671)",
    ),
    Difference(
        r"WINDOW_UPDATE: GOAWAY PROTOCOL_ERROR "
        r"\(ProtocolError: Received frame with non-compliant data\)",
        r"fine",
        "an increment of 0 for a stream that ended is passed over with the frame",
        when=increments_by_nothing,
    ),
    Difference(
        r"WINDOW_UPDATE: GOAWAY PROTOCOL_ERROR "
        r"\(ProtocolError: Received frame with non-compliant data\)",
        r"fine",
        "§6.9: the reserved bit of an increment is ignored; hyperframe counts it",
        when=increments,
    ),
    Difference(
        r"(RST_STREAM|WINDOW_UPDATE): fine",
        r"GOAWAY PROTOCOL_ERROR \(a frame on an idle stream\)",
        "§6.4, §5.1: these frames on an idle stream are a connection error",
    ),
    Difference(
        r"CONTINUATION: (GOAWAY|RST) STREAM_CLOSED( \(StreamClosedError: \d+\))?",
        r"GOAWAY PROTOCOL_ERROR \(CONTINUATION without HEADERS\)",
        "§6.10: a connection error PROTOCOL_ERROR, whatever the stream",
    ),
    Difference(
        r"(DATA|HEADERS|CONTINUATION): GOAWAY PROTOCOL_ERROR \(StreamIDTooLowError: .*\)",
        r"GOAWAY STREAM_CLOSED \(a frame on a closed stream\)",
        "§5.1.1: an id that was passed over is closed; h2 tells how it was",
    ),
    Difference(
        r"type 10: GOAWAY FRAME_SIZE_ERROR \(FrameDataMissingError: .*\)",
        r"fine",
        "ALTSVC (RFC 7838): h2 parses it, to us it is an unknown frame",
    ),
    Difference(
        r"SETTINGS: GOAWAY FLOW_CONTROL_ERROR \(FlowControlError: .*\)",
        r"fine",
        "§6.9.2 changes windows of live streams; h2 counts ended ones, too",
        when=has_closed_streams,
    ),
    Difference(
        r"PUSH_PROMISE: fine",
        r"GOAWAY PROTOCOL_ERROR \(a client may not push\)",
        "§8.4: refused at once; h2 waits for the end of its header block",
    ),
    Difference(
        r"(HEADERS|CONTINUATION): (fine|RST PROTOCOL_ERROR)",
        r"RST REFUSED_STREAM",
        "our streams take turns, a frame each: more of them are still there than in h2's echo",
        when=answers_wait,
    ),
    Difference(
        r"(HEADERS|CONTINUATION): RST REFUSED_STREAM",
        r"fine|RST PROTOCOL_ERROR",
        "for the same reason fewer of them may be there",
        when=answers_wait,
    ),
    # Two mistakes in one frame: which one is named depends on what is read first.
    Difference(
        r".*: GOAWAY PROTOCOL_ERROR \(ProtocolError: Received frame with invalid header: .*\)",
        r"GOAWAY FRAME_SIZE_ERROR \(.*\)",
        "a frame on a wrong stream, and of a wrong length",
    ),
    Difference(
        r"(HEADERS|CONTINUATION): GOAWAY .* \((DenialOfServiceError: .*|.* content-length .*)\)",
        r"GOAWAY (STREAM_CLOSED|PROTOCOL_ERROR) \(.*stream.*\)",
        "a header block of a wrong stream, and one that h2 refuses as such",
    ),
    Difference(
        r"HEADERS: GOAWAY PROTOCOL_ERROR \(ProtocolError: Received frame with invalid padding.\)",
        r"GOAWAY STREAM_CLOSED \(.*stream.*\)",
        "padding that fills a frame which may not come at all",
    ),
    Difference(
        r"HEADERS: GOAWAY PROTOCOL_ERROR \(ProtocolError: Received frame with invalid padding.\)",
        r"GOAWAY FRAME_SIZE_ERROR \(HEADERS too short\)",
        "padding that leaves no room for the priority",
    ),
    Difference(
        r"HEADERS: GOAWAY FRAME_SIZE_ERROR "
        r"\(FrameDataMissingError: Frame data missing or invalid\)",
        r"GOAWAY PROTOCOL_ERROR \(more padding than payload\)",
        "no room for the priority, and more padding than payload",
    ),
    Difference(
        r".*: GOAWAY FRAME_SIZE_ERROR "
        r"\(FrameDataMissingError: Frame data missing or invalid\)",
        r"GOAWAY PROTOCOL_ERROR \((a client may not push|another frame within a header block)\)",
        "a frame that may not come, and of a wrong length",
    ),
]


# -- every frame, ours and h2's --------------------------------------------------------------------


def fight(program: list[Step], cuts: list[int], found: Path | None = None) -> None:
    """Run a program against h2; write what they disagree about to `found`."""
    duel = Duel(DIFFERENCES, cuts)
    try:
        duel.run(program)
    except BaseException as error:
        if found is not None:
            corpus.write(found, f"{type(error).__name__}: {error}".partition("\n")[0], duel.reads)
            error.add_note(f"{found} holds the input: move it to {CORPUS.name}/, add an entry to")
            error.add_note("its index.toml that says what is right, and mend what was wrong")
        raise


ONE = calls(1, 5, 0, True)
STREAM_ONE = calls(1, 5, 0, True, STREAMED)
CANCELLED: list[Step] = [
    ("request", ("new", 0), STREAMED, False, None, None),
    ("rst", ("used", 0), 8),
    ("data", ("used", 0), 5, True, None),
]


@given(program=PROGRAMS, cuts=CUTS)
# Heads from the block cache: one that no sink takes, stream ids with the reserved bit, even ones.
@example(program=STREAM_ONE * 6, cuts=[1])
@example(
    program=[
        *ONE * 5,
        ("request", ("reserved bit", 0), GRPC_FIELDS, False, None, None),
        *ONE * 2,
    ],
    cuts=[1],
)
@example(program=[*ONE * 5, ("request", ("even", 1), GRPC_FIELDS, False, None, None)], cuts=[1])
@example(program=calls(1, 10, 0, True, with_length(b"5")), cuts=[1])
@example(program=calls(1, 1, 0, True, with_length(b"0")), cuts=[1])
@example(program=unread(None, 3), cuts=[1])
@example(program=[*calls(3, 5, 16_000, True), *calls(2, 5, 16_000, True)], cuts=[1])
@example(program=[*ONE, ("settings", [(1, 0)], False), *ONE], cuts=[1])
@example(program=CANCELLED, cuts=[1])
@settings(EAGER, max_examples=250)
def test_h2_agrees(program: list[Step], cuts: list[int]) -> None:
    fight(program, cuts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_h2_agrees_in_a_campaign(tmp_path: Path) -> None:
    @given(program=PROGRAMS, cuts=CUTS)
    @settings(EAGER, max_examples=1_500)
    def campaign(program: list[Step], cuts: list[int]) -> None:
        fight(program, cuts, tmp_path / "found.hex")

    campaign()


# -- one input, read in other pieces ---------------------------------------------------------------

WIDE = Limits(streams_max=6, stream_window_bytes=4 << 20, ping_strikes_max=1_000)
BUSY = Limits(streams_max=50, ping_strikes_max=1_000)


def recorded(program: list[Step]) -> bytes:
    """All frames of a program; the layer above does nothing meanwhile."""
    script = Script()
    frames = [*script.start()]
    for step in program:
        frames += script.frames(step)
    return b"".join(frames)


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    pieces = []
    at = 0
    while at < len(data):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(data[at : at + size])
        at += size
    return pieces


def heard(reads: list[bytes], limits: Limits = WIDE) -> tuple[object, ...]:
    """What becomes of an input. Windows are given back once a read, so that those frames differ."""
    server = OurEcho(limits)
    output = b"".join(map(server.receive, reads))
    frames = [frame for frame in split_frames(output) if frame[3] != 8]
    answers = server.answer(3, batch=True) if not server.connection.closed else b""
    fault = server.connection.fault
    return server.records, server.log, frames, answers, fault and (fault.code, fault.reason)


@given(program=PROGRAMS, cuts=st.lists(st.integers(1, 20_000), min_size=1, max_size=4))
@settings(EAGER, max_examples=100)
def test_reads_may_be_cut_anywhere(program: list[Step], cuts: list[int]) -> None:
    data = recorded(program)
    expected = heard([data])
    assert heard(chopped(data, cuts)) == expected
    assert heard(chopped(data[:3_000], [1])) == heard([data[:3_000]])


def burst(count: int, size: int, apart: bool, fields: list[Pair]) -> list[Step]:
    """So many requests at once; `apart`: all heads come first, as nghttp2 sends them."""
    head = ("request", ("new", 0), fields, False, None, None)
    if not apart:
        return [head, ("data", ("sending", 0), size, True, None)] * count
    bodies: list[Step] = [("data", ("sending", count - 1), size, True, None)] * count
    return [head] * count + bodies


BURSTS = st.builds(
    burst, st.integers(1, 30), st.sampled_from([5, 0, 1, 200, 5_000]), st.booleans(),
    st.sampled_from([GRPC_FIELDS, GRPC_FIELDS, STREAMED, with_length(b"5"), with_length(b"4")]),
)  # fmt: skip


@given(
    parts=st.lists(st.one_of(BURSTS, BURSTS, PROGRAMS.map(lambda steps: steps[:3])), max_size=8),
    cuts=st.lists(st.integers(1, 20_000), min_size=1, max_size=4),
)
@settings(EAGER, max_examples=200)
@example(parts=[burst(3, 5, False, GRPC_FIELDS), burst(45, 5, True, GRPC_FIELDS)], cuts=[1])
@example(parts=[burst(3, 5, False, GRPC_FIELDS), burst(45, 5_000, False, GRPC_FIELDS)], cuts=[1])
def test_a_run_says_what_its_frames_say(parts: list[list[Step]], cuts: list[int]) -> None:
    """Frames that are alike are read many at once; byte by byte each is read alone."""
    data = recorded([step for part in parts for step in part])
    expected = heard(chopped(data, [7]), BUSY)
    assert heard([data], BUSY) == expected
    assert heard(chopped(data, cuts), BUSY) == expected


# -- windows ---------------------------------------------------------------------------------------


class Line:
    """An honest h2 client, and our server; what they send waits until it is carried over."""

    def __init__(self) -> None:
        config = H2Configuration(client_side=True, header_encoding=None)
        self.client = H2Connection(config)
        self.client.initiate_connection()
        self.server = OurEcho(LIMITS)
        self._to_client = bytearray(self.server.greeting)
        self._to_server = bytearray()
        self._arrived = bytearray()  # at the client, up to a frame that is not whole
        self.answers: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.unsent: dict[int, bytes] = {}
        self.expected: dict[int, bytes] = {}

    def carry(self, up: int | None = None, down: int | None = None) -> None:
        """Carry so many bytes to the server and to the client; None: all."""
        self._to_server += self.client.data_to_send()
        up = len(self._to_server) if up is None else up
        self._to_client += self.server.receive(bytes(self._to_server[:up]))
        del self._to_server[:up]
        assert self.server.connection.fault is None
        down = len(self._to_client) if down is None else down
        self._arrived += self._to_client[:down]
        del self._to_client[:down]
        found = []
        # A frame at a time: what h2 learns of frame sizes holds from the next read on.
        for frame in split_frames(bytes(self._arrived)):
            if len(frame) >= 9 and len(frame) == 9 + int.from_bytes(frame[:3], "big"):
                found += self.client.receive_data(frame)
                del self._arrived[: len(frame)]
        for event in found:
            if isinstance(event, DataReceived):
                self.answers[event.stream_id] += event.data
            elif isinstance(event, StreamEnded):
                self.finished.add(event.stream_id)
            assert not isinstance(event, StreamReset)

    def request(self, fields: list[tuple[bytes, bytes]], size: int) -> None:
        if self.client.open_outbound_streams >= LIMITS.streams_max:
            return
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, fields)
        self.unsent[stream_id] = bytes(size)
        self.answers[stream_id] = bytearray()
        self.expected[stream_id] = bytes(size)

    def send(self) -> None:
        """Send of every body what the windows allow."""
        for stream_id, body in list(self.unsent.items()):
            window = self.client.local_flow_control_window(stream_id)
            count = min(window, len(body), 16_384)
            ended = count == len(body)
            self.client.send_data(stream_id, body[:count], end_stream=ended)
            self.unsent[stream_id] = body[count:]
            if ended:
                del self.unsent[stream_id]

    def answer(self, extra: int, *, batch: bool) -> None:
        waiting = {key for key, record in self.server.records.items() if record.answer is None}
        self._to_client += self.server.answer(extra, batch=batch)
        for stream_id in waiting:
            if self.server.records[stream_id].answer is not None:
                self.expected[stream_id] = echo(self.expected[stream_id], extra)

    def open_window(self, increment: int, which: int) -> None:
        """Of the connection, or of one of its streams."""
        live = [stream_id for stream_id in self.answers if stream_id not in self.finished]
        stream_id = live[which % len(live)] if live and which else None
        self.client.increment_flow_control_window(increment, stream_id)

    def write(self, *, possible: bool) -> None:
        self.server.connection.writable = possible
        if possible:
            self.server.connection.flush()


@given(
    window=st.sampled_from([65_535, 0, 1, 1_000]),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("calls"), st.integers(1, 4), st.sampled_from([0, 16_000, 20_000])),
            st.tuples(
                st.just("request"), st.sampled_from([GRPC_FIELDS, STREAMED]),
                st.sampled_from([0, 5, 5, 16_384, 70_000]),
            ),
            st.just(("send",)),
            st.tuples(
                st.just("answer"), st.sampled_from([0, 10, 20_000, 200_000]), st.booleans()
            ),
            st.tuples(st.just("open"), st.sampled_from([1, 100, 30_000]), st.integers(0, 3)),
            st.tuples(
                st.just("settings"), st.sampled_from([0, 1, 1_000, 65_535, 300_000]),
                st.sampled_from([16_384, 20_000, 1 << 20]),
            ),
            st.tuples(st.just("carry"), st.integers(0, 40_000), st.integers(0, 40_000)),
            st.just(("carry", None, None)),
            st.tuples(st.just("write"), st.booleans()),
        ),
        min_size=8,
        max_size=50,
    )
)  # fmt: skip
@settings(EAGER, max_examples=150)
def test_windows_are_kept_and_everything_arrives(window: int, steps: list[Step]) -> None:
    line = Line()
    line.client.update_settings({4: window, 5: 16_384})
    line.carry()
    for kind, *rest in steps:
        if kind == "request":
            line.request(*rest)
        elif kind == "calls":
            for _ in range(rest[0]):
                line.request(GRPC_FIELDS, 5)
            line.send()
            line.carry(None, 0)
            line.answer(rest[1], batch=True)
        elif kind == "send":
            line.send()
        elif kind == "answer":
            line.answer(rest[0], batch=rest[1])
        elif kind == "open":
            line.open_window(*rest)
        elif kind == "settings":
            line.client.update_settings({4: rest[0], 5: rest[1]})
        elif kind == "write":
            line.write(possible=rest[0])
        else:
            line.carry(*rest)
    line.write(possible=True)
    line.client.update_settings({4: 1 << 20, 5: 16_384})
    line.client.increment_flow_control_window(4 << 20)
    for _ in range(20):
        line.send()
        line.carry()
        line.answer(0, batch=True)
    line.carry()
    line.carry()
    assert line.answers == line.expected
    assert line.finished == set(line.expected)
    connection = line.server.connection
    assert not connection.streams
    assert connection.pending_bytes == 0
    # At rest the client has all of its window but what is too little to be worth a frame.
    assert connection._window.left + connection._window.consumed == connection._window.size


# -- noise -----------------------------------------------------------------------------------------

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "delete", "insert", "repeat"]),
        st.integers(0, 100_000),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, mutations: list[tuple[str, int, int]], kept: int) -> bytes:
    """`data` with some bytes changed; the first `kept` stay."""
    noisy = bytearray(data)
    for how, where, value in mutations:
        if len(noisy) <= kept:
            break
        at = kept + where % (len(noisy) - kept)
        if how == "flip":
            noisy[at] ^= 1 << value % 8
        elif how == "delete":
            del noisy[at : at + value % 16 + 1]
        elif how == "insert":
            noisy[at:at] = bytes((value,)) * (value % 16 + 1)
        else:
            noisy[at:at] = noisy[at : at + 200]
    return bytes(noisy)


def survive(reads: list[bytes]) -> None:
    """Whatever comes: no exception, a GOAWAY where it ends, and no more memory than is bounded."""
    server = OurEcho(LIMITS)
    connection = server.connection
    output = b""
    for at, read in enumerate(reads):
        output += server.receive(read)
        if connection.closed:
            break
        assert len(connection._tail) < 9 + 16_384
        held = sum(map(len, connection._block or ()))
        assert held <= 4 * LIMITS.header_list_bytes_max
        assert len(connection.streams) <= LIMITS.streams_max
        assert len(connection._decoder.cache) <= 64
        if at % 3 == 2:
            output += server.answer(100, batch=at % 2 == 0)
    said = read_output(output)
    assert bool(said.goaway) == connection.closed == (connection.fault is not None)
    if said.goaway:
        kinds = [frame[3] for frame in split_frames(output)]
        # The layer above may give windows back after the end; else nothing follows.
        assert set(kinds[kinds.index(7) + 1 :]) <= {8}
        assert server.receive(b"more") == b""


@given(
    program=PEACEFUL_PROGRAMS, mutations=MUTATIONS, cuts=st.lists(st.integers(1, 4_000), min_size=1)
)
@settings(EAGER, max_examples=150)
def test_mutated_recordings_raise_nothing(
    program: list[Step], mutations: list[tuple[str, int, int]], cuts: list[int]
) -> None:
    survive(chopped(mutated(recorded(program), mutations, len(PREFACE) + 9), cuts))


@given(noise=st.binary(max_size=400), begins=st.sampled_from([b"", PREFACE, recorded([])]))
@settings(EAGER, max_examples=200)
def test_noise_raises_nothing(noise: bytes, begins: bytes) -> None:
    survive([begins + noise])
    survive(chopped(begins + noise, [7]))


# -- the corpus ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [[1 << 20], [1], [7, 2]], ids=["whole", "bytewise", "split"])
@pytest.mark.parametrize("case", corpus.load(CORPUS), ids=lambda case: case.name)
def test_corpus(case: corpus.Case, cuts: list[int]) -> None:
    server = OurEcho(LIMITS)
    output = b""
    for read in case.reads:
        output += b"".join(map(server.receive, chopped(read, cuts)))
        if not server.connection.closed:
            output += server.answer(0, batch=True)
    assert read_output(output).verdict == case.says
    assert sum(record.ended for record in server.records.values()) == case.whole
