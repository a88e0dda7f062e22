"""The order of the past: which events are known and which decisions fall due, minute by minute.

Nothing here talks to anyone. At each decision minute t the clock hands out, first, every event with
created_time ≤ t that was not handed out before, then the decisions of t: so no prediction can see
what was not yet known, and none misses what was (CONTRACTS §1).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import InvalidArgumentError
from server.pb import headrace_pb2 as pb

_TIMES = ("event_time", "created_time")


@dataclass(frozen=True)
class Step:
    """One decision minute: the events to push before it (None: no new ones) and the question."""

    time_us: int
    push: pb.PushRequest | None
    events: int
    predict: pb.PredictRequest
    start: int
    stop: int


def _travel(name: str, kind: pa.DataType) -> tuple[str, Any, pa.DataType, Any]:
    """Return how a column travels: field, message, type on the way, and what stands for null."""
    if pa.types.is_boolean(kind):
        return "bools", pb.BoolValues, pa.bool_(), False
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return "int64s", pb.Int64Values, pa.int64(), 0
    if pa.types.is_floating(kind):
        return "doubles", pb.DoubleValues, pa.float64(), 0.0
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "strings", pb.StringValues, pa.string(), ""
    raise InvalidArgumentError(
        f"column {name!r} cannot travel",
        expected="integers, floats, booleans, times or strings",
        got=str(kind),
    )


class _ColumnValues:
    """One column as Python values, cut cheaply into messages."""

    def __init__(self, name: str, column: Any) -> None:
        self.name = name
        self._field, self._holder, kind, filler = _travel(name, column.type)
        self._nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
        self._values: list[Any] = column.cast(kind).fill_null(filler).to_pylist()

    def cut(self, start: int, stop: int) -> pb.Column:
        """Return rows [start, stop) as a message."""
        values: Any = self._holder(v=self._values[start:stop])
        column = pb.Column(name=self.name, **{self._field: values})
        if self._nulls:
            first, last = bisect_left(self._nulls, start), bisect_left(self._nulls, stop)
            column.nulls.extend(row - start for row in self._nulls[first:last])
        return column


class _Source:
    """The events of one source, in the order in which they became known."""

    def __init__(self, name: str, table: pa.Table) -> None:
        created = table.column("created_time").to_numpy()
        order = np.argsort(created, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            table, created = table.take(order), created[order]
        self.name = name
        self.created_us = created
        self._event_times: list[int] = table.column("event_time").to_numpy().tolist()
        self._created_times: list[int] = created.tolist()
        self._same = self._event_times == self._created_times
        names = [n for n in table.column_names if n not in {*_TIMES, "sequence"}]
        self._columns = [_ColumnValues(n, table.column(n)) for n in names]

    def batch(self, start: int, stop: int) -> pb.EventBatch:
        """Return events [start, stop) as a message; created times travel only where they differ."""
        return pb.EventBatch(
            source=self.name,
            columns=[column.cut(start, stop) for column in self._columns],
            event_times=self._event_times[start:stop],
            created_times=None if self._same else self._created_times[start:stop],
        )


class ReplayClock:
    """Plays event tables and a spine of decisions in time order.

    `sources` maps a source to its events (fields, event_time, created_time; int64 microseconds).
    `spine` holds the decisions ordered by event_time: `inputs` go to the model, `request_id` is the
    column whose text identifies a request.

    Raises InvalidArgumentError when the spine is not in order.
    """

    def __init__(
        self,
        sources: Mapping[str, pa.Table],
        spine: pa.Table,
        *,
        model: str,
        inputs: list[str],
        request_id: str,
    ) -> None:
        self._times = spine.column("event_time").to_numpy()
        if len(self._times) and np.any(np.diff(self._times) < 0):
            raise InvalidArgumentError("the spine must be ordered by event_time", where="replay")
        self._model = model
        self._sources = [_Source(name, table) for name, table in sources.items()]
        self._inputs = [_ColumnValues(name, spine.column(name)) for name in inputs]
        self._ids = [str(value) for value in spine.column(request_id).to_pylist()]
        self._given = [0] * len(self._sources)

    def count(self, before_us: int) -> int:
        """How many events were created before `before_us`."""
        return sum(int(np.searchsorted(s.created_us, before_us)) for s in self._sources)

    def known(self, before_us: int, *, rows_max: int) -> Iterator[tuple[pb.PushRequest, int]]:
        """Hand out, oldest first, every event created before `before_us` in pushes of `rows_max`.

        The rows of one push cover one stretch of time over all sources.
        """
        ends = [int(np.searchsorted(s.created_us, before_us)) for s in self._sources]
        waiting = [
            s.created_us[g:e] for s, g, e in zip(self._sources, self._given, ends, strict=True)
        ]
        times = np.sort(np.concatenate(waiting)) if waiting else np.empty(0, np.int64)
        for first in range(0, len(times), rows_max):
            last = times[min(first + rows_max, len(times)) - 1]
            push, rows = self._take(int(last))
            # Ties at the end of a stretch came with the stretch before.
            if push is not None:
                yield push, rows

    def steps(self) -> Iterator[Step]:
        """Hand out every decision minute in order, each with the events that were new by then."""
        starts = np.flatnonzero(np.diff(self._times, prepend=self._times[:1] - 1))
        stops = [*starts[1:].tolist(), len(self._times)]
        for start, stop in zip(starts.tolist(), stops, strict=True):
            time_us = int(self._times[start])
            push, events = self._take(time_us)
            yield Step(time_us, push, events, self._question(start, stop, time_us), start, stop)

    def question(self, row: int) -> pb.PredictRequest:
        """Return the request of one decision alone."""
        return self._question(row, row + 1, int(self._times[row]))

    def _question(self, start: int, stop: int, time_us: int) -> pb.PredictRequest:
        return pb.PredictRequest(
            model=self._model,
            inputs=[column.cut(start, stop) for column in self._inputs],
            event_time=time_us,
            request_ids=self._ids[start:stop],
        )

    def _take(self, time_us: int) -> tuple[pb.PushRequest | None, int]:
        batches, rows = [], 0
        for index, source in enumerate(self._sources):
            start = self._given[index]
            stop = int(np.searchsorted(source.created_us, time_us, side="right"))
            if stop > start:
                batches.append(source.batch(start, stop))
                self._given[index] = stop
                rows += stop - start
        return (pb.PushRequest(batches=batches) if batches else None), rows
