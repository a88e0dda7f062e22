"""Reads of one tick as one: whoever asks a service in the same turn of the loop shares a read.

A read of one row costs the way to the store and some twenty small steps; a read of thirty-two rows
costs little more. Rows of a call do not depend on each other, so neither do those of many calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.batch import FeatureBatch
from features.online.reader import STORE_BOUND_NS, Now, ServiceReader
from features.online.store import AskedRows, OnlineStore
from features.service import CompiledService
from features.types import Table, joined
from headrace.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError

if TYPE_CHECKING:
    from features.online.row_keys import KeyParts, RowKeys

Done = Callable[[FeatureBatch | Exception], None]

# A call of more rows than this is worth a read of its own.
ROWS_OF_A_CALL_MAX = 32
ROWS_OF_A_READ_MAX = 512
# Nobody waits this long; each call has a deadline of its own.
_PATIENCE_NS = 60 * 1_000_000_000


class _Call(NamedTuple):
    inputs: Table
    event_time_us: NDArray[np.int64]
    done: asyncio.Future[FeatureBatch]


class TickReader:
    """A `ServiceReader` that merges what one tick asks. Belongs to one event loop."""

    def __init__(self, reader: ServiceReader, store: OnlineStore) -> None:
        self._reader = reader
        self._store = store
        self._waiting: list[_Call] = []
        self._alone: set[asyncio.Task[None]] = set()

    @property
    def service(self) -> CompiledService:
        """The service that it reads."""
        return self._reader.service

    @property
    def join_keys(self) -> list[str]:
        """Of which there is a column each in `KeyParts`."""
        return self._reader.join_keys

    def ask(
        self,
        parts: KeyParts,
        event_time_us: NDArray[np.int64],
        done: Done,
        request: Table | None = None,
    ) -> bool:
        """Read the rows of calls that are put together already.

        `done` gets their features in a later turn, or what `ServiceReader.batch` and the store
        raise. request: the fields that the service takes from its requests. Returns False, and
        does nothing, where the store is to be connected first.
        """
        store = self._store
        if not store.connected:
            return False
        keys = self._reader.keys_of(parts)
        asked = store.ask_rows(keys)
        asked.reply.add_done_callback(
            lambda _: done(self._found(keys, asked, event_time_us, request or {}))
        )
        return True

    def _found(
        self, keys: RowKeys, asked: AskedRows, event_time_us: NDArray[np.int64], request: Table
    ) -> FeatureBatch | Exception:
        try:
            return self._reader.batch(keys, self._store.rows_of(asked), event_time_us, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            return error

    async def read(
        self,
        inputs: Table,
        event_time_us: NDArray[np.int64],
        min_offset: str | None,
        deadline_ns: int,
        now_ns: Now,
    ) -> FeatureBatch:
        """Return the features of every row: see `ServiceReader.read`, whose errors these are."""
        left_ns = deadline_ns - now_ns()
        if (
            min_offset
            or len(event_time_us) > ROWS_OF_A_CALL_MAX
            or left_ns <= 0
            or not self.join_keys
        ):
            return await self._reader.read(inputs, event_time_us, min_offset, deadline_ns, now_ns)
        loop = asyncio.get_running_loop()
        call = _Call(inputs, event_time_us, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._start, now_ns)
        self._waiting.append(call)
        if left_ns > STORE_BOUND_NS:  # the store's own timeouts come first
            return await call.done
        timer = loop.call_later(left_ns / 1e9, _give_up, call.done)
        try:
            return await call.done
        finally:
            timer.cancel()

    def _start(self, now_ns: Now) -> None:
        """Read for everybody who has asked in this tick."""
        waiting, self._waiting = self._waiting, []
        group: list[_Call] = []
        rows = 0
        for call in waiting:
            if rows + len(call.event_time_us) > ROWS_OF_A_READ_MAX:
                self._start_group(group, now_ns)
                group, rows = [], 0
            group.append(call)
            rows += len(call.event_time_us)
        self._start_group(group, now_ns)

    def _start_group(self, group: list[_Call], now_ns: Now) -> None:
        calls = [call for call in group if not call.done.done()]
        if not calls:
            return
        try:
            started = _are_alike(calls) and self._ask(calls, now_ns)
        except Exception:  # noqa: BLE001 - each hears of its own by a read of its own
            started = False
        if not started:
            self._read_each(calls, now_ns)

    def _ask(self, calls: list[_Call], now_ns: Now) -> bool:
        from features.online.row_keys import key_parts

        inputs = _joined(calls)
        request = self.service.check_request(inputs)
        parts = key_parts(self.service.entities, inputs)
        times = np.concatenate([call.event_time_us for call in calls])
        return self.ask(parts, times, partial(self._hand_out, calls, now_ns), request)

    def _hand_out(self, calls: list[_Call], now_ns: Now, found: FeatureBatch | Exception) -> None:
        if isinstance(found, UnavailableError | ResourceExhaustedError):
            for call in calls:
                if not call.done.done():
                    call.done.set_exception(found)
            return
        if isinstance(found, Exception):  # somebody's fault is not the others'
            self._read_each(calls, now_ns)
            return
        start = 0
        for call in calls:
            end = start + len(call.event_time_us)
            if not call.done.done():
                call.done.set_result(found.take(slice(start, end)))
            start = end

    def _read_each(self, calls: Sequence[_Call], now_ns: Now) -> None:
        for call in calls:
            if not call.done.done():
                # The loop itself holds tasks weakly.
                task = asyncio.get_running_loop().create_task(self._read_alone(call, now_ns))
                self._alone.add(task)
                task.add_done_callback(self._alone.discard)

    async def _read_alone(self, call: _Call, now_ns: Now) -> None:
        deadline_ns = now_ns() + _PATIENCE_NS
        try:
            batch = await self._reader.read(
                call.inputs, call.event_time_us, None, deadline_ns, now_ns
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
            if not call.done.done():
                call.done.set_exception(error)
        else:
            if not call.done.done():
                call.done.set_result(batch)


def _give_up(done: asyncio.Future[FeatureBatch]) -> None:
    if not done.done():
        done.set_exception(
            DeadlineExceededError("the features were not read in time", where="online store")
        )


def _are_alike(calls: Sequence[_Call]) -> bool:
    """Whether the inputs have the same columns of the same types, each with a value for a row."""
    first = {name: column.values.dtype for name, column in calls[0].inputs.items()}
    for call in calls:
        rows = len(call.event_time_us)
        if call.inputs.keys() != first.keys():
            return False
        for name, column in call.inputs.items():
            if column.values.dtype != first[name] or len(column.values) != rows:
                return False
    return True


def _joined(calls: Sequence[_Call]) -> Table:
    if len(calls) == 1:
        return calls[0].inputs
    return {name: joined([call.inputs[name] for call in calls]) for name in calls[0].inputs}
