"""What attacks are made with: raw sockets, and the process that they are made on.

No HTTP/2 library stands between a test and the wire: `FrameFactory` writes the frames, `struct`
reads what comes back.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from hpack import Decoder

from tests.support.frame_factory import (
    DATA,
    END_STREAM,
    GOAWAY,
    GRPC_FIELDS,
    HEADERS,
    PING,
    RST_STREAM,
    FrameFactory,
    Pair,
)

PATIENCE_S = 10.0  # how long a sign is waited for; it mostly comes within milliseconds


class Frame(NamedTuple):
    """One frame that the server sent."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Goaway(NamedTuple):
    """How a connection ended. (-1, "") where it was closed without a word."""

    code: int
    debug: str


CLOSED_SILENTLY = Goaway(-1, "")


def fields_for(method: str, *more: Pair) -> list[Pair]:
    """The head of a call of `/test.Service/<method>`."""
    path = b"/test.Service/" + method.encode()
    return [(name, path if name == b":path" else value) for name, value in GRPC_FIELDS] + [*more]


def message(data: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """`data` with gRPC's prefix, which may lie about it."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


class Attacker:
    """A TCP connection that speaks whatever it is told to.

    `frames` are those that came so far, in order; `ended` says that the server closed.
    """

    def __init__(self, port: int, *, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:  # before connecting: the window is negotiated then
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self.factory = FrameFactory()
        self.frames: list[Frame] = []
        self.ended = False
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def greet(self, settings: Mapping[int, int] | None = None) -> Self:
        """Send preface and SETTINGS."""
        self.send(self.factory.preface(settings))
        return self

    def send(self, data: bytes, *, read: bool = True) -> None:
        """Send all of it, or what the server takes before it closes; read meanwhile."""
        view = memoryview(data)
        deadline = time.monotonic() + PATIENCE_S
        while view and not self.ended:
            happened = self._poll(select.POLLOUT | (select.POLLIN if read else 0))
            assert time.monotonic() < deadline, "the server takes no more bytes"
            if happened & select.POLLIN:
                self._read()
            if happened & ~select.POLLIN and not self.ended:
                try:
                    view = view[self.socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except ConnectionError:
                    self.ended = True

    def stuff(self, pieces: Iterable[bytes]) -> int:
        """Send without ever reading, until the server closes; return how many pieces it took."""
        count = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                assert self._poll(select.POLLOUT), "the server takes no more bytes"
                try:
                    view = view[self.socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except ConnectionError:
                    return count
            count += 1
        return count

    def _poll(self, events: int, seconds: float = PATIENCE_S) -> int:
        """Wait for events of the socket; errors are always among them."""
        poll = select.poll()  # `select` takes no descriptor above 1,023
        poll.register(self.socket, events)
        return next((event for _, event in poll.poll(seconds * 1_000)), 0)

    def _read(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
        self._rest += data
        while len(self._rest) >= 9:
            length = int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < 9 + length:
                return
            kind, flags, stream_id = struct.unpack(">BBI", self._rest[3:9])
            self.frames.append(Frame(kind, flags, stream_id, self._rest[9 : 9 + length]))
            self._rest = self._rest[9 + length :]

    def read_some(self) -> None:
        """Wait for bytes, and read what is there."""
        assert self._poll(select.POLLIN), "nothing comes"
        self._read()

    def read_for(self, seconds: float) -> None:
        """Read what comes; return when the server closes or the time is over."""
        deadline = time.monotonic() + seconds
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            if self._poll(select.POLLIN, left):
                self._read()

    def wait_for(self, kind: int, stream_id: int = 0, *, flags: int = 0) -> Frame:
        """Read until such a frame is there, and return it. AssertionError if none comes."""
        deadline = time.monotonic() + PATIENCE_S
        seen = 0
        while True:
            for frame in self.frames[seen:]:
                if (frame.kind, frame.stream_id) == (kind, stream_id) and (
                    frame.flags & flags == flags
                ):
                    return frame
            seen = len(self.frames)
            left = deadline - time.monotonic()
            assert not self.ended, f"closed by {self.goaway()} while waiting for frame {kind}"
            assert left > 0, f"no frame {kind} on stream {stream_id} within {PATIENCE_S} s"
            if self._poll(select.POLLIN, left):
                self._read()

    def goaway(self) -> Goaway:
        """Read until the server closes; return the error that it named."""
        self.read_for(PATIENCE_S)
        assert self.ended, "the connection is still open"
        found = [frame.payload for frame in self.frames if frame.kind == GOAWAY]
        if not found:
            return CLOSED_SILENTLY
        return Goaway(int.from_bytes(found[-1][4:8], "big"), found[-1][8:].decode())

    def resets(self) -> dict[int, int]:
        """The streams that the server reset, and why."""
        return {
            frame.stream_id: int.from_bytes(frame.payload, "big")
            for frame in self.frames
            if frame.kind == RST_STREAM
        }

    def reset(self, stream_id: int) -> int:
        """Wait for RST_STREAM; return its code."""
        return int.from_bytes(self.wait_for(RST_STREAM, stream_id).payload, "big")

    def status(self, stream_id: int) -> int:
        """Wait for the end of a call; return its grpc-status, or minus the HTTP status."""
        block = self.wait_for(HEADERS, stream_id, flags=END_STREAM).payload
        fields = dict(Decoder().decode(block))
        return int(fields["grpc-status"] if "grpc-status" in fields else f"-{fields[':status']}")

    def body(self, stream_id: int) -> bytes:
        """What DATA came on a stream so far."""
        return b"".join(
            frame.payload
            for frame in self.frames
            if frame.kind == DATA and frame.stream_id == stream_id
        )

    def call(self, stream_id: int, data: bytes = b"still there?", method: str = "Method") -> int:
        """Make a unary call and wait for its status."""
        head = self.factory.headers(stream_id, fields_for(method))
        self.send(head + self.factory.data(stream_id, message(data), end_stream=True))
        return self.status(stream_id)

    def is_alive(self) -> bool:
        """Whether the server still answers here; by a SETTINGS frame, which is always allowed."""
        acks = sum(frame.kind == 4 and frame.flags & 1 for frame in self.frames)
        self.send(self.factory.settings())
        deadline = time.monotonic() + PATIENCE_S
        while not self.ended and time.monotonic() < deadline:
            if sum(frame.kind == 4 and frame.flags & 1 for frame in self.frames) > acks:
                return True
            if self._poll(select.POLLIN):
                self._read()
        return False


class Honest:
    """A client on a connection of its own that calls one call after another while it is open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._answered = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="honest client")
        self._fault: BaseException | None = None
        self.calls = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_answered(1)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(AssertionError):
            self.wait_answered(1)
        self._stop.set()
        self._thread.join()
        if kind is None and self._fault is not None:
            raise self._fault

    def wait_answered(self, count: int) -> None:
        """Wait for that many answers from now on."""
        with self._answered:
            wanted = self.calls + count
            done = self._answered.wait_for(
                lambda: self.calls >= wanted or self._fault is not None, PATIENCE_S
            )
        assert done, "the honest client waits in vain"

    def _run(self) -> None:
        try:
            with Attacker(self._port) as client:
                client.greet()
                # It gives no window back: this one lasts however many calls there will be.
                client.send(client.factory.window_update(0, 2**31 - 1 - 65_535))
                stream_id = 1
                while not self._stop.wait(0.002):
                    assert client.call(stream_id, b"x" * 100) == 0
                    client.frames.clear()
                    with self._answered:
                        self.calls += 1
                        self._answered.notify_all()
                    stream_id += 2
        except BaseException as fault:  # noqa: BLE001 - raised again where the test sees it
            with self._answered:
                self._fault = fault
                self._answered.notify_all()


