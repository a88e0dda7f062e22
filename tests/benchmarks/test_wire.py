"""The wire benchmark's own parts: what counts as a valid run, and the load client's clocks."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import hpack
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from benchmarks.common import clients, frames, model, servers, tools
from benchmarks.common.clients import Clients
from benchmarks.common.processes import Process, StartError, cores
from benchmarks.common.servers import Ports, Server
from benchmarks.common.tools import InvalidRun
from benchmarks.wire_parts import bench, header_styles, inprocess_part
from tests.benchmarks.h2_server import BAD, GOOD, REPLY, RESET, SILENT, serving_h2

BODY = b"\0\0\0\0\5hello"
NOT_SEEN, NOTHING_WANTED = np.zeros(0, np.uint8), np.zeros((0, 0), np.uint32)


@pytest.fixture(scope="module")
def load() -> Iterator[Clients]:
    with clients.started(cores().clients[:2]) as started:
        yield started


@pytest.fixture
def script(tmp_path: Path) -> list[Path]:
    file = tmp_path / "script"
    frames.write_script(file, frames.constant_blocks(20_000), [BODY])
    return [file]


def test_a_script_is_what_an_independent_peer_reads(load: Clients, script: list[Path]) -> None:
    with serving_h2() as (h2_server, server):
        result = load.closed(server, (3, 4), script, len(BODY), 0.3)
    assert result.requests_per_s > 0
    assert 0 < result.client_share < 1
    assert h2_server.bodies == {BODY}
    assert {(":path", model.GRPC_PATH), ("te", "trailers")} <= set(h2_server.headers[0])
    assert all(headers == h2_server.headers[0] for headers in h2_server.headers)


@pytest.mark.parametrize("failure", [BAD, RESET])
def test_a_closed_loop_in_which_calls_fail_is_invalid(
    load: Clients, script: list[Path], failure: str
) -> None:
    with (
        serving_h2(lambda call: GOOD if call < 10 else failure) as (_, server),
        pytest.raises(InvalidRun, match="calls failed"),
    ):
        load.closed(server, (1, 2), script, len(BODY), 0.3)


def test_a_server_that_goes_is_an_invalid_run(load: Clients, script: list[Path]) -> None:
    with serving_h2() as (h2_server, server):
        h2_server.close()
        with pytest.raises(InvalidRun, match="Connection"):
            load.closed(server, (1, 2), script, len(BODY), 0.3)


def test_prepared_requests_that_run_out_early_are_no_measurement(
    load: Clients, tmp_path: Path
) -> None:
    file = tmp_path / "short"
    frames.write_script(file, frames.constant_blocks(3), [BODY])
    with serving_h2() as (_, server), pytest.raises(InvalidRun):
        load.closed(server, (1, 1), [file], len(BODY), 0.3)


def test_an_open_loop_has_a_latency_for_every_arrival(load: Clients, script: list[Path]) -> None:
    with serving_h2() as (_, server):
        result = load.open(server, 2, script, len(BODY), 200.0, 0.4, seed=1)
    assert result.failed == 0
    assert result.latencies_us == sorted(result.latencies_us)
    # The warm-up's arrivals are not among them.
    assert 40 <= len(result.latencies_us) <= 100
    assert 0 < result.quantile(0.5) <= result.quantile(0.99) <= result.quantile(1.0) < 1e6


@pytest.mark.parametrize("failure", [BAD, SILENT, RESET])
def test_calls_that_fail_are_the_slowest_of_an_open_loop(
    load: Clients, script: list[Path], failure: str
) -> None:
    with serving_h2(lambda call: failure if call == 60 else GOOD) as (_, server):
        result = load.open(server, 1, script, len(BODY), 200.0, 0.4, seed=1)
    assert result.failed == 1
    assert result.latencies_us[-1] > 400_000 > result.latencies_us[-2]


def test_the_scanner_counts_at_every_split() -> None:
    encoder = hpack.Encoder()
    data = frames.frame(frames.SETTINGS, 0, 0)
    for stream_id in (1, 3, 2**31 - 1):
        data += frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, b"\x88")
        data += frames.frame(frames.DATA, 0, stream_id, REPLY)
        trailers = encoder.encode([("grpc-status", "0")])
        flags = frames.END_HEADERS | frames.END_STREAM
        data += frames.frame(frames.HEADERS, flags, stream_id, trailers)
    data += frames.frame(frames.WINDOW_UPDATE, 0, 0, (7).to_bytes(4, "big"))
    data += frames.frame(frames.WINDOW_UPDATE, 0, 1, (9).to_bytes(4, "big"))
    for split in range(len(data) + 1):
        ended, counts, ids = np.zeros(8, np.int64), np.zeros(3, np.int64), []
        first = np.frombuffer(bytearray(data[:split] + bytes(1)), np.uint8)
        done, found = frames.scan(first, split, ended, counts, NOT_SEEN, NOTHING_WANTED)
        ids += ended[:found].tolist()
        rest = np.frombuffer(bytearray(data[done:] + bytes(1)), np.uint8)
        end, found = frames.scan(rest, len(data) - done, ended, counts, NOT_SEEN, NOTHING_WANTED)
        ids += ended[:found].tolist()
        assert end == len(data) - done
        assert ids == [1, 3, 2**31 - 1]
        assert counts.tolist() == [3 * len(REPLY), 7, 1]


H2LOAD = """
finished in 1.00s, {rate} req/s, 1.0MB/s
requests: 100 total, 104 started, 100 done, {good} succeeded, {bad} failed, {bad} errored, 0 timeout
status codes: {good} 2xx, 0 3xx, 0 4xx, {bad} 5xx
traffic: 1.0KB (1024) total, 1.0KB (1024) headers (space savings 96.27%), 1.0KB ({data}) data
"""


def test_h2load_is_read() -> None:
    text = H2LOAD.format(rate="1234.50", good=100, bad=0, data=100 * 44 + 30)
    assert tools.read_h2load(text, 4, 44) == 1234.5


@pytest.mark.parametrize(
    "text",
    [
        "connect failed",
        H2LOAD.format(rate="9.0", good=99, bad=1, data=99 * 44),
        H2LOAD.format(rate="9.0", good=100, bad=0, data=99 * 44),  # a call without a message
        H2LOAD.format(rate="9.0", good=100, bad=0, data=105 * 44),  # longer answers
    ],
)
def test_an_h2load_run_with_failed_calls_is_invalid(text: str) -> None:
    with pytest.raises(InvalidRun):
        tools.read_h2load(text, 4, 44)


def test_a_missing_tool_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "h2load is missing: apt-get install nghttp2-client" in tools.missing_tools()


def test_a_peer_that_crashes_is_started_again_and_noted(tmp_path: Path) -> None:
    starts = []

    def launch() -> tuple[Process, Ports]:
        starts.append(Process([sys.executable, "-c", "input()"], [cores().server]))
        return starts[-1], Ports()

    peer = Server(servers.TRITON, launch)
    results = iter([InvalidRun("calls failed"), 1.0, 2.0])

    def run() -> float:
        result = next(results)
        if isinstance(result, InvalidRun):
            raise result
        return result

    with bench.prepared(True, cores(), tmp_path) as run_of, servers.running(peer):
        assert run_of.in_turns(2, {peer: run}) == {servers.TRITON: [1.0, 2.0]}
        assert len(starts) == 2
        assert not starts[0].alive
        assert run_of.notes == ["Triton was started again, it failed: calls failed"]


def test_a_server_that_does_not_start_says_why() -> None:
    process = Process([sys.executable, "-c", "raise SystemExit('no port')"], [cores().server])
    with pytest.raises(StartError, match="no port"):
        process.wait_for(lambda: None)


def test_a_server_that_answers_wrongly_is_not_measured(tmp_path: Path) -> None:
    wanted = model.expected(model.write_repository(tmp_path))
    with serving_h2() as (_, server), pytest.raises(StartError, match="fails its first call"):
        server.check(wanted)


def test_the_model_and_the_bodies_agree(tmp_path: Path) -> None:
    wanted = model.expected(model.write_repository(tmp_path))
    assert 0 < wanted.answer < 1
    body = model.grpc_body(wanted.row)
    assert int.from_bytes(body[1:5], "big") == len(body) - 5
    assert wanted.row.tobytes() in body
    content, length = model.binary_body(wanted.row)
    assert content[length:] == wanted.row.tobytes()
    with pytest.raises(ValueError, match="Triton answers"):
        model.check(wanted.answer + 0.01, wanted.answer, "Triton")
    with pytest.raises(ValueError, match="nan"):
        model.check(float("nan"), wanted.answer, "Triton")


@pytest.mark.parametrize("style", header_styles.STYLES, ids=lambda style: style.title)
def test_varying_headers_are_the_recorded_ones_with_fresh_values(
    style: header_styles.Style,
) -> None:
    decoder = hpack.Decoder()
    blocks = list(header_styles.varying_blocks(style, 200, seed=7))
    calls = [dict(decoder.decode(block)) for block in blocks]
    recorded = header_styles.recorded_calls(style.client)
    assert all(list(call) == [name.decode() for name, _ in recorded[1]] for call in calls)
    assert len({call["traceparent"] for call in calls}) == 200
    assert len({call["authorization"] for call in calls}) == (200 if style.fresh_token else 1)
    token = dict(recorded[1])[b"authorization"]
    assert {len(call["authorization"]) for call in calls} == {len(token)}
    assert all(call[":path"] == model.GRPC_PATH for call in calls)
    assert blocks == list(header_styles.varying_blocks(style, 200, seed=7))


def h2_tick(answer: bytes, unanswered: int = -1) -> inprocess_part.Tick:
    """A connection on `h2` that gives each request the same answer."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
    )
    connection.initiate_connection()

    def tick(data: bytes) -> bytes:
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if isinstance(event, h2.events.StreamEnded) and event.stream_id != unanswered:
                connection.send_headers(event.stream_id, [(":status", "200")])
                connection.send_data(event.stream_id, bytes(5) + answer)
                connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        return connection.data_to_send()

    return tick


def answer_of(value: float) -> bytes:
    response = pb.ModelInferResponse(raw_output_contents=[struct.pack("<f", value)])
    return bytes(response.SerializeToString())


def test_the_cost_in_process_is_beyond_the_models(tmp_path: Path) -> None:
    onnx_file = model.write_repository(tmp_path)
    tick = h2_tick(answer_of(model.expected(onnx_file).answer))
    costs = inprocess_part.cost_us(tick, onnx_file, runs=2, ticks=3)
    assert len(costs) == 2
    assert all(cost > 1 for cost in costs)  # h2 takes far more than a microsecond


def test_wrong_or_missing_answers_in_process_are_no_measurement(tmp_path: Path) -> None:
    onnx_file = model.write_repository(tmp_path)
    with pytest.raises(ValueError, match="answers 2"):
        inprocess_part.cost_us(h2_tick(answer_of(2.0)), onnx_file, runs=1, ticks=1)
    tick = h2_tick(answer_of(model.expected(onnx_file).answer), unanswered=5)
    with pytest.raises(InvalidRun, match="31 of 32"):
        inprocess_part.cost_us(tick, onnx_file, runs=1, ticks=1)
