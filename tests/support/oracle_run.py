"""One program of frames, run against our connection, a chopped twin of it, and h2.

`Duel.run` raises AssertionError where they disagree in a way that the table of differences does not
name. It compares after every frame; an h2 client, which is told what the h2 server understood,
receives what we send.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from h2 import events
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, H2Connection
from h2.exceptions import StreamClosedError

from server.wire.http2.limits import Limits
from tests.support.echo_servers import H2Echo, OurEcho, read_output
from tests.support.frame_factory import split_frames
from tests.support.frame_programs import ANSWER, CANCEL, EARLY, HOLD, Script, Step

# Small enough that programs meet them; pings are answered as often as h2 answers them.
LIMITS = Limits(
    streams_max=6,
    stream_window_bytes=40_000,
    connection_window_bytes=100_000,
    ping_strikes_max=1_000,
)
_TYPES = (
    "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY",
    "WINDOW_UPDATE", "CONTINUATION",
)  # fmt: skip
# The frames that open all windows at the end: all answers must arrive then.
_OPENING: list[Step] = [("settings", [(4, 1 << 20)], False), ("window", ("zero", 0), 1 << 20)]


@dataclass(frozen=True)
class Difference:
    """`h2` and `ours` are the verdicts on a frame, as regular expressions; `h2` begins with the
    frame's type, `ours` ends with the reason that we gave.

    `when`: it holds only where this says so of the frame. `goes_on`: both connections are in the
    same state afterwards, and the comparison goes on; else it ends here.
    """

    h2: str
    ours: str
    why: str
    when: Callable[[Duel, bytes], bool] = lambda duel, frame: True
    goes_on: bool = False


def ends_without_its_body(duel: Duel, frame: bytes) -> bool:
    """Whether the frame's request has a content-length, and ended before its body came."""
    record = duel.h2.records[stream_id_of(frame)]
    pairs = zip(record.fields[4::2], record.fields[5::2], strict=True)
    announced = [int(value) for name, value in pairs if name == b"content-length"]
    return record.ended and bool(announced) and len(record.body) < announced[0]


def has_closed_streams(duel: Duel, frame: bytes) -> bool:
    """Whether h2 still keeps streams that have ended."""
    return any(stream.closed for stream in duel.h2.connection.streams.values())


def was_reset(duel: Duel, frame: bytes) -> bool:
    """Whether the frame's stream was reset before, by one side or the other."""
    return stream_id_of(frame) in duel.resets


def was_not_reset(duel: Duel, frame: bytes) -> bool:
    """Whether the frame's stream goes on, or its request had ended before any reset."""
    record = duel.h2.records.get(stream_id_of(frame))
    return not was_reset(duel, frame) or (record is not None and record.ended)


def answers_wait(duel: Duel, frame: bytes) -> bool:
    """Whether the connection's window is spent: which answers are done depends on their turns."""
    connection = duel.ours.connection
    return connection.send_window == 0 and connection.pending_bytes > 0


def increments(duel: Duel, frame: bytes) -> bool:
    """Whether a WINDOW_UPDATE opens a window, its reserved bit aside."""
    return int.from_bytes(frame[9:], "big") & 2**31 - 1 > 0


def increments_by_nothing(duel: Duel, frame: bytes) -> bool:
    return not increments(duel, frame)


class DisagreementError(AssertionError):
    """The two say different things, and no row of the table allows it."""


