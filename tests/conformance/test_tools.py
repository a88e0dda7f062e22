"""Clients that nobody of ours wrote: curl, nghttp and h2load (nghttp2's) on the gRPC port."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.attacker import message
from tests.support.threaded_server import PATIENCE_S, ThreadedServer
from tests.support.tls import Certificates

GRPC = ("-H", "content-type: application/grpc", "-H", "te: trailers")
TOOLS = ("curl", "nghttp", "h2load", "openssl")
pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS),
    reason=f"needs {', '.join(TOOLS)}: scripts/bootstrap.sh installs them",
)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedServer]:
    with ThreadedServer() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def body(tmp_path: Path) -> Path:
    """One message, framed by hand."""
    path = tmp_path / "body"
    path.write_bytes(message(b"hello"))
    return path


def run(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, timeout=PATIENCE_S, check=False
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, text
    return text


def url(server: ThreadedServer, method: str = "Method", scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.port}/test.Service/{method}"


# curl.


def curl(where: str, body: Path, *arguments: str | Path) -> tuple[list[str], bytes]:
    """Post a body; return the lines of head and trailers, and the body that came."""
    head, answer = body.with_suffix(".head"), body.with_suffix(".answer")
    run(
        "curl", "-sS", *GRPC, "--data-binary", f"@{body}", "-D", head, "-o", answer, *arguments,
        where,
    )  # fmt: skip
    return head.read_text().split("\n"), answer.read_bytes()


def stripped(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines]


def test_curl_gets_message_and_trailers(server: ThreadedServer, body: Path) -> None:
    lines, answer = curl(url(server), body, "--http2-prior-knowledge")
    assert stripped(lines) == [
        "HTTP/2 200", "content-type: application/grpc", "", "grpc-status: 0", "",
    ]  # fmt: skip
    assert answer == message(b"hello")


@pytest.mark.parametrize(("method", "status"), [("Nothing", 12), ("Big", 13)])
def test_curl_gets_an_error_as_trailers_only(
    server: ThreadedServer, tmp_path: Path, method: str, status: int
) -> None:
    body = tmp_path / "body"
    # An unknown method is answered at its head, and what curl still sends is refused by RST_STREAM
    # with NO_ERROR (as gRPC has it), which curl calls an error: so there is no more.
    body.write_bytes(b"" if method == "Nothing" else message(b"no number"))
    lines, answer = curl(url(server, method), body, "--http2-prior-knowledge")
    head = stripped(lines)
    assert head[0] == "HTTP/2 200"
    assert head.count("") == 2  # the end of the head, and of the file: no trailers of their own
    assert "content-type: application/grpc" in head
    assert f"grpc-status: {status}" in head
    assert answer == b""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("-X", "POST", "-H", "content-type: text/plain"), 415), (("-X", "GET"), 405)],
    ids=["content_type", "method"],
)
def test_curl_gets_http_statuses_for_what_is_no_grpc(
    server: ThreadedServer, arguments: tuple[str, ...], status: int
) -> None:
    command = ["curl", "-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}"]
    assert run(*command, *arguments, url(server)) == str(status)


def test_curl_posts_a_large_message(server: ThreadedServer, tmp_path: Path) -> None:
    body = tmp_path / "large"
    body.write_bytes(message(bytes(8 << 20)))
    _, answer = curl(url(server), body, "--http2-prior-knowledge")
    assert answer == body.read_bytes()


def test_curl_over_tls_needs_no_prior_knowledge(certificates: Certificates, body: Path) -> None:
    with ThreadedServer(certificates.files(mutual=True)) as server:
        mine = ["--cert", certificates.cert("client"), "--key", certificates.key("client")]
        authority = ["--cacert", certificates.cert("ca")]
        lines, answer = curl(url(server, scheme="https"), body, *authority, *mine)
        assert stripped(lines)[0] == "HTTP/2 200"
        assert answer == message(b"hello")
        refused = subprocess.run(
            ["curl", "-sS", *map(str, authority), url(server, scheme="https")],
            capture_output=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert refused.returncode != 0


# nghttp.


def nghttp(where: str, body: Path | None, *arguments: str) -> str:
    posted = [] if body is None else ["-d", str(body), *GRPC]
    return run("nghttp", "-v", "-n", *posted, *arguments, where)


def received(text: str) -> list[tuple[str, int]]:
    """The frames that came, in order: (type, stream id)."""
    found = re.findall(r"recv (\w+) frame <length=\d+, flags=0x\w+, stream_id=(\d+)>", text)
    return [(kind, int(stream_id)) for kind, stream_id in found]


def test_settings_come_first_and_an_answer_in_three_parts(
    server: ThreadedServer, body: Path
) -> None:
    text = nghttp(url(server), body, "--no-dep")
    frames = received(text)
    assert frames[0] == ("SETTINGS", 0)
    assert [kind for kind, stream_id in frames if stream_id == 1] == ["HEADERS", "DATA", "HEADERS"]
    assert "SETTINGS_MAX_CONCURRENT_STREAMS(0x03)" in text
    assert not {"GOAWAY", "RST_STREAM", "PUSH_PROMISE"} & {kind for kind, _ in frames}
    # Its own are acknowledged, once. (It may be gone before it acknowledges ours.)
    assert text.count("recv SETTINGS frame <length=0, flags=0x01, stream_id=0>") == 1


@pytest.mark.parametrize(
    "options",
    [
        ("--no-dep",),
        ("-p", "7"),  # PRIORITY frames and a HEADERS with a priority
        ("-b", "255"),  # padding
        ("-b", "1", "-m", "20"),
        ("-m", "50", "-w", "4", "-W", "4"),  # windows of 15 bytes
        ("-c", "100", "-c", "4096", "-c", "0"),  # a table that shrinks and grows and goes
        ("--encoder-header-table-size=0",),
        ("--no-content-length",),
        ("--expect-continue",),
        ("--trailer=x-checksum: 5",),
        ("--no-push", "--max-concurrent-streams=0"),
    ],
    ids=lambda options: " ".join(options).replace("--", "").strip("-").replace(" ", "_"),
)
def test_every_option_of_nghttp_is_answered(
    server: ThreadedServer, body: Path, options: tuple[str, ...]
) -> None:
    count = int(options[options.index("-m") + 1]) if "-m" in options else 1
    text = nghttp(url(server), body, *options)
    assert len(re.findall(r"recv \(stream_id=\d+\) grpc-status: 0$", text, re.MULTILINE)) == count
    assert len(re.findall(r"recv \(stream_id=\d+\) :status: 200$", text, re.MULTILINE)) == count
    assert "GOAWAY" not in {kind for kind, _ in received(text)}


@pytest.mark.parametrize(("bytes_max", "status"), [(16_384, 8), (65_536, 0)])
def test_a_head_in_continuations_is_read_as_far_as_its_limit(
    body: Path, bytes_max: int, status: int
) -> None:
    with ThreadedServer(connection={"header_list_bytes_max": bytes_max}) as server:
        text = nghttp(url(server), body, "--continuation", "--no-dep", "-m", "3")
    # It says of HEADERS what all frames of the block hold together.
    lengths = [int(each) for each in re.findall(r"send HEADERS frame <length=(\d+)", text)]
    assert max(lengths) > 16_384
    statuses = re.findall(r"grpc-status: (\d+)", text)
    assert statuses == [str(status)] * 3


def test_an_upgrade_from_http1_is_not_spoken(server: ThreadedServer) -> None:
    done = subprocess.run(
        ["nghttp", "-v", "-u", url(server)], capture_output=True, timeout=PATIENCE_S, check=False
    )
    text = (done.stdout + done.stderr).decode(errors="replace")
    assert "HTTP Upgrade request" in text
    assert "processed=0" in text
    # And the next client is answered.
    assert run("h2load", "-n", "1", url(server)).count("1 done") == 1


def test_a_drain_says_goaway_twice_and_answers_what_is_open(body: Path) -> None:
    with ThreadedServer() as server, ThreadPoolExecutor(2) as threads:
        asked = threads.submit(nghttp, url(server, "Slow"), body, "--no-dep")
        until(lambda: server.services.running == 1, "the call is at work")
        drained = threads.submit(server.thread.run, server.server.drain(PATIENCE_S))
        (connection,) = server.server.connections
        # The second GOAWAY goes out when the client has seen the first.
        until(lambda: connection.core._goaway_id == 1, "the client has answered our PING")
        server.thread.call(server.services.gate.set)
        text = asked.result(PATIENCE_S)
        drained.result(PATIENCE_S)
    at = [place for place, (kind, _) in enumerate(received(text)) if kind == "GOAWAY"]
    ids = re.findall(r"recv GOAWAY.*\n\s+\(last_stream_id=(\d+), error_code=(\w+)", text)
    assert ids == [("2147483647", "NO_ERROR"), ("1", "NO_ERROR")]
    frames = received(text)
    assert frames[at[0] + 1] == ("PING", 0)
    assert frames[at[1] + 1 :] == [("HEADERS", 1), ("DATA", 1), ("HEADERS", 1)]
    assert "grpc-status: 0" in text


# h2load.


@pytest.mark.parametrize(
    "windows",
    [
        (),
        ("-w", "1", "-W", "1"),
        ("-w", "4", "-W", "16"),
        ("-w", "16", "-W", "10"),
    ],
    ids=["default", "1_byte", "15_bytes", "small_connection"],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_h2load_has_every_answer(
    server: ThreadedServer,
    certificates: Certificates,
    body: Path,
    windows: tuple[str, ...],
    tls: bool,
) -> None:
    command = ["h2load", "-n", "1000", "-c", "4", "-m", "8", "-d", str(body), *GRPC, *windows]
    if tls:
        with ThreadedServer(certificates.files()) as secure:
            text = run(*command, url(secure, scheme="https"))
            assert not secure.abuse
    else:
        before = server.abuse
        text = run(*command, url(server))
        assert server.abuse == before
    assert "1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout" in text, text
    assert "status codes: 1000 2xx" in text
    # Every answer has its body: the message with its prefix.
    assert f"({1000 * 10}) data" in text


def test_h2load_reads_large_answers_through_small_windows(
    server: ThreadedServer, tmp_path: Path
) -> None:
    body = tmp_path / "size"
    body.write_bytes(message(b"100000"))
    command = ["h2load", "-n", "64", "-c", "2", "-m", "8", "-d", str(body), *GRPC]
    text = run(*command, "-w", "12", "-W", "13", url(server, "Big"))
    assert "64 done, 64 succeeded, 0 failed" in text, text
    assert f"({64 * 100_005}) data" in text


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.002)
