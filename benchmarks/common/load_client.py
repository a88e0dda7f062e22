"""The load client for what h2load cannot do: headers that vary per call, arrivals on a schedule.

A process of its own: `python -m benchmarks.common.load_client` reads one JSON command a line
and answers with one JSON line. Closed loop: each connection keeps so many calls open. Open loop:
the arrival times are fixed beforehand, and a latency counts from when a call *should* have been
sent, so that a server that stalls cannot stall the clock with it (no coordinated omission).
A command with `answers` (a file of float32, the values that answer each body of the scripts) has
every answer checked.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import frames

BUFFER_BYTES = 1 << 16
# A frame takes nine bytes at least: no more streams can end in one buffer.
ENDED_MAX = BUFFER_BYTES // frames.HEAD_BYTES
POLL_S = 0.05
LATE_S = 2.0  # how long after the last arrival an answer is waited for
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


class Script:
    """Requests encoded beforehand, as `frames.write_script` wrote them."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as source:
            self.data = memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
        self.offsets: list[int] = np.load(file.with_suffix(".npy")).tolist()
        self.count = len(self.offsets) - 1


class Connection:
    """One connection, and how far it is in its script."""

    __slots__ = (
        "array", "body_bytes", "buffer", "counts", "ended", "fill", "goal", "intended_ns",
        "owed", "resets", "script", "seen", "sent", "socket", "view", "wanted", "writing",
        "written",
    )  # fmt: skip

    def __init__(self, port: int, script: Script, body_bytes: int, ended: Any, wanted: Any) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(frames.OPENING)
        self.socket.setblocking(False)
        self.script, self.body_bytes = script, body_bytes
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.array = np.frombuffer(self.buffer, np.uint8)
        self.ended = ended
        self.wanted = wanted
        self.seen = np.zeros(script.count if len(wanted) else 0, np.uint8)
        self.counts = np.zeros(3, np.int64)
        self.counts[frames.Counts.WINDOW_BYTES] = frames.WINDOW_BYTES
        self.fill = 0
        self.owed = 0  # calls that are due, but the window or the script has no room
        self.sent = 0  # calls, of the script
        self.goal = self.written = 0  # bytes of the script: to be written, written
        self.writing = False  # the kernel's buffer was full
        self.intended_ns: list[int] = []  # by call, open loop only
        self.resets = 0  # streams that the server reset

    @property
    def exhausted(self) -> bool:
        """Whether its script has ended."""
        return self.sent == self.script.count

    def call(self, number: int) -> None:
        """Send so many more calls, as far as the window allows: whole ones.

        A body must fit into half of what the server opens its window to.
        """
        self.owed += number
        counts = self.counts
        room = int(counts[1]) // self.body_bytes
        number = min(self.owed, room, self.script.count - self.sent)
        if number:
            self.owed -= number
            self.sent += number
            counts[1] -= number * self.body_bytes
            self.goal = self.script.offsets[self.sent]
            if not self.writing:
                self.write()

    def write(self) -> None:
        """Write what is due."""
        with contextlib.suppress(BlockingIOError):
            self.written += self.socket.send(self.script.data[self.written : self.goal])
        self.writing = self.written < self.goal

    def read(self) -> int:
        """Read once; return how many calls ended: their ids lead in `ended`.

        Raises ConnectionError when the server goes away.
        """
        received = self.socket.recv_into(self.view[self.fill :])
        if not received:
            raise ConnectionError("the server closed a connection")
        self.fill += received
        done, found = frames.scan(
            self.array, self.fill, self.ended, self.counts, self.seen, self.wanted
        )
        if self.counts[2]:
            self._take_others(bytes(self.view[:done]))
        rest = self.fill - done
        if rest and done:
            self.buffer[:rest] = self.buffer[done : self.fill]
        self.fill = rest
        return found

    def _take_others(self, data: bytes) -> None:
        self.counts[2] = 0
        for kind, flags, payload in frames.walk(data):
            if kind == frames.SETTINGS and not flags & frames.ACK:
                self._reply(frames.frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.PING and not flags & frames.ACK:
                self._reply(frames.frame(frames.PING, frames.ACK, 0, payload))
            elif kind == frames.RST_STREAM and payload != frames.NO_ERROR:
                self.resets += 1
            elif kind == frames.GOAWAY:
                raise ConnectionError(f"the server goes away: {payload[:64]!r}")

    def _reply(self, data: bytes) -> None:
        # Between two requests only; what is due is written first.
        self.socket.setblocking(True)
        self.socket.sendall(self.script.data[self.written : self.goal])
        self.written, self.writing = self.goal, False
        self.socket.sendall(data)
        self.socket.setblocking(False)


class Load:
    """The connections of one run."""

    def __init__(self, command: dict[str, Any]) -> None:
        scripts = [Script(Path(file)) for file in command["scripts"]]
        ended = np.empty(ENDED_MAX, np.int64)
        wanted = np.empty((0, 0), np.uint32)
        if "answers" in command:
            wanted = np.load(command["answers"]).view(np.uint32)
        self.checked = len(wanted) > 0
        self.connections = [
            Connection(
                command["port"], scripts[i % len(scripts)], command["body_bytes"], ended, wanted
            )
            for i in range(command["connections"])
        ]
        self._by_fd = {c.socket.fileno(): c for c in self.connections}
        self._ended = ended
        self._poll = select.epoll()
        for number in self._by_fd:
            self._poll.register(number, _READ)

    def close(self) -> None:
        """Close every connection."""
        self._poll.close()
        for connection in self.connections:
            connection.socket.close()

    def send(self, connection: Connection, number: int) -> None:
        """Send so many more calls on a connection; what does not fit now, when it does."""
        connection.call(number)
        if connection.writing:
            self._poll.modify(connection.socket.fileno(), _READ | _WRITE)

    def events(self, timeout_s: float) -> Iterator[tuple[Connection, int]]:
        """Wait, read and write once; yield the connections that got replies, and how many."""
        for number, event in self._poll.poll(timeout_s):
            connection = self._by_fd[number]
            if event & _WRITE:
                connection.write()
                if not connection.writing:
                    self._poll.modify(number, _READ)
            if event & ~_WRITE:
                yield connection, connection.read()

    def counted(self, index: int) -> int:
        """Return the sum of one of the scanner's counters."""
        return sum(int(c.counts[index]) for c in self.connections)

    def verdicts(self) -> list[int]:
        """Return how many answers were unseen yet, right, wrong and cut."""
        seen = np.concatenate([c.seen[: c.sent] for c in self.connections])
        verdicts: list[int] = np.bincount(seen, minlength=4).tolist()
        return verdicts

    @property
    def resets(self) -> int:
        """How many streams the server has reset."""
        return sum(c.resets for c in self.connections)

    def ended_ids(self, found: int) -> list[int]:
        """Return the stream ids of the last read."""
        ids: list[int] = self._ended[:found].tolist()
        return ids


def closed_loop(command: dict[str, Any]) -> dict[str, Any]:
    """Keep `streams` calls open on each connection for `run_s`, after `warm_up_s`."""
    load = Load(command)
    try:
        for connection in load.connections:
            load.send(connection, command["streams"])
        _run_closed(load, command["warm_up_s"])
        cpu_start_s, start_s = time.process_time(), time.perf_counter()
        data_start = load.counted(frames.Counts.DATA_BYTES)
        replies = _run_closed(load, command["run_s"])
        wall_s = time.perf_counter() - start_s
        return {
            "replies": replies,
            "resets": load.resets,
            "data_bytes": load.counted(frames.Counts.DATA_BYTES) - data_start,
            "wall_s": wall_s,
            "client_share": (time.process_time() - cpu_start_s) / wall_s,
            "exhausted": any(c.exhausted for c in load.connections),
            "verdicts": load.verdicts(),
        }
    finally:
        load.close()


def _run_closed(load: Load, run_s: float) -> int:
    replies = 0
    end_s = time.perf_counter() + run_s
    while time.perf_counter() < end_s:
        for connection, found in load.events(POLL_S):
            replies += found
            load.send(connection, found)
            if connection.exhausted:
                return replies
    return replies


def open_loop(command: dict[str, Any]) -> dict[str, Any]:
    """Send at `rate_per_s` (Poisson) for `run_s`; return every latency after the warm-up, in µs.

    A call without an answer by the end counts with the time that it has waited.
    """
    random = np.random.default_rng(command["seed"])
    duration_s = command["warm_up_s"] + command["run_s"]
    count = int(command["rate_per_s"] * duration_s)
    gaps_s = random.exponential(1 / command["rate_per_s"], count)
    load = Load(command)
    try:
        # The first exchange of settings is no part of anybody's latency.
        settled_s = time.perf_counter() + 0.2
        while time.perf_counter() < settled_s:
            for _ in load.events(POLL_S):
                pass
        start_ns = time.perf_counter_ns() + 10_000_000
        arrivals = (np.cumsum(gaps_s) * 1e9).astype(np.int64) + start_ns
        latencies, latest_send_ns = _run_open(load, arrivals.tolist())
        from_ns = start_ns + command["warm_up_s"] * 1e9
        now_ns = time.perf_counter_ns()
        unanswered = [now_ns - due for c in load.connections for due in c.intended_ns if due > 0]
        kept = [waited for due, waited, _ in latencies if due >= from_ns]
        right = [w for due, w, mark in latencies if due >= from_ns and mark == frames.RIGHT]
        return {
            "latencies_us": [round(v / 1e3, 1) for v in kept + unanswered],
            "right_us": [round(v / 1e3, 1) for v in right],
            "verdicts": load.verdicts(),
            "offered": int((arrivals >= from_ns).sum()),
            "unanswered": len(unanswered),
            "late_send_us": latest_send_ns / 1e3,
            "data_bytes": load.counted(frames.Counts.DATA_BYTES),
            "replies": len(latencies),
            "longest_us": (now_ns - start_ns) / 1e3,
        }
    finally:
        load.close()


def _run_open(load: Load, arrivals: list[int]) -> tuple[list[tuple[int, int, int]], int]:
    """Return (intended time, latency, verdict) of every answer, and the p99 of how late we sent."""
    connections = load.connections
    latencies: list[tuple[int, int, int]] = []
    lateness: list[int] = []
    due = 0
    end_ns = arrivals[-1] + int(LATE_S * 1e9)
    clock = time.perf_counter_ns
    while len(latencies) < len(arrivals):
        now = clock()
        if now > end_ns:
            break
        while due < len(arrivals) and arrivals[due] <= now:
            connection = connections[due % len(connections)]
            connection.intended_ns.append(arrivals[due])
            load.send(connection, 1)
            lateness.append(now - arrivals[due])
            due += 1
        # Spinning: a sleep would wake up late.
        for connection, found in load.events(0):
            now = clock()
            for stream_id in load.ended_ids(found):
                call = stream_id >> 1
                intended = connection.intended_ns[call]
                mark = int(connection.seen[call]) if load.checked else frames.UNSEEN
                latencies.append((intended, now - intended, mark))
                connection.intended_ns[call] = -1
            load.send(connection, 0)
    return latencies, int(np.quantile(lateness, 0.99))


def main() -> None:
    """Answer commands until stdin ends."""
    loops = {"closed": closed_loop, "open": open_loop}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = loops[command["loop"]](command)
        except (OSError, ConnectionError) as error:
            answer = {"problem": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
