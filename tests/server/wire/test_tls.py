"""TLS as openssl, grpcio and curl meet it, and what a handshake that never ends can do."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from server.wire import grpcio
from server.wire.http1.limits import HttpLimits
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes
from server.wire.tls import H2, HTTP1, TlsFiles
from tests.support.attacked_server import Services
from tests.support.threaded_server import PATIENCE_S, LoopThread, ThreadedServer, unary
from tests.support.tls import Certificates

ROW = pytest.mark.wire("B2-25")
HANDSHAKE_TIMEOUT_S = 0.3


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[ThreadedServer]:
    with ThreadedServer(certificates.files()) as running:
        yield running


@pytest.fixture(scope="module")
def rsa_server(certificates: Certificates) -> Iterator[ThreadedServer]:
    """With a key that the old suites could be used with."""
    with ThreadedServer(certificates.files("server-rsa")) as running:
        yield running


@pytest.fixture(scope="module")
def mutual_server(certificates: Certificates) -> Iterator[ThreadedServer]:
    with ThreadedServer(certificates.files(mutual=True)) as running:
        yield running


@pytest.fixture
def stalled_server(certificates: Certificates) -> Iterator[Callable[..., ThreadedServer]]:
    """A server that waits for handshakes a short time only."""
    with contextlib.ExitStack() as stack:

        def start(timeout_s: float = HANDSHAKE_TIMEOUT_S, **limits: Any) -> ThreadedServer:
            files = certificates.files()
            return stack.enter_context(
                ThreadedServer(files, tls_handshake_timeout_s=timeout_s, **limits)
            )

        yield start


class Said:
    """What `openssl s_client` said of one connection.

    Which alert it was sent is no part of it: uvloop closes a handshake that failed without one.
    """

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.text = (done.stdout + done.stderr).decode(errors="replace")
        self.failed = done.returncode != 0

    def field(self, pattern: str) -> str:
        match = re.search(pattern, self.text)
        return match[1] if match else ""

    @property
    def cipher(self) -> str:
        return self.field(r"Cipher is (\S+)")

    @property
    def version(self) -> str:
        return self.field(r"New, (\S+), Cipher")

    @property
    def alpn(self) -> str:
        return self.field(r"ALPN protocol: (\S+)")


def s_client(port: int, *arguments: str | Path, alpn: str | None = "h2", typed: str = "") -> Said:
    """Connect and type `typed` (nothing: close after the handshake)."""
    offer = [] if alpn is None else ["-alpn", alpn]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *offer]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        input=typed.encode(), capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return Said(done)


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.002)


def counted(server: ThreadedServer, reason: str, more_than: int) -> None:
    """Wait until one more of a reason is counted."""
    until(lambda: server.abuse.get(reason, 0) > more_than, f"{reason} in {server.abuse}")


# The s_client matrix.


@ROW
@pytest.mark.parametrize(("flag", "name"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_b2_25_tls_1_2_and_1_3_are_spoken(
    server: ThreadedServer, certificates: Certificates, flag: str, name: str
) -> None:
    said = s_client(
        server.port, flag, "-verify_return_error", "-CAfile", certificates.cert("ca"),
        "-verify_ip", "127.0.0.1",
    )  # fmt: skip
    assert not said.failed, said.text
    assert (said.version, said.alpn) == (name, "h2")
    assert "Compression: NONE" in said.text


@ROW
@pytest.mark.parametrize("flag", ["-tls1", "-tls1_1"])
def test_b2_25_older_versions_are_refused(server: ThreadedServer, flag: str) -> None:
    before = server.abuse.get("tls_failed", 0)
    said = s_client(server.port, flag, "-cipher", "DEFAULT@SECLEVEL=0")
    assert said.failed, said.text
    counted(server, "tls_failed", before)


@ROW
@pytest.mark.parametrize(
    "cipher",
    [
        "ECDHE-RSA-AES128-GCM-SHA256",  # RFC 9113 §9.2.2: every implementation has this one
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-RSA-CHACHA20-POLY1305",
    ],
)
def test_b2_25_tls_1_2_has_the_suites_that_http2_allows(
    rsa_server: ThreadedServer, cipher: str
) -> None:
    said = s_client(rsa_server.port, "-tls1_2", "-cipher", cipher)
    assert (said.failed, said.cipher) == (False, cipher), said.text


@ROW
@pytest.mark.parametrize(
    "cipher",
    [
        "ECDHE-RSA-AES128-SHA",  # CBC
        "ECDHE-RSA-AES256-SHA384",
        "AES128-GCM-SHA256",  # no forward secrecy
        "AES256-SHA",
        "DHE-RSA-AES128-GCM-SHA256",
    ],
)
def test_b2_25_tls_1_2_has_no_suite_that_http2_blocks(
    rsa_server: ThreadedServer, cipher: str
) -> None:
    before = rsa_server.abuse.get("tls_failed", 0)
    said = s_client(rsa_server.port, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert said.failed, said.text
    counted(rsa_server, "tls_failed", before)  # by the server: the client would have spoken it


@ROW
def test_b2_25_renegotiation_is_refused(server: ThreadedServer) -> None:
    said = s_client(server.port, "-tls1_2", typed="R\n")
    assert "RENEGOTIATING" in said.text
    assert said.failed
    assert "no renegotiation" in said.text


@ROW
@pytest.mark.parametrize("alpn", [None, "http/1.1", "grpc-exp"])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_b2_25_without_h2_a_grpc_connection_is_closed(
    server: ThreadedServer, alpn: str | None, version: str
) -> None:
    before = server.abuse.get("tls_without_h2", 0)
    # Were it open, s_client would wait for what the server says until the test's patience ends.
    s_client(server.port, version, "-ign_eof", alpn=alpn, typed="GET / HTTP/1.1\n")
    counted(server, "tls_without_h2", before)


@ROW
def test_b2_25_h2_is_chosen_from_what_is_offered(server: ThreadedServer) -> None:
    assert s_client(server.port, alpn="http/1.1,h2").alpn == "h2"


@ROW
def test_b2_25_plain_bytes_on_a_tls_port_are_a_failed_handshake(server: ThreadedServer) -> None:
    before = server.abuse.get("tls_failed", 0)
    with pytest.raises(grpc.RpcError):
        unary(server.port)
    counted(server, "tls_failed", before)


@ROW
def test_b2_25_tls_on_a_plain_port_is_no_preface() -> None:
    with ThreadedServer() as plain:
        assert s_client(plain.port).failed
        assert unary(plain.port) == b"hello"


# Clients' certificates.


@ROW
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("client", [None, "stranger"])
def test_b2_25_with_a_client_ca_a_client_needs_its_certificate(
    mutual_server: ThreadedServer,
    certificates: Certificates,
    version: str,
    client: str | None,
) -> None:
    before = mutual_server.abuse.get("tls_failed", 0)
    mine: list[str | Path] = []
    if client is not None:
        mine = ["-cert", certificates.cert(client), "-key", certificates.key(client)]
    # In TLS 1.3 the client is done before the server has looked: it hears of it when it reads,
    # and would read until the test's patience ends.
    assert s_client(mutual_server.port, version, "-ign_eof", *mine).failed
    counted(mutual_server, "tls_failed", before)


@ROW
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_b2_25_the_right_certificate_is_let_in(
    mutual_server: ThreadedServer, certificates: Certificates, version: str
) -> None:
    mine = ["-cert", certificates.cert("client"), "-key", certificates.key("client")]
    said = s_client(mutual_server.port, version, *mine)
    assert not said.failed, said.text
    assert unary(mutual_server.port, certificates.credentials("client")) == b"hello"


@ROW
@pytest.mark.parametrize("client", [None, "stranger"])
def test_b2_25_grpcio_without_the_right_certificate_gets_no_answer(
    mutual_server: ThreadedServer, certificates: Certificates, client: str | None
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(mutual_server.port, certificates.credentials(client))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# Calls.


@ROW
@pytest.mark.parametrize("size", [0, 5, 100_000, 3_000_000])
def test_b2_25_calls_are_answered_over_tls(
    server: ThreadedServer, certificates: Certificates, size: int
) -> None:
    assert unary(server.port, certificates.credentials(), bytes(size)) == bytes(size)


@ROW
@pytest.mark.parametrize("mutual", [False, True])
def test_b2_25_the_reference_transport_speaks_tls_too(
    certificates: Certificates, mutual: bool
) -> None:
    thread = LoopThread()

    async def start() -> grpcio.GrpcServer:
        reference = grpcio.GrpcServer(Services().table())
        await reference.start("127.0.0.1", 0, certificates.files(mutual=mutual))
        return reference

    # grpc.aio's poller belongs to the first loop that it meets, so this one makes no other use.
    reference = thread.run(start())
    try:
        with contextlib.nullcontext() if not mutual else pytest.raises(grpc.RpcError):
            assert unary(reference.port, certificates.credentials()) == b"hello"
        assert unary(reference.port, certificates.credentials("client")) == b"hello"
    finally:
        thread.run(reference.drain(0))
        thread.close()


# Handshakes that never end.


def client_hello() -> bytes:
    """The first bytes of a client that means well."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols([H2])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(PATIENCE_S)
    return client


