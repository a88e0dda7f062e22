"""The collector as a process, spoken to over its unix socket."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from headrace.ids import PredictionIds
from headrace.times import HOUR_US
from monitor import LOG_SCHEMA, log_batch, read_log, read_truth
from server import frames
from tests.server.processes.running import Running

IDS = PredictionIds(0, 1)
T0_US = 1_380_600_000_000_000  # 2013-10-01T04:00:00Z


def prediction_ids(count: int, at_us: int = T0_US) -> list[bytes]:
    return [IDS.take(at_us) for _ in range(count)]


def log_frame(
    worker: int, first: int, ids: list[bytes], at_us: int = T0_US, start: str = "a"
) -> bytes:
    rows = len(ids)
    columns: dict[str, Any] = {
        "prediction_id": ids,
        "event_time": [at_us] * rows,
        "model": ["delay"] * rows,
    }
    metadata = {
        "worker": str(worker),
        "start": start,
        "first_sequence": str(first),
        "rows": str(rows),
    }
    sink = pa.BufferOutputStream()
    schema = LOG_SCHEMA.with_metadata(metadata)
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(log_batch(columns, rows).replace_schema_metadata(metadata))
    return frames.frame(frames.LOG, sink.getvalue().to_pybytes())


def truth_frame(call: int, ids: list[bytes], value: float = 1.0) -> bytes:
    records = [[each, "late", value, T0_US, "test"] for each in ids]
    return frames.frame(frames.TRUTH, msgspec.msgpack.encode([call, records]))


class Client:
    """A worker's side of the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> tuple[int, list[Any]]:
        header = self._file.read(frames.HEADER_BYTES)
        assert len(header) == frames.HEADER_BYTES, "the collector closed the connection"
        payload = self._file.read(int.from_bytes(header[:4], "little"))
        return header[4], msgspec.msgpack.decode(payload)

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def closed_by_peer(self) -> bool:
        return self._file.read(1) == b""


class LiveCollector:
    """The process and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "c.sock"
        config = json.dumps({"data_dir": str(folder), "socket": str(self.path)})
        self.process = Running(sys.executable, "-P", "-m", "server.collector", config)
        self._clients: list[Client] = []

    def client(self) -> Client:
        self._clients.append(Client(self.path))
        return self._clients[-1]

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()

    def stop(self) -> dict[str, int]:
        """End workers and collector in order and return its counters; none when all went well."""
        self.close_clients()
        assert self.process.end(signal.SIGTERM) == 0
        line = next((line for line in self.process.seen if "counters" in line), None)
        if line is None:
            return {}
        counters: dict[str, int] = json.loads(line.partition("counters ")[2])
        return counters


@pytest.fixture
def collector(short_folder: Path) -> Iterator[LiveCollector]:
    live = LiveCollector(short_folder)
    with live.process:
        live.process.line("ready", "stdout")
        yield live
        live.close_clients()


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that is short enough for a unix socket."""
    return tmp_path_factory.mktemp("c")


def test_log_rows_are_on_disk_after_sigterm_in_the_hours_of_their_event_time(
    collector: LiveCollector,
) -> None:
    early, late = prediction_ids(3), prediction_ids(2, T0_US + HOUR_US)
    client = collector.client()
    client.send(log_frame(0, 0, early))
    client.send(log_frame(0, 3, late, T0_US + HOUR_US))
    assert collector.stop() == {}
    table = read_log(collector.folder / "log", "delay")
    assert table["prediction_id"].to_pylist() == early + late
    files = sorted(f.parent.name for f in (collector.folder / "log").rglob("*.parquet"))
    assert files == ["hour=04", "hour=05"]


def test_many_batches_become_few_files(collector: LiveCollector) -> None:
    client = collector.client()
    for number in range(50):
        client.send(log_frame(0, number * 4, prediction_ids(4)))
    collector.stop()
    assert read_log(collector.folder / "log", "delay").num_rows == 200
    assert len(list((collector.folder / "log").rglob("*.parquet"))) <= 3


def test_missing_rows_are_counted_across_connections(collector: LiveCollector) -> None:
    for first in (0, 12):  # rows 10 and 11 were dropped by the worker
        client = collector.client()
        client.send(log_frame(0, first, prediction_ids(10)))
        client.send(truth_frame(1, prediction_ids(1)))
        assert client.reply()[0] == frames.TRUTH_OK  # the frame before it has been taken
        client.close()
    client = collector.client()
    client.send(log_frame(1, 4, prediction_ids(1)))  # met on its way: nothing is known before it
    counters = collector.stop()
    assert counters["log_rows_lost"] == 2
    assert counters["log_rows_received"] == counters["log_rows_written"] == 21