class Target:
    """The process under attack. `start` gives it a fresh server; `port` is that server's."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.attacked_server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = 0
        self.pid = self._process.pid

    def _ask(self, command: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the attacked server is dead"
        return json.loads(line)

    def start(
        self,
        *,
        server_limits: Mapping[str, float] | None = None,
        budgets: Mapping[str, tuple[int, int, int]] | None = None,
        without: Iterable[str] = (),
        **limits: int,
    ) -> Self:
        """Begin anew. `limits` are `http2.limits.Limits`'; `budgets` replace some of BUDGETS.

        `without` names what is taken out of `tests.support.defences`.
        """
        self.port = self._ask({
            "do": "start", "limits": limits, "without": list(without),
            "server_limits": dict(server_limits or {}), "budgets": dict(budgets or {}),
        })  # fmt: skip
        return self

    def connect(self, *, receive_bytes: int = 0) -> Attacker:
        """A connection that has said nothing yet."""
        return Attacker(self.port, receive_bytes=receive_bytes)

    def greeted(self, settings: Mapping[int, int] | None = None) -> Attacker:
        """A connection after preface and SETTINGS."""
        return self.connect().greet(settings)

    def counters(self) -> dict[str, Any]:
        """What the server holds now."""
        found: dict[str, Any] = self._ask({"do": "counters"})
        return found

    def abuse(self, reason: str) -> int:
        """The counter of this kind of abuse."""
        return int(self.counters()["abuse"].get(reason, 0))

    def wait_until(self, name: str, at_least: int = 1) -> dict[str, Any]:
        """Wait for a counter (or an abuse counter) to reach a value; return all of them."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            now = self.counters()
            if now.get(name, now["abuse"].get(name, 0)) >= at_least:
                return now
            assert time.monotonic() < deadline, f"{name} does not reach {at_least}: {now}"

    def stuff_until(
        self,
        attacker: Attacker,
        pieces: Iterable[bytes],
        found: Callable[[dict[str, Any]], object],
    ) -> dict[str, Any]:
        """Let `attacker` send pieces that it reads no answer to, until the counters show it.

        However slow the machine is: each piece is sent only when the last one is dealt with.
        """
        now: dict[str, Any] = {}
        for piece in pieces:
            attacker.stuff([piece])
            now = self.counters()
            if found(now):
                return now
        raise AssertionError(f"all is sent, and this is all that comes of it: {now}")

    def wait_until_at_most(self, name: str, most: int) -> dict[str, Any]:
        """Wait for a counter to fall to a value; return all of them."""
        deadline = time.monotonic() + PATIENCE_S
        while (now := self.counters())[name] > most:
            assert time.monotonic() < deadline, f"{name} does not fall to {most}: {now}"
        return now

    def sweep(self, after_s: float) -> None:
        """Let the server look at every connection as if so much time had passed."""
        self._ask({"do": "sweep", "after_s": after_s})

    def release(self) -> None:
        """Let waiting handlers and the batch go on."""
        self._ask({"do": "release"})

    def settled(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until it holds nothing any more. AssertionError if it keeps something."""
        now: dict[str, Any] = self._ask({"do": "settle", "timeout_s": timeout_s})
        for name in (
            "live", "held_bytes", "connections", "open_connections", "running", "batched",
            "pending_bytes", "buffered_bytes", "streams",
        ):  # fmt: skip
            assert now[name] == 0, f"{name} is not back at zero: {now}"
        return now

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE_S) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def under_attack(target: Target) -> Iterator[Honest]:
    """While the attack runs an honest client is answered; after it, everything is given back.

    It waits for each of its answers as long as a test waits for anything, and no longer.
    """
    with Honest(target.port) as honest:
        yield honest
    target.settled()
    assert honest.calls > 1


def pings(count: int) -> bytes:
    """So many PING frames."""
    return FrameFactory().raw(PING, 0, 0, bytes(8)) * count