def is_closed(client: socket.socket) -> bool:
    """Read until the server closes; False when it does not."""
    try:
        while client.recv(65_536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


@ROW
@pytest.mark.parametrize("sent", ["nothing", "half", "all_but_the_end", "drip"])
def test_b2_25_a_stalled_handshake_is_ended(
    stalled_server: Callable[..., ThreadedServer], certificates: Certificates, sent: str
) -> None:
    server = stalled_server()
    hello = client_hello()
    began = time.monotonic()
    with connect(server.port) as client:
        if sent == "half":
            client.sendall(hello[: len(hello) // 2])
        elif sent == "all_but_the_end":  # the server has answered, and waits for our Finished
            client.sendall(hello)
        # Others are answered meanwhile.
        assert unary(server.port, certificates.credentials()) == b"hello"
        if sent == "drip":  # the time is of the whole handshake, not of each byte
            client.setblocking(False)
            at = 0
            with contextlib.suppress(ConnectionError):
                while server.abuse.get("tls_timeout", 0) == 0 and at < len(hello) - 1:
                    client.send(hello[at : at + 1])
                    at += 1
                    time.sleep(HANDSHAKE_TIMEOUT_S / 50)
            client.settimeout(PATIENCE_S)
        assert is_closed(client)
        assert time.monotonic() - began >= HANDSHAKE_TIMEOUT_S
        counted(server, "tls_timeout", 0)
        until(lambda: server.open_connections == 0, "no connection is left")
        assert server.abuse == {"tls_timeout": 1}


@ROW
def test_b2_25_a_client_that_leaves_in_its_handshake_leaves_nothing(
    stalled_server: Callable[..., ThreadedServer],
) -> None:
    server = stalled_server(timeout_s=60.0)
    hello = client_hello()
    for stop in (0, len(hello) // 2, len(hello)):
        with connect(server.port) as client:
            client.sendall(hello[:stop])
            until(lambda: server.open_connections == 1, "it is counted")
        until(lambda: server.open_connections == 0, f"after {stop} bytes nothing is left")


@ROW
def test_b2_25_stalled_handshakes_count_as_connections(
    stalled_server: Callable[..., ThreadedServer], certificates: Certificates
) -> None:
    # Long enough for all of them to be open at once on a busy machine.
    server = stalled_server(timeout_s=2.0, connections_max=50)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server.port)) for _ in range(50)]
        until(lambda: server.open_connections == 50, "all are counted")
        with connect(server.port) as one_more:
            assert is_closed(one_more)
        assert server.abuse == {"connections": 1}
        assert all(map(is_closed, clients))
    until(lambda: server.open_connections == 0, "no connection is left")
    assert server.abuse == {"connections": 1, "tls_timeout": 50}
    assert unary(server.port, certificates.credentials()) == b"hello"


@ROW
def test_b2_25_a_drain_does_not_wait_for_stalled_handshakes_longer_than_their_time(
    stalled_server: Callable[..., ThreadedServer],
) -> None:
    server = stalled_server()
    with connect(server.port) as client:
        until(lambda: server.open_connections == 1, "it is counted")
        server.thread.run(server.server.drain(5.0))
        assert is_closed(client)
        assert server.abuse == {"tls_timeout": 1}


# The REST port.


class RestServer:
    """Our HTTP/1.1 server with one route. Use in a `with` block."""

    def __init__(self, files: TlsFiles) -> None:
        self.thread = LoopThread()
        self.thread.run(self._start(files))
        self.port = self.server.port

    async def _start(self, files: TlsFiles) -> None:
        routes = Routes()
        routes.add("GET", "/hello", self._hello)
        self.server = HttpServer(routes, HttpLimits(tls_handshake_timeout_s=HANDSHAKE_TIMEOUT_S))
        await self.server.start("127.0.0.1", 0, files.context(HTTP1))

    async def _hello(self, _: Request) -> Response:
        return Response(200, b"hello", "text/plain")

    @property
    def abuse(self) -> dict[str, int]:
        found: dict[str, int] = self.thread.call(dict, self.server.abuse)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.run(self.server.drain(0))
        self.thread.close()


@pytest.fixture(scope="module")
def rest(certificates: Certificates) -> Iterator[RestServer]:
    with RestServer(certificates.files()) as running:
        yield running


def hello(rest: RestServer, certificates: Certificates) -> bytes:
    context = ssl.create_default_context(cafile=certificates.cert("ca"))
    with urllib.request.urlopen(f"https://localhost:{rest.port}/hello", context=context) as answer:
        said: bytes = answer.read()
        return said


@ROW
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(None, ""), ("http/1.1", "http/1.1"), ("h2,http/1.1", "http/1.1"), ("h2", "")],
)
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_b2_25_the_rest_port_speaks_http1(
    rest: RestServer, certificates: Certificates, version: str, offered: str | None, chosen: str
) -> None:
    said = s_client(
        rest.port, version, "-ign_eof", alpn=offered,
        typed="GET /hello HTTP/1.1\nHost: x\nConnection: close\n\n",
    )  # fmt: skip
    assert said.alpn == chosen
    assert "HTTP/1.1 " in said.text  # an answer, whatever it says of bare line feeds
    assert hello(rest, certificates) == b"hello"


@ROW
def test_b2_25_stalled_and_failed_handshakes_on_the_rest_port_are_ended(
    rest: RestServer, certificates: Certificates
) -> None:
    with connect(rest.port) as silent, connect(rest.port) as half, connect(rest.port) as plain:
        half.sendall(client_hello()[:50])
        plain.sendall(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert hello(rest, certificates) == b"hello"
        assert all(map(is_closed, (silent, half, plain)))
    until(lambda: rest.server.open_connections == 0, "no connection is left")
    assert rest.abuse["tls_timeout"] == 2
    assert rest.abuse["tls_failed"] == 1
