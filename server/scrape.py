"""The metrics of all workers of a machine, at the port of any of them (decision 0013).

Who is scraped asks the others on their unix sockets. A worker answers with its families as text:
nobody reads the samples of another, they are put together family by family. Who does not answer in
time is left out, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from server.metrics import Metric, Part, Sample, exposition, parts_of

# A worker whose loop is this late has other worries; Prometheus itself waits for ten seconds.
_ANSWER_TIMEOUT_S = 1.0
_ANSWER_BYTES_MAX = 64 * 1024 * 1024
_READ_BYTES = 256 * 1024


class Portion(msgspec.Struct, frozen=True, array_like=True):
    """What one worker counted. `started_ns` is when it started (monotonic, of the machine)."""

    worker: int
    started_ns: int
    parts: list[Part]


class Scrape:
    """One worker's end. `own` says what it counted; `paths` are the sockets of all, its own too."""

    def __init__(
        self, own: Callable[[], Awaitable[Portion]], paths: Sequence[Path], at: int
    ) -> None:
        self._own = own
        self._path = paths[at] if paths else None
        self._others = [path for place, path in enumerate(paths) if place != at]
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer the others from here on. Raises OSError."""
        if self._path is None:
            return
        self._path.unlink(missing_ok=True)  # of a run that was killed
        self._server = await asyncio.start_unix_server(self._answer, self._path)
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Answer no more."""
        if self._server is None or self._path is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)

    async def text(self, extra: Sequence[Metric]) -> bytes:
        """Return the exposition of all workers, and of `extra`."""
        found = await asyncio.gather(self._own(), *map(_ask, self._others))
        portions = [portion for portion in found if portion is not None]
        silent = len(found) - len(portions)
        text = "Workers whose metrics are missing here, as they did not answer within a second"
        told = Metric("headrace_workers_silent", "gauge", text, [Sample(silent)])
        shared = await parts_of([*extra, told])
        return exposition([*joined(portions), *shared])

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(msgspec.msgpack.encode(await self._own()))
            await writer.drain()
        writer.close()


def joined(portions: Sequence[Portion]) -> list[Part]:
    """Return the parts of all workers; of two of one number the newer one has its name.

    The older one drains: its counters go on under another name, so that those of the name begin
    anew once, as those of a process that was started again do.
    """
    newest: dict[int, int] = {}
    for portion in portions:
        newest[portion.worker] = max(portion.started_ns, newest.get(portion.worker, 0))
    parts: list[Part] = []
    for portion in portions:
        if portion.started_ns == newest[portion.worker]:
            parts += portion.parts
            continue
        # Of a value the quotes are escaped: what stands so is a label.
        label, other = (f'worker="{portion.worker}{end}"'.encode() for end in ("", "-draining"))
        parts += [part._replace(lines=part.lines.replace(label, other)) for part in portion.parts]
    return parts


_NOBODY = Portion(-1, 0, [])


async def _ask(path: Path) -> Portion | None:
    """Return what the worker of a socket counted, nothing where there is none; None: no answer."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                data = await _read_all(reader)
            finally:
                writer.close()
        return msgspec.msgpack.decode(data, type=Portion)
    except (FileNotFoundError, ConnectionRefusedError):
        return _NOBODY  # the place is free, or whoever had it was killed
    except (OSError, TimeoutError, msgspec.DecodeError):
        return None


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while piece := await reader.read(_READ_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > _ANSWER_BYTES_MAX:
            raise OSError("an answer without end")
    return b"".join(pieces)
