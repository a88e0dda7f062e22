"""The tap: nothing waits for it, nothing is lost silently, truth is acknowledged or refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from monitor.schema import LOG_SCHEMA
from server import frames
from server import tap as module
from server.tap import Tap


class Collector:
    """The other end of the socket: keeps what comes, answers truth as it is told."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.batches: list[pa.Table] = []
        self.metadata: list[dict[bytes, bytes]] = []
        self.truths: list[Any] = []
        self.answer: str = "ok"  # ok | silence | hang up | old | a code of an error
        self.connections = 0
        self.awake = asyncio.Event()  # until it is set, nothing is read
        self.awake.set()
        self.got = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.awake.set()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()

    async def wait_rows(self, rows: int) -> list[dict[str, Any]]:
        async with self.got:
            await asyncio.wait_for(self.got.wait_for(lambda: self.rows() >= rows), 10)
        return [row for batch in self.batches for row in batch.to_pylist()]

    async def wait_connections(self, connections: int) -> None:
        async with self.got:
            await asyncio.wait_for(self.got.wait_for(lambda: self.connections >= connections), 10)

    async def wait_all_closed(self) -> None:
        async with self.got:
            await asyncio.wait_for(self.got.wait_for(lambda: not self._writers), 10)

    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        async with self.got:
            self.got.notify_all()
        await self.awake.wait()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                kind, payload = await frames.read_frame(reader)
                if kind == frames.LOG:
                    with pa.ipc.open_stream(payload) as stream:
                        self.metadata.append(dict(stream.schema.metadata))
                        assert stream.schema.names == LOG_SCHEMA.names[:-2]  # none is explained
                        self.batches.append(stream.read_all())
                else:
                    self._truth(payload, writer)
                async with self.got:
                    self.got.notify_all()
        self._writers.discard(writer)
        writer.close()
        async with self.got:
            self.got.notify_all()

    def _truth(self, payload: bytes, writer: asyncio.StreamWriter) -> None:
        number, truths = msgspec.msgpack.decode(payload)
        self.truths += truths
        if self.answer == "ok":
            reply = msgspec.msgpack.encode([number, len(truths)])
            writer.write(frames.frame(frames.TRUTH_OK, reply))
        elif self.answer == "hang up":
            writer.close()
        elif self.answer != "silence":
            reason = ["no room"] if self.answer == "old" else [self.answer, "no room"]
            reply = msgspec.msgpack.encode([number, *reason])
            writer.write(frames.frame(frames.TRUTH_ERROR, reply))


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    collector = Collector(str(tmp_path / "c.sock"))
    await collector.start()
    yield collector
    await collector.stop()


@pytest.fixture
async def tap(tmp_path: Path) -> AsyncIterator[Tap]:
    tap = Tap(str(tmp_path / "c.sock"), worker=5)
    tap.start()
    yield tap
    await tap.close(0.5)


def log(tap: Tap, *numbers: int) -> None:
    tap.log(
        len(numbers),
        {"model": "m", "event_time": 1_000_000, "pmf": [0.5, 0.5], "status": 0},
        {"prediction_id": [bytes([n]) * 16 for n in numbers], "outputs": [[n] for n in numbers]},
    )


async def test_rows_arrive_as_columns_of_the_log(collector: Collector, tap: Tap) -> None:
    log(tap, 1, 2)
    tap.log(1, {"model": "n", "decision": "late"}, {"prediction_id": [bytes([3]) * 16]})
    rows = await collector.wait_rows(3)
    assert [row["prediction_id"][0] for row in rows] == [1, 2, 3]
    assert [row["model"] for row in rows] == ["m", "m", "n"]
    assert [row["outputs"] for row in rows] == [[1.0], [2.0], None]
    assert [row["decision"] for row in rows] == [None, None, "late"]
    start = collector.metadata[0].pop(b"start")
    assert collector.metadata[0] == {b"worker": b"5", b"first_sequence": b"0", b"rows": b"3"}
    log(tap, 4)
    await collector.wait_rows(4)
    assert collector.metadata[1][b"first_sequence"] == b"3"
    assert collector.metadata[1][b"start"] == start
    assert Tap(None, 5)._start.encode() != start
    assert (tap.rows_logged, tap.rows_dropped) == (4, 0)


