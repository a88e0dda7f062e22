"""A worker that is told to end: what it says, and in which order."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import h2.connection

from tests.server.processes.running import TIMEOUT_S
from tests.server.serving import start_worker
from tests.support.frame_factory import DATA, GOAWAY

SERVING, NOT_SERVING = b"\0\0\0\0\x02\x08\x01", b"\0\0\0\0\x02\x08\x02"


class Watcher:
    """An HTTP/2 client that watches the health of a server, and keeps what it hears in order.

    It reads frames by hand: h2 takes the first of the two GOAWAY of a graceful end for the last.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.link = socket.create_connection((host, int(port)), TIMEOUT_S)
        core = h2.connection.H2Connection()
        core.initiate_connection()
        headers = {
            ":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Watch",
            ":authority": address, "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        core.send_headers(1, list(headers.items()))
        core.send_data(1, b"\0\0\0\0\0", end_stream=True)
        self.link.sendall(core.data_to_send())
        self.heard: list[bytes | str] = []

    def hear(self, wanted: bytes | str) -> None:
        """Read until this has come."""
        while wanted not in self.heard:
            head = self._read(9)
            payload = self._read(int.from_bytes(head[:3], "big"))
            if head[3] == DATA:
                self.heard.append(payload)
            elif head[3] == GOAWAY:
                self.heard.append("GOAWAY")

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.link.recv(count - len(data))
            assert piece, f"it closed, after {self.heard}"
            data += piece
        return data


def is_ready(address: str) -> bool | None:
    """What a load balancer hears; None: nobody listens."""
    try:
        with urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=5) as answer:
            return bool(json.loads(answer.read())["ready"])
    except urllib.error.HTTPError:
        return False
    except OSError:
        return None


def test_watchers_hear_that_it_is_not_ready_before_they_are_asked_to_go(tmp_path: Path) -> None:
    with start_worker(tmp_path, drain_s=1.0) as worker:
        watcher = Watcher(worker.event("ready")["grpc"])
        with watcher.link:
            watcher.hear(SERVING)
            worker.process.send_signal(signal.SIGTERM)
            watcher.hear("GOAWAY")
            assert watcher.heard == [SERVING, NOT_SERVING, "GOAWAY"]
        assert worker.process.wait(TIMEOUT_S) == 0


def test_a_load_balancer_that_polls_has_time_to_hear_it(tmp_path: Path) -> None:
    with start_worker(tmp_path, unready_s=1.0) as worker:
        address = worker.event("ready")["http"]
        assert is_ready(address) is True
        worker.process.send_signal(signal.SIGTERM)
        end_s = time.monotonic() + TIMEOUT_S
        heard: list[bool | None] = [True]
        while heard[-1] is not None:
            assert time.monotonic() < end_s
            if (now := is_ready(address)) != heard[-1]:
                heard.append(now)
        assert heard == [True, False, None]
        assert worker.process.wait(TIMEOUT_S) == 0


def test_a_connection_that_grew_old_is_asked_to_go_and_its_calls_go_on(tmp_path: Path) -> None:
    with start_worker(tmp_path, drain_s=1.0, connection_age_s=0.1) as worker:
        watcher = Watcher(worker.event("ready")["grpc"])
        with watcher.link:
            watcher.hear("GOAWAY")
            assert watcher.heard == [SERVING, "GOAWAY"]
            worker.process.send_signal(signal.SIGTERM)
            watcher.hear(NOT_SERVING)
        assert worker.process.wait(TIMEOUT_S) == 0


def test_a_call_that_does_not_end_is_cut_off_at_the_deadline(tmp_path: Path) -> None:
    with start_worker(tmp_path, drain_s=0.5) as worker:
        watcher = Watcher(worker.event("ready")["grpc"])
        with watcher.link:
            watcher.hear(SERVING)
            assert worker.end() == 0
