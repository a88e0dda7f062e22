"""The tap: what was answered goes to the collector, and never keeps an answer waiting.

A request hands over its rows as columns in one call; every 0.25 s (or 4096 rows) a background task
sends them as one Arrow frame. The buffer is bounded: when the collector is away for long the oldest
rows go first, they are counted here, and the collector sees the gap in the sequence numbers.

Truth goes the same way, but is acknowledged: `send_truth` returns only after the collector's reply,
which comes after its fsync.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from monitor.schema import LOG_SCHEMA, log_batch, to_send
from server import frames

_LOG = logging.getLogger(__name__)
FLUSH_INTERVAL_S = 0.25
FLUSH_ROWS = 4096
BUFFER_ROWS_MAX = 65_536
TRUTH_CALLS_MAX = 1024
_TRUTH_TIMEOUT_S = 10.0
_SEND_TIMEOUT_S = 5.0
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_COLUMNS = LOG_SCHEMA.names
_ACCEPTED = msgspec.msgpack.Decoder(tuple[int, int])
_REFUSED = msgspec.msgpack.Decoder(list[int | str])
_REFUSALS: dict[int | str, type[HeadraceError]] = {
    kind.code: kind for kind in (InvalidArgumentError, ResourceExhaustedError, UnavailableError)
}

TruthRecord = tuple[
    bytes, str, float, int, str
]  # prediction id, name, value, event time µs, source


@dataclass(slots=True)
class _Block:
    """The rows of one request and arm: `constants` hold for every row of it."""

    first_sequence: int
    rows: int
    constants: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]


@dataclass(slots=True)
class _Connection:
    """One connection and the truth calls that wait for its answers, by number."""

    writer: asyncio.StreamWriter
    calls: dict[int, asyncio.Future[int]] = field(default_factory=dict)
    reading: asyncio.Task[None] | None = None


def encode_blocks(blocks: Sequence[_Block], worker: int, start: str) -> bytes:
    """Return the blocks (contiguous in their sequence) as one Arrow IPC stream of LOG_SCHEMA, less
    what `to_send` leaves out.

    `start` names this run of the worker.
    """
    rows = sum(block.rows for block in blocks)
    columns: dict[str, list[Any]] = {}
    for name in _COLUMNS:
        if not any(name in block.columns or name in block.constants for block in blocks):
            continue
        values: list[Any] = []
        for block in blocks:
            own = block.columns.get(name)
            if own is None:
                values += [block.constants.get(name)] * block.rows
            else:
                values += own
        columns[name] = values
    batch = to_send(log_batch(columns, rows))
    metadata = {
        "worker": str(worker),
        "start": start,
        "first_sequence": str(blocks[0].first_sequence),
        "rows": str(rows),
    }
    sink = pa.BufferOutputStream()
    batch = batch.replace_schema_metadata(metadata)
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    payload: bytes = sink.getvalue().to_pybytes()
    return payload


class Tap:
    """One worker's connection to the collector. `socket` None: logging is off."""

    def __init__(self, socket: str | None, worker: int) -> None:
        self._socket = socket
        self.worker = worker
        self._start = secrets.token_hex(8)  # tells a frame sent twice from a restart
        self._blocks: deque[_Block] = deque()
        self._buffered = 0
        self._sequence = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None
        self._calls_waiting = 0
        self._call_numbers = itertools.count(1)
        self.rows_logged = 0
        self.rows_dropped = 0
        self.truths_sent = 0

    def start(self) -> None:
        """Begin to send in the background."""
        if self._socket is not None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def log(
        self, rows: int, constants: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        """Take the rows of one request and arm; names are those of LOG_SCHEMA, others are null."""
        if self._socket is None:
            return
        self._blocks.append(_Block(self._sequence, rows, constants, columns))
        self._sequence += rows
        self._buffered += rows
        while self._buffered > BUFFER_ROWS_MAX and self._blocks:
            oldest = self._blocks.popleft()
            self._buffered -= oldest.rows
            self.rows_dropped += oldest.rows
        if self._buffered >= FLUSH_ROWS:
            self._wake.set()

    async def send_truth(self, truths: Sequence[TruthRecord], timeout_s: float | None) -> int:
        """Return how many truths are on the collector's disk.

        Raises FailedPreconditionError without a collector, UnavailableError when it is gone or its
        disk refuses (nothing was acknowledged; sending again is safe), DeadlineExceededError,
        ResourceExhaustedError, and InvalidArgumentError for what can never be taken.
        """
        if self._socket is None:
            raise FailedPreconditionError(
                "this server runs without a collector, so that truth has nowhere to go"
            )
        limit_s = _TRUTH_TIMEOUT_S if timeout_s is None else min(timeout_s, _TRUTH_TIMEOUT_S)
        if limit_s <= 0.0:
            raise DeadlineExceededError(
                "the caller's deadline passed before the truth was sent", mend="send it again"
            )
        if self._calls_waiting >= TRUTH_CALLS_MAX:
            raise ResourceExhaustedError("too many feedback calls wait for the collector")
        self._calls_waiting += 1
        try:
            async with asyncio.timeout(limit_s):
                accepted = await self._ask(truths)
        except TimeoutError:
            raise DeadlineExceededError(
                "the collector did not acknowledge the truth in time", mend="send it again"
            ) from None
        finally:
            self._calls_waiting -= 1
        self.truths_sent += accepted
        return accepted

    async def _ask(self, truths: Sequence[TruthRecord]) -> int:
        try:
            connection = await self._connect()
        except OSError:
            raise UnavailableError(
                "the collector is not reachable; the truth was not taken", mend="send it again"
            ) from None
        number = next(self._call_numbers)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        connection.calls[number] = answer
        try:
            payload = msgspec.msgpack.encode([number, list(truths)])
            connection.writer.write(frames.frame(frames.TRUTH, payload))
            return await answer
        finally:
            connection.calls.pop(number, None)

    async def close(self, timeout_s: float) -> None:
        """Send what is buffered, then stop. What does not go out in time is counted as dropped."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._task
        self.rows_dropped += self._buffered
        if self._buffered:
            _LOG.warning("%d log rows could not be sent before the end", self._buffered)
        await self._disconnect()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()
            while self._blocks:
                await self._send(self._take())
            if self._closing:
                return

    def _take(self) -> list[_Block]:
        """Return the oldest blocks that fit one frame; a dropped block ends it (the gap shows)."""
        taken = [self._blocks.popleft()]
        rows = taken[0].rows
        while self._blocks:
            block = self._blocks[0]
            last = taken[-1]
            contiguous = block.first_sequence == last.first_sequence + last.rows
            if rows + block.rows > FLUSH_ROWS or not contiguous:
                break
            taken.append(self._blocks.popleft())
            rows += block.rows
        return taken

    async def _send(self, blocks: list[_Block]) -> None:
        """Send one frame and wait for the collector as long as it takes (`close` bounds it)."""
        rows = sum(block.rows for block in blocks)
        try:
            data = frames.frame(frames.LOG, encode_blocks(blocks, self.worker, self._start))
        except InvalidArgumentError as error:  # too large for a frame, or our own mistake
            _LOG.error("%d log rows are dropped: %s", rows, error.message)
            self.rows_dropped += rows
            self._buffered -= rows
            return
        for attempt in itertools.count():
            try:
                writer = (await self._connect()).writer
                writer.write(data)
                async with asyncio.timeout(_SEND_TIMEOUT_S):
                    await writer.drain()
            except (OSError, TimeoutError) as error:
                if attempt == 0:
                    _LOG.warning("the collector is not reachable: %s", error)
                await self._disconnect()
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                continue
            self._buffered -= rows
            self.rows_logged += rows
            return

    async def _connect(self) -> _Connection:
        async with self._connecting:
            connection = self._connection
            if connection is not None and not connection.writer.is_closing():
                return connection
            assert self._socket is not None
            reader, writer = await asyncio.open_unix_connection(self._socket)
            # `drain` then waits until the kernel has all: an abort loses no frame that counts as
            # sent.
            writer.transport.set_write_buffer_limits(high=0)
            connection = self._connection = _Connection(writer)
            connection.reading = asyncio.get_running_loop().create_task(_read(reader, connection))
            return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        # Not `close`: that would still send what waits here, and a frame that is to be sent again
        # would arrive twice.
        connection.writer.transport.abort()
        if connection.reading is not None:
            await connection.reading


async def _read(reader: asyncio.StreamReader, connection: _Connection) -> None:
    """Hand the collector's replies to the calls that wait; at its end fail what is left."""
    try:
        while True:
            kind, payload = await frames.read_frame(reader)
            if kind == frames.TRUTH_OK:
                number, accepted = _ACCEPTED.decode(payload)
                waiting = connection.calls.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(accepted)
                continue
            call, *reason = _REFUSED.decode(payload)
            waiting = connection.calls.get(int(call))
            if waiting is not None and not waiting.done():
                waiting.set_exception(_refusal(reason))
    except (OSError, ValueError, asyncio.IncompleteReadError, HeadraceError, msgspec.DecodeError):
        connection.writer.close()
    for waiting in connection.calls.values():
        if not waiting.done():
            waiting.set_exception(
                UnavailableError(
                    "the collector went away before it acknowledged the truth",
                    mend="send it again",
                )
            )


def _refusal(reason: list[int | str]) -> HeadraceError:
    """Return the error of [code, text]; a collector of an older release sends the text alone."""
    code, text = reason if len(reason) == 2 else (InvalidArgumentError.code, *reason)
    return _REFUSALS.get(code, InternalError)(str(text))
