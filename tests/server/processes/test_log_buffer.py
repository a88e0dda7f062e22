from __future__ import annotations

import asyncio
import threading

import pyarrow as pa
import pytest

from server.processes import log_buffer
from server.processes.log_buffer import LogBuffer


def batch(*models: str) -> pa.RecordBatch:
    return pa.record_batch({"model": pa.array(models).dictionary_encode()})


async def test_batches_of_a_moment_become_one_with_one_dictionary() -> None:
    written: list[pa.RecordBatch] = []
    buffer = LogBuffer(written.append)
    running = asyncio.create_task(buffer.run())
    buffer.add(batch("a"))
    buffer.add(batch("b", "a"))
    buffer.close()
    await running
    assert [each.column("model").to_pylist() for each in written] == [["a", "b", "a"]]


async def test_what_comes_while_the_disk_is_behind_is_bounded_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = batch("a").nbytes
    monkeypatch.setattr(log_buffer, "HELD_BYTES_MAX", 2 * size)
    monkeypatch.setattr(log_buffer, "FLUSH_BYTES", size)
    begun, leave = threading.Event(), threading.Event()
    written = 0

    def write(rows: pa.RecordBatch) -> None:
        nonlocal written
        begun.set()
        assert leave.wait(10)
        written += rows.num_rows

    buffer = LogBuffer(write)
    running = asyncio.create_task(buffer.run())
    buffer.add(batch("a"))
    await asyncio.to_thread(begun.wait, 10)
    buffer.add(batch("b"))  # held while "a" is being written
    buffer.add(batch("c"))
    assert buffer.rows_dropped == 1
    leave.set()
    buffer.close()
    await running
    assert written == 2


async def test_batches_that_do_not_fit_together_end_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    written: list[pa.RecordBatch] = []
    buffer = LogBuffer(written.append)
    buffer.add(batch("a"))
    buffer.add(pa.record_batch({"other": [1, 2]}))
    buffer.close()
    await buffer.run()
    assert (written, buffer.rows_dropped) == ([], 3)
    assert "3 log rows cannot be put together" in caplog.text


async def test_rows_that_cannot_be_written_cost_only_themselves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    written: list[pa.RecordBatch] = []
    refused = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(rows: pa.RecordBatch) -> None:
        if rows.num_rows == 2:
            loop.call_soon_threadsafe(refused.set)
            raise OverflowError("date value out of range")
        written.append(rows)

    buffer = LogBuffer(write)
    running = asyncio.create_task(buffer.run())
    buffer.add(batch("a", "b"))
    await asyncio.wait_for(refused.wait(), 10)
    buffer.add(batch("c"))
    buffer.close()
    await running
    assert [each.column("model").to_pylist() for each in written] == [["c"]]
    assert buffer.rows_dropped == 2
    assert "2 log rows cannot be written" in caplog.text
