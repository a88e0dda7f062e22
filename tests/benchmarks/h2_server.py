"""A gRPC server of a few lines on `h2`, whose answers a test chooses, to load with our client."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import h2.config
import h2.connection
import h2.events

from benchmarks.common.processes import Process, cores
from benchmarks.common.servers import Ports, Server

REPLY = b"\0\0\0\0\3abc"
GOOD, BAD, SILENT, RESET = "good", "bad", "silent", "reset"
Choice = Callable[[int], str]


class H2Server:
    """Serves on a free port, a thread for each connection; `choose` maps a call's number to what
    becomes of it. Every header list and every whole body that came is kept.
    """

    def __init__(self, choose: Choice = lambda _: GOOD, reply: bytes = REPLY) -> None:
        self.headers: list[list[tuple[str, str]]] = []
        self.bodies: set[bytes] = set()
        self._choose = choose
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Stop listening, and wait for the connections' ends. May be called twice."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(link,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, link: socket.socket) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        connection.ping(b"pingping")
        calls = 0
        bodies: dict[int, bytes] = {}
        with link:
            try:
                link.sendall(connection.data_to_send())
                while data := link.recv(65_536):
                    for event in connection.receive_data(data):
                        if isinstance(event, h2.events.RequestReceived):
                            self.headers.append(list(event.headers))
                        elif isinstance(event, h2.events.DataReceived):
                            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                            connection.acknowledge_received_data(
                                event.flow_controlled_length, event.stream_id
                            )
                        elif isinstance(event, h2.events.StreamEnded):
                            self.bodies.add(bodies.pop(event.stream_id))
                            self._answer(connection, event.stream_id, self._choose(calls))
                            calls += 1
                    link.sendall(connection.data_to_send())
            except OSError:
                return

    def _answer(self, connection: h2.connection.H2Connection, stream_id: int, what: str) -> None:
        head = [(":status", "200"), ("content-type", "application/grpc")]
        if what == GOOD:
            connection.send_headers(stream_id, head)
            connection.send_data(stream_id, self._reply)
            connection.send_headers(stream_id, [("grpc-status", "0")], end_stream=True)
        elif what == BAD:
            connection.send_headers(stream_id, [*head, ("grpc-status", "13")], end_stream=True)
        elif what == RESET:
            connection.reset_stream(stream_id, error_code=8)


@contextlib.contextmanager
def serving_h2(
    choose: Choice = lambda _: GOOD, reply: bytes = REPLY
) -> Iterator[tuple[H2Server, Server]]:
    """Serve in this process; the stand-in process is there for its CPU time only."""
    h2_server = H2Server(choose, reply)
    process = Process([sys.executable, "-c", "input()"], [cores().server])
    server = Server("h2", lambda: (process, Ports(grpc=h2_server.port)))
    server.start()
    server.reply_bytes = len(reply)
    try:
        yield h2_server, server
    finally:
        server.stop()
        h2_server.close()