async def test_many_rows_go_out_before_the_interval(
    collector: Collector, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_INTERVAL_S", 60.0)
    for _ in range(module.FLUSH_ROWS // 100 + 1):
        log(tap, *([7] * 100))
    await collector.wait_rows(module.FLUSH_ROWS)
    assert max(batch.num_rows for batch in collector.batches) <= module.FLUSH_ROWS


async def test_rows_wait_for_a_collector_that_comes_back(collector: Collector, tap: Tap) -> None:
    log(tap, 1)
    await collector.wait_rows(1)
    await collector.stop()
    log(tap, 2, 3)
    await collector.start()
    rows = await collector.wait_rows(3)
    assert [row["prediction_id"][0] for row in rows] == [1, 2, 3]
    assert tap.rows_dropped == 0


async def test_a_stalled_collector_gets_each_row_once(
    collector: Collector, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEND_TIMEOUT_S", 0.1)
    monkeypatch.setattr(module, "FLUSH_ROWS", 100)
    given_up = asyncio.Event()
    monkeypatch.setattr(module._LOG, "warning", lambda *_: given_up.set())
    collector.awake.clear()
    # 2 MB in frames of 50 kB: some fit the kernel's buffer and the one after them is torn.
    for number in range(40):
        tap.log(
            100,
            {"model": "m", "event_time": 1_000_000, "outputs": [0.5] * 128},
            {"prediction_id": [bytes([number, place]) * 8 for place in range(100)]},
        )
    await asyncio.wait_for(given_up.wait(), 10)
    collector.awake.set()
    await collector.wait_rows(4000)
    await tap.close(5)
    await collector.wait_all_closed()
    ids = [row["prediction_id"] for batch in collector.batches for row in batch.to_pylist()]
    assert sorted(ids) == [bytes([n, place]) * 8 for n in range(40) for place in range(100)]
    assert (tap.rows_logged, tap.rows_dropped) == (4000, 0)


async def test_the_end_of_an_old_connection_is_no_concern_of_the_new_ones_calls(
    collector: Collector, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SEND_TIMEOUT_S", 0.5)
    given_up = asyncio.Event()
    monkeypatch.setattr(module._LOG, "warning", lambda *_: given_up.set())
    collector.awake.clear()
    old = asyncio.create_task(tap.send_truth([TRUTH], None))
    await collector.wait_connections(1)
    tap.log(
        4000,
        {"model": "m", "event_time": 1_000_000, "outputs": [0.5] * 128},
        {"prediction_id": [b"p" * 16] * 4000},
    )
    await asyncio.wait_for(given_up.wait(), 10)
    new = asyncio.create_task(tap.send_truth([TRUTH] * 2, None))
    await collector.wait_connections(2)
    collector.answer = "silence"
    collector.awake.set()
    with pytest.raises(UnavailableError):
        await old
    await collector.wait_rows(4000)
    assert not new.done()
    new.cancel()
    collector.answer = "ok"
    assert await tap.send_truth([TRUTH] * 3, None) == 3


async def test_a_full_buffer_drops_the_oldest_and_shows_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER_ROWS_MAX", 3)
    tap = Tap(str(tmp_path / "c.sock"), worker=5)
    for number in range(6):
        log(tap, number)
    assert tap.rows_dropped == 3
    collector = Collector(str(tmp_path / "c.sock"))
    await collector.start()
    tap.start()
    rows = await collector.wait_rows(3)
    assert [row["prediction_id"][0] for row in rows] == [3, 4, 5]
    assert collector.metadata[0][b"first_sequence"] == b"3"
    await tap.close(1)
    await collector.stop()


async def test_closing_sends_what_is_left(collector: Collector, tap: Tap) -> None:
    log(tap, 1, 2, 3)
    await tap.close(5)
    await collector.wait_rows(3)
    assert tap.rows_dropped == 0


async def test_what_cannot_be_sent_at_the_end_is_counted(tmp_path: Path) -> None:
    tap = Tap(str(tmp_path / "nobody.sock"), worker=5)
    tap.start()
    log(tap, 1, 2, 3)
    await tap.close(0.2)
    assert tap.rows_dropped == 3


TRUTH = (b"p" * 16, "late", 1.0, 5, "tower")


async def test_truth_is_acknowledged_after_the_reply(collector: Collector, tap: Tap) -> None:
    answers = await asyncio.gather(*(tap.send_truth([TRUTH] * n, None) for n in (1, 2, 3)))
    assert answers == [1, 2, 3]
    assert collector.truths == [list(TRUTH)] * 6
    assert tap.truths_sent == 6


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("invalid_argument", InvalidArgumentError),
        ("unavailable", UnavailableError),
        ("resource_exhausted", ResourceExhaustedError),
        ("code of a later release", InternalError),
        ("old", InvalidArgumentError),
        ("silence", DeadlineExceededError),
        ("hang up", UnavailableError),
    ],
)
async def test_truth_that_is_not_acknowledged_is_an_error(
    collector: Collector, tap: Tap, answer: str, error: type[Exception]
) -> None:
    collector.answer = answer
    with pytest.raises(error):
        await tap.send_truth([TRUTH], 0.3)
    collector.answer = "ok"
    assert await tap.send_truth([TRUTH], 5) == 1


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
async def test_truth_past_its_deadline_is_not_sent(
    collector: Collector, tap: Tap, timeout_s: float
) -> None:
    with pytest.raises(DeadlineExceededError):
        await tap.send_truth([TRUTH], timeout_s)
    assert await tap.send_truth([TRUTH] * 2, None) == 2
    assert len(collector.truths) == 2


async def test_truth_without_a_collector_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await Tap(str(tmp_path / "nobody.sock"), 0).send_truth([TRUTH], None)
    off = Tap(None, 0)
    off.start()
    log(off, 1)
    with pytest.raises(FailedPreconditionError):
        await off.send_truth([TRUTH], None)
    await off.close(0)
    assert off.rows_dropped == 0
