"""What attacks over HTTP/1.1 are made with: raw sockets, and the process that they are made on."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import pytest

PATIENCE_S = 20.0  # how long a sign is waited for; it mostly comes within milliseconds


class Answer(NamedTuple):
    """One response, as a client without a library reads it."""

    status: int
    headers: dict[str, str]
    body: bytes


class HttpAttacker:
    """A TCP connection that says whatever it is told to."""

    def __init__(self, port: int, *, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:  # before connecting: the window is negotiated then
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self.rest = b""
        self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; False where the server closed before."""
        try:
            self.socket.sendall(data)
        except OSError:  # also where this side has been closed meanwhile
            return False
        return True

    def stuff(self, pieces: Iterable[bytes], stall_s: float = 0.5) -> int:
        """Send without ever reading, until the server closes or takes nothing for a while."""
        sent = 0
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if not select.select([], [self.socket], [], stall_s)[1]:
                    return sent
                try:
                    count = self.socket.send(view, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                except ConnectionError:
                    return sent
                view = view[count:]
                sent += count
        return sent

    def read(self) -> bool:
        """Read once; False when the server has ended."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        self.ended = self.ended or not data
        self.rest += data
        return not self.ended

    def answer(self) -> Answer | None:
        """Read one response; None where the connection ends before."""
        while b"\r\n\r\n" not in self.rest:
            if not self.read():
                return None
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        length = int(headers.get("content-length", "0"))
        while len(self.rest) < length:
            if not self.read():
                return None
        body, self.rest = self.rest[:length], self.rest[length:]
        return Answer(int(status.split()[1]), headers, body)

    def all_answers(self) -> list[Answer]:
        """Read responses until the server closes."""
        found = []
        while (one := self.answer()) is not None:
            found.append(one)
        return found

    def closed(self) -> bool:
        """Read until the server closes. TimeoutError when it does not."""
        while self.read():
            pass
        return True


class HonestHttp:
    """A client on a connection of its own that asks again and again while it is open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name="honest client")
        self._fault: BaseException | None = None
        self.calls = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._first.wait(PATIENCE_S)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None and self._fault is not None:
            raise self._fault

    def _run(self) -> None:
        try:
            client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
            with contextlib.closing(client):
                while not self._stop.wait(0.002) or self.calls < 2:
                    client.request("POST", "/echo", b"x" * 100)
                    response = client.getresponse()
                    assert (response.status, response.read()) == (200, b"x" * 100)
                    self.calls += 1
                    self._first.set()
        except BaseException as fault:  # noqa: BLE001 - raised again where the test sees it
            self._fault = fault
            self._first.set()


class HttpTarget:
    """The process under attack. `start` gives it a fresh server; `port` is that server's."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.support.attacked_http"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.port = 0

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
        without: Sequence[str] = (),
        inflated_bytes_max: int = 64 << 20,
        tls: tuple[str, str] | None = None,
        **limits: float,
    ) -> Self:
        """Begin anew. `limits` are HttpLimits'; `without` names defences that are no limit:
        `checks` of heads, `strict` parsing."""
        self.port = self._ask({
            "do": "start", "limits": limits, "without": list(without), "tls": tls,
            "inflated_bytes_max": inflated_bytes_max,
        })  # fmt: skip
        return self

    def connect(self, *, receive_bytes: int = 0) -> HttpAttacker:
        """A connection that has said nothing yet."""
        return HttpAttacker(self.port, receive_bytes=receive_bytes)

    def counters(self) -> dict[str, Any]:
        """What the server holds now."""
        found: dict[str, Any] = self._ask({"do": "counters"})
        return found

    def wait_until(self, name: str, at_least: int = 1) -> dict[str, Any]:
        """Wait for a counter (or an abuse counter) to reach a value; return all of them."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            now = self.counters()
            if now.get(name, now["abuse"].get(name, 0)) >= at_least:
                return now
            assert time.monotonic() < deadline, f"{name} does not reach {at_least}: {now}"

    def release(self) -> None:
        """Let waiting handlers go on."""
        self._ask({"do": "release"})

    def settled(self) -> dict[str, Any]:
        """Wait until it holds nothing any more. AssertionError if it keeps something."""
        now: dict[str, Any] = self._ask({"do": "settle", "timeout_s": PATIENCE_S})
        for name in (
            "live", "held_bytes", "connections", "open_connections", "running", "buffered_bytes",
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
def http_under_attack(target: HttpTarget) -> Iterator[HonestHttp]:
    """While the attack runs an honest client is answered; after it, everything is given back."""
    with HonestHttp(target.port) as honest:
        yield honest
    target.settled()


@pytest.fixture(scope="module")
def http_target() -> Iterator[HttpTarget]:
    """The process under attack; call `start` with the limits that the test is about."""
    target = HttpTarget()
    yield target
    target.close()
