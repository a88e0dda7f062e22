"""The collector: `python -m server.collector '{"data_dir": …, "socket": …}'`.

It owns `log/` and `wal/` (CONTRACTS §2). Workers send log batches, which are not answered, and
truth, which is answered only after fsync (`server.frames`). It exits 0 on SIGTERM, after it has
taken what its workers had sent and put it on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
import pyarrow as pa

from headrace.errors import HeadraceError, InvalidArgumentError
from monitor.log import LogWriter
from monitor.schema import as_received
from monitor.truth import Truth, TruthLog
from server import frames, logs
from server.processes.log_buffer import LogBuffer
from server.processes.sequences import Sequences
from server.processes.truth_commits import TruthCommits

_LOG = logging.getLogger("headrace")

# How long open connections may still send after SIGTERM. The supervisor ends the workers first, so
# that they are closed by then and only what lies in the sockets is to be read.
_LAST_WORDS_S = 2.0
# A worker that leaves this much of its answers unread hangs.
_UNREAD_BYTES_MAX = 1024 * 1024

# The counters that say that something went wrong.
_TROUBLE = (
    "log_rows_lost",
    "log_rows_dropped",
    "truths_refused",
    "frames_malformed",
    "connections_torn",
)

_CALL = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_TRUTHS = msgspec.msgpack.Decoder(list[tuple[bytes, str, float, int, str]])


class CollectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON in argv[1]."""

    data_dir: str
    socket: str


class Collector:
    """One collector on one data folder; `metrics` counts everything, drops first of all."""

    def __init__(self, data_dir: Path) -> None:
        self._writer = LogWriter(data_dir / "log")
        self._truth_log = TruthLog(data_dir / "wal")
        self._sequences = Sequences()
        self._buffer = LogBuffer(self._writer.write)
        self._commits = TruthCommits(self._truth_log.append)
        self._rows = 0
        self._malformed = 0
        self._torn = 0
        self._connections: set[asyncio.Task[None]] = set()

    def metrics(self) -> dict[str, int]:
        """Return the counters since the start."""
        return {
            "log_rows_received": self._rows,
            "log_rows_lost": self._sequences.lost,
            "log_rows_repeated": self._sequences.repeated,
            "log_rows_dropped": self._buffer.rows_dropped + self._writer.rows_dropped,
            "log_rows_written": self._writer.rows_written,
            "log_files_written": self._writer.files_written,
            "worker_restarts": self._sequences.restarts,
            "truths_accepted": self._commits.accepted,
            "truths_refused": self._commits.refused,
            "frames_malformed": self._malformed,
            "connections_torn": self._torn,
        }

    async def run(self, socket: str, stop: asyncio.Event) -> None:
        """Serve on the unix socket until `stop`; then write and commit everything taken."""
        tasks = [asyncio.create_task(self._buffer.run()), asyncio.create_task(self._commits.run())]
        os.umask(0o077)  # the socket is this user's alone
        server = await asyncio.start_unix_server(self._connected, socket)
        sys.stdout.write(json.dumps({"event": "ready", "socket": socket}) + "\n")
        sys.stdout.flush()
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()
        self._commits.close()
        self._buffer.close()
        await asyncio.gather(*tasks)
        self._truth_log.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while True:
                kind, payload = await frames.read_frame(reader)
                self._take(kind, payload, writer)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                self._torn += 1
        except ConnectionError:
            self._torn += 1
        except HeadraceError as error:
            # The stream is out of step or the peer is no worker: this connection alone ends.
            self._malformed += 1
            _LOG.error("a connection is closed: %s", error)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _take(self, kind: int, payload: bytes, writer: asyncio.StreamWriter) -> None:
        if kind == frames.LOG:
            self._take_log(payload)
        elif kind == frames.TRUTH:
            self._take_truth(payload, writer)
        else:
            raise InvalidArgumentError("unknown kind of frame", expected="1 or 2", got=kind)

    def _take_log(self, payload: bytes) -> None:
        try:
            with pa.ipc.open_stream(payload) as stream:
                batches = [as_received(batch) for batch in stream]
                metadata = stream.schema.metadata or {}
            worker, first, rows = (
                int(metadata[key]) for key in (b"worker", b"first_sequence", b"rows")
            )
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise InvalidArgumentError(f"not a log batch: {type(error).__name__}") from None
        missing = self._sequences.observe(worker, metadata.get(b"start"), first, rows)
        if missing is None:
            _LOG.info("%d log rows of worker %d came twice; one copy is kept", rows, worker)
            return
        if missing:
            _LOG.warning("%d log rows of worker %d never arrived", missing, worker)
        for batch in batches:
            self._rows += batch.num_rows
            self._buffer.add(batch.replace_schema_metadata(None))

    def _take_truth(self, payload: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            call, raw = _CALL.decode(payload)
        except msgspec.DecodeError:
            raise InvalidArgumentError("not a truth call") from None
        # When the system could first know it: now, whatever the event's own time.
        created_us = time.time_ns() // 1000
        try:
            truths = [
                Truth(
                    prediction_id=prediction_id,
                    name=name,
                    value=value,
                    event_time_us=event_us,
                    created_time_us=created_us,
                    source=source,
                )
                for prediction_id, name, value, event_us, source in _TRUTHS.decode(raw)
            ]
        except msgspec.DecodeError as error:
            _reply(writer, call, 0, InvalidArgumentError(f"not a list of truths: {error}"))
            return
        self._commits.submit(truths, lambda error: _reply(writer, call, len(truths), error))


def _reply(
    writer: asyncio.StreamWriter, call: int, accepted: int, error: HeadraceError | None
) -> None:
    if writer.is_closing():
        return  # the worker is gone; what it sent is on disk all the same
    answer = [call, accepted] if error is None else [call, error.code, error.message]
    kind = frames.TRUTH_OK if error is None else frames.TRUTH_ERROR
    writer.write(frames.frame(kind, msgspec.msgpack.encode(answer)))
    if writer.transport.get_write_buffer_size() > _UNREAD_BYTES_MAX:
        writer.transport.abort()


async def _main(config: CollectorConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    collector = Collector(Path(config.data_dir))
    try:
        await collector.run(config.socket, stop)
    finally:
        counters = collector.metrics()
        if any(counters[name] for name in _TROUBLE):
            _LOG.info("counters %s", json.dumps(counters))


def main() -> int:
    """Run until SIGTERM; 1 when it cannot start (another collector holds the folder)."""
    logs.setup("collector")
    try:
        asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=CollectorConfig)))
    except HeadraceError as error:
        _LOG.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