def test_a_frame_that_comes_twice_is_written_once(collector: LiveCollector) -> None:
    first, second, restarted = (prediction_ids(3) for _ in range(3))
    for frame in (
        log_frame(0, 0, first),
        log_frame(0, 3, second),
        log_frame(0, 3, second),
        log_frame(0, 1, restarted, start="b"),  # its own first row is missing
    ):
        client = collector.client()
        client.send(frame + truth_frame(1, prediction_ids(1)))
        assert client.reply()[0] == frames.TRUTH_OK  # the frame before it has been taken
    counters = collector.stop()
    logged = read_log(collector.folder / "log", "delay")["prediction_id"].to_pylist()
    assert logged == first + second + restarted
    names = ("log_rows_repeated", "worker_restarts", "log_rows_lost")
    assert [counters[name] for name in names] == [3, 1, 1]


def test_a_torn_connection_costs_only_its_last_frame(collector: LiveCollector) -> None:
    torn, whole = collector.client(), collector.client()
    torn.send(log_frame(0, 0, prediction_ids(2)) + log_frame(0, 2, prediction_ids(2))[:-1])
    torn.close()
    whole.send(log_frame(1, 0, prediction_ids(3)))
    counters = collector.stop()
    assert counters["connections_torn"] == 1
    assert counters["log_rows_written"] == 5


@pytest.mark.parametrize(
    "garbage",
    [
        frames.frame(9, b""),
        frames.frame(frames.LOG, b"no arrow"),
        frames.frame(frames.TRUTH, b"\xc1"),
        b"\xff\xff\xff\xff\x01",
    ],
)
def test_garbage_closes_its_connection_and_no_other(
    collector: LiveCollector, garbage: bytes
) -> None:
    bad, good = collector.client(), collector.client()
    bad.send(garbage)
    assert bad.closed_by_peer()
    good.send(truth_frame(1, prediction_ids(1)))
    assert good.reply() == (frames.TRUTH_OK, [1, 1])
    assert collector.stop()["frames_malformed"] == 1


def test_acknowledged_truth_survives_kill_9(collector: LiveCollector) -> None:
    ids = prediction_ids(20)
    client = collector.client()
    for call, each in enumerate(ids):
        client.send(truth_frame(call, [each], value=float(call)))
    calls = [client.reply() for _ in ids]
    collector.process.end(signal.SIGKILL)
    assert sorted(calls) == [(frames.TRUTH_OK, [call, 1]) for call in range(20)]
    latest = read_truth(collector.folder / "wal").latest
    assert latest["prediction_id"].to_pylist() == ids
    assert latest["value"].to_pylist() == [float(call) for call in range(20)]
    assert min(latest["created_time"].cast(pa.int64()).to_pylist()) > T0_US


def test_a_bad_truth_costs_no_other_call_its_answer(collector: LiveCollector) -> None:
    client = collector.client()
    good = prediction_ids(2)
    client.send(
        truth_frame(1, good[:1])
        + truth_frame(2, prediction_ids(1), value=float("nan"))
        + frames.frame(frames.TRUTH, msgspec.msgpack.encode([3, [["not bytes"]]]))
        + truth_frame(4, good[1:])
    )
    replies = {answer[0]: (kind, *answer[1:]) for kind, answer in (client.reply() for _ in "1234")}
    assert replies[1] == replies[4] == (frames.TRUTH_OK, 1)
    assert replies[2][:2] == replies[3][:2] == (frames.TRUTH_ERROR, "invalid_argument")
    assert "finite" in replies[2][2]
    assert "not a list of truths" in replies[3][2]
    counters = collector.stop()
    assert (counters["truths_accepted"], counters["truths_refused"]) == (2, 1)
    assert read_truth(collector.folder / "wal").latest["prediction_id"].to_pylist() == good


def test_truth_that_cannot_be_kept_says_whether_to_send_it_again(
    collector: LiveCollector,
) -> None:
    client = collector.client()
    shutil.rmtree(collector.folder / "wal")
    client.send(truth_frame(1, prediction_ids(1)))
    kind, answer = client.reply()
    assert (kind, *answer[:2]) == (frames.TRUTH_ERROR, 1, "unavailable")
    assert "durable" in answer[2]
    client.send(truth_frame(2, prediction_ids(1) * 200_001))
    kind, answer = client.reply()
    assert (kind, *answer[:2]) == (frames.TRUTH_ERROR, 2, "resource_exhausted")
    (collector.folder / "wal").mkdir()
    client.send(truth_frame(3, prediction_ids(1)))
    assert client.reply() == (frames.TRUTH_OK, [3, 1])
    assert collector.stop()["truths_refused"] == 200_002


def test_a_second_collector_on_the_same_folder_is_refused(collector: LiveCollector) -> None:
    config = json.dumps({"data_dir": str(collector.folder), "socket": str(collector.path) + "2"})
    with Running(sys.executable, "-P", "-m", "server.collector", config) as second:
        assert second.wait() == 1
    assert "in use by another process" in second.text