class MirrorClient:
    """An h2 client that did what the h2 server saw being done, so that it can judge our answers."""

    def __init__(self) -> None:
        config = H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.connection = H2Connection(config)
        self.connection.initiate_connection()
        # It knows nothing of requests that were refused at once: their resets are no mistake.
        self.connection.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        self.bodies: dict[int, bytes] = {}
        self.finished: set[int] = set()

    def did(self, found: Sequence[events.Event]) -> None:
        for event in found:
            if isinstance(event, events.RequestReceived):
                # h2 cannot send an empty block.
                self.connection.send_headers(event.stream_id, event.headers or [(b"x", b"")])
            elif isinstance(event, events.StreamEnded):
                if not any(
                    isinstance(other, events.TrailersReceived)
                    and other.stream_id == event.stream_id
                    for other in found
                ):
                    self._send(event.stream_id, b"", end_stream=True)
            elif isinstance(event, events.TrailersReceived):
                try:
                    self.connection.send_headers(
                        event.stream_id, event.headers or [(b"x", b"")], end_stream=True
                    )
                except StreamClosedError:
                    assert event.stream_id not in self.bodies
            elif isinstance(event, events.DataReceived):
                padding = event.flow_controlled_length - len(event.data)
                self._send(event.stream_id, event.data, padding=padding - 1 if padding else None)
            elif isinstance(event, events.StreamReset) and event.remote_reset:
                try:
                    self.connection.reset_stream(event.stream_id)
                except StreamClosedError:  # our whole answer is there, h2's waits for a window
                    assert event.stream_id in self.finished
            elif isinstance(event, events.WindowUpdated):
                self.connection.increment_flow_control_window(event.delta, event.stream_id or None)
            elif isinstance(event, events.RemoteSettingsChanged):
                changed = event.changed_settings.items()
                self.connection.update_settings(
                    {key: setting.new_value for key, setting in changed}
                )
        self.connection.data_to_send()

    def _send(
        self, stream_id: int, data: bytes, *, end_stream: bool = False, padding: int | None = None
    ) -> None:
        self.connection.send_data(stream_id, data, end_stream=end_stream, pad_length=padding)

    def receive(self, data: bytes) -> None:
        # A frame at a time: what h2 learns of frame sizes holds from the next read on.
        found = [e for frame in split_frames(data) for e in self.connection.receive_data(frame)]
        for event in found:
            if isinstance(event, events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, events.StreamEnded):
                self.finished.add(event.stream_id)
        self.connection.data_to_send()


