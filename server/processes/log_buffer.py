"""Holds log batches for a moment, so that each hour's folder gets few files and not one a batch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pyarrow as pa

_LOG = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 1.0
FLUSH_BYTES = 32 * 1024 * 1024
HELD_BYTES_MAX = 256 * 1024 * 1024


class LogBuffer:
    """Bounded: what comes while the disk is that far behind is dropped and counted.

    `write` gets one record batch of the log's schema; it runs in a thread, one call at a time.
    """

    def __init__(self, write: Callable[[pa.RecordBatch], object]) -> None:
        self.rows_dropped = 0
        self._write = write
        self._batches: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._writing_bytes = 0
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._closing = False

    def add(self, batch: pa.RecordBatch) -> None:
        """Hold a batch until the next flush."""
        size_bytes = batch.nbytes
        if self._held_bytes + self._writing_bytes + size_bytes > HELD_BYTES_MAX:
            self.rows_dropped += batch.num_rows
            return
        self._batches.append(batch)
        self._held_bytes += size_bytes
        self._arrived.set()
        if self._held_bytes >= FLUSH_BYTES:
            self._full.set()

    async def run(self) -> None:
        """Flush about once a second while there is something, until `close`; then the rest."""
        while True:
            await self._arrived.wait()
            if not self._closing:
                await self._pause()
            await self._flush()
            if self._closing and not self._batches:
                return

    def close(self) -> None:
        """Make `run` write what is held and return."""
        self._closing = True
        self._arrived.set()
        self._full.set()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_INTERVAL_S):
                await self._full.wait()
        except TimeoutError:
            return

    async def _flush(self) -> None:
        batches, self._batches = self._batches, []
        self._writing_bytes, self._held_bytes = self._held_bytes, 0
        if not self._closing:
            self._arrived.clear()
            self._full.clear()
        if batches:
            self.rows_dropped += await asyncio.to_thread(self._write_all, batches)
        self._writing_bytes = 0

    def _write_all(self, batches: list[pa.RecordBatch]) -> int:
        """Write the batches; return how many rows could not be written."""
        try:
            # Each batch brings dictionaries of its own; a file has one per column.
            table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
        except Exception:  # noqa: BLE001 - a task boundary: later rows are written all the same
            rows = sum(batch.num_rows for batch in batches)
            _LOG.exception("%d log rows cannot be put together and are dropped", rows)
            return rows
        dropped = 0
        for batch in table.to_batches():
            try:
                self._write(batch)
            except Exception:  # noqa: BLE001 - a task boundary: later rows are written all the same
                dropped += batch.num_rows
                _LOG.exception("%d log rows cannot be written and are dropped", batch.num_rows)
        return dropped