class Duel:
    """`reads` keeps what was sent, a string of bytes for each time before the layer above acted."""

    def __init__(self, table: Sequence[Difference], cuts: Sequence[int] = (1,)) -> None:
        self._table = table
        self._cuts = cuts
        self.ours = OurEcho(LIMITS)
        self.twin = OurEcho(LIMITS)
        self.h2 = H2Echo(LIMITS)
        self.client = MirrorClient()
        self.client.receive(self.ours.greeting)
        self.over = False
        self.used: Counter[str] = Counter()  # the rows of the table that were needed
        # Sent on streams that were refused or had ended: they count for the connection, and the
        # client's h2 does not know of them.
        self._uncounted_bytes = 0
        self.resets: set[int] = set()
        self.reads: list[bytes] = [b""]

    def run(self, program: Sequence[Step]) -> None:
        script = Script()
        for frame in script.start():
            self._frame(frame)
        for step in [*program, *_OPENING]:
            if self.over:
                break
            self._act(step)
            for frame in script.frames(step):
                try:
                    self._frame(frame)
                except BaseException as error:
                    error.add_note(f"at the frame {frame[:60].hex(' ', -4)}")
                    raise
                if self.over:
                    break
        if not self.over:
            self._act((HOLD, False))
            self._act((ANSWER, 0, False))
            self._check_answers()

    def _act(self, step: Step) -> None:
        """Let the layers above act, if the step says so."""
        kind, *rest = step
        if kind == ANSWER:
            output = self.ours.answer(rest[0], batch=rest[1])
            assert self.twin.answer(rest[0], batch=rest[1]) == output
            theirs = self.h2.answer(rest[0])
        elif kind == HOLD:
            output = self.ours.hold(on=rest[0])
            assert self.twin.hold(on=rest[0]) == output
            self.h2.hold(on=rest[0])
            theirs = b""
        elif kind in {EARLY, CANCEL} and self.ours.unfinished:
            stream_id = self.ours.unfinished[rest[0] % len(self.ours.unfinished)]
            assert stream_id in self.h2.records
            name = "answer_early" if kind == EARLY else "cancel"
            output = getattr(self.ours, name)(stream_id)
            assert getattr(self.twin, name)(stream_id) == output
            theirs = getattr(self.h2, name)(stream_id)
        else:
            return
        self.reads.append(b"")
        resets = read_output(output).resets
        assert resets == read_output(theirs).resets
        self.resets |= resets.keys()
        self.client.receive(output)
        self._check_progress()

    def _frame(self, frame: bytes) -> None:
        self.reads[-1] += frame
        allowed = self._allowed(frame)
        if allowed is None and _type_name(frame) == "DATA":
            self._uncounted_bytes += len(frame) - 9
        output = self.ours.receive(frame)
        assert b"".join(self.twin.receive(piece) for piece in self._pieces(frame)) == output
        assert self.twin.records == self.ours.records
        assert self.twin.log == self.ours.log
        theirs, found = self.h2.receive(frame)
        said, expected = read_output(output), read_output(theirs)
        if allowed is not None:
            assert (said.goaway == "FLOW_CONTROL_ERROR") == (len(frame) - 9 > allowed)
        fault = self.ours.connection.fault
        verdict = said.verdict + (f" ({fault.reason})" if fault else "")
        assert (fault is not None) == self.ours.connection.closed == bool(said.goaway)
        if said.verdict != expected.verdict:
            self._differ(frame, expected.verdict, verdict)
        self.resets |= said.resets.keys()
        if _type_name(frame) == "RST_STREAM" and stream_id_of(frame) in self.h2.records:
            self.resets.add(stream_id_of(frame))
        self.over = self.over or bool(said.goaway or expected.goaway)
        if not self.over:
            # What is refused at once counts among a client's open streams: it never opened that.
            known = self.h2.records.keys() | {0, None}
            self.client.did([e for e in found if getattr(e, "stream_id", None) in known])
        if not expected.goaway:
            self.client.receive(output)
        self.over = self.over or _type_name(frame) == "GOAWAY"  # after it h2 takes nothing
        if not self.over:
            if said.acks != expected.acks:
                raise DisagreementError(f"acks: h2 {expected.acks}, ours {said.acks}")
            self._compare_records()
            self._check_progress()

    def _allowed(self, frame: bytes) -> int | None:
        """How much a client may send on the stream of this DATA frame; None where none may come."""
        stream_id = stream_id_of(frame)
        record = self.h2.records.get(stream_id)
        live = record is not None and not record.ended and not record.gone
        if _type_name(frame) != "DATA" or not live or len(frame) > 9 + 16_384:
            return None
        client = self.client.connection
        left: int = client.outbound_flow_control_window - self._uncounted_bytes
        return min(client.local_flow_control_window(stream_id), left)

    def _pieces(self, frame: bytes) -> list[bytes]:
        pieces = []
        at = turn = 0
        while at < len(frame):
            # A long frame byte by byte takes long and shows little.
            step = max(self._cuts[turn % len(self._cuts)], len(frame) // 100)
            pieces.append(frame[at : at + step])
            at += step
            turn += 1
        return pieces

    def _differ(self, frame: bytes, theirs: str, ours: str) -> None:
        theirs = f"{_type_name(frame)}: {theirs}"
        if self.h2.fault is not None:
            theirs += f" ({type(self.h2.fault).__name__}: {self.h2.fault})"
        for row in self._table:
            if (
                re.fullmatch(row.h2, theirs)
                and re.fullmatch(row.ours, ours)
                and row.when(self, frame)
            ):
                self.used[row.why] += 1
                self.over = not row.goes_on
                return
        raise DisagreementError(f"h2: {theirs}; ours: {ours}")

    def _compare_records(self) -> None:
        ours, theirs = self.ours.records, self.h2.records
        for stream_id, record in theirs.items():
            mine = ours.get(stream_id)
            if mine is None:  # its head waits for a body, or was reset before that came
                assert not record.ended, f"stream {stream_id} was not delivered"
                assert not record.body, f"stream {stream_id} has a body"
                continue
            if mine.too_large:  # by the number of its fields, which h2 does not limit
                count = len(record.fields[4:]) // 2
                assert count + 4 > LIMITS.header_fields_max
                self.over = True
                return
            if mine.answer is not None:
                continue  # the two take turns in another way: one may be done, and the other not
            if mine.gone or record.gone:
                assert mine.gone == record.gone, f"stream {stream_id} is gone for one only"
                continue
            assert mine == record, f"stream {stream_id}: h2 {record}, ours {mine}"
        assert set(ours) <= set(theirs), "we delivered what h2 did not"

    def _check_progress(self) -> None:
        """What waits waits for a window: for the stream's or for the connection's."""
        for stream_id, record in self.ours.records.items():
            if record.answer is None or record.gone or stream_id in self.client.finished:
                continue
            assert self.client.connection.remote_flow_control_window(stream_id) <= 0

    def _check_answers(self) -> None:
        for stream_id, record in self.ours.records.items():
            if record.answer is None or record.gone:
                continue
            assert self.client.bodies.get(stream_id, b"") == record.answer
            assert stream_id in self.client.finished
        connection = self.ours.connection
        assert not connection.blocked
        # What was received is given back, but for what is too little to be worth a frame.
        assert connection._window.left + connection._window.consumed == connection._window.size
        assert self.ours.connection.pending_bytes == 0


def _type_name(frame: bytes) -> str:
    return _TYPES[frame[3]] if frame[3] < len(_TYPES) else f"type {frame[3]}"


def stream_id_of(frame: bytes) -> int:
    return int.from_bytes(frame[5:9], "big") & 2**31 - 1
