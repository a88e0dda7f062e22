"""Training sets that do not fit into memory: the rows and bits of `get_historical_features`.

Spine and histories are cut by entity into buckets on disk; so many buckets as fit are joined at a
time; what they give goes to disk and is put together chunk by chunk, in the order of the spine.
A join hangs on the events of one entity only, so it comes out the same however things are cut.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrow import column_from_arrow, times_from_arrow
from features.batch import FeatureBatch
from features.offline.buckets import Buckets, parts_of
from features.offline.history import History, Joins, Progress, columns_of
from features.offline.reach import reach_of
from features.offline.results import Results
from features.offline.source_rows import row_schema
from features.offline.spine import Spine
from features.offline.store import OfflineStore
from features.service import CompiledService, ServiceView
from features.sources import Entity, Source
from headrace.errors import InvalidArgumentError

MEMORY_BYTES = 1 << 30
# What a byte of events takes while they are joined: themselves, their ids, words and order.
_EVENTS_FACTOR = 4
# What a row of the spine takes beside its features: times, ids, order, and itself.
_ROW_BYTES = 96
# No name of a join key has such a sign.
_ROW = "#row"


class _Group(NamedTuple):
    """The views of one source and one entity: they are joined together."""

    entity: Entity
    source: Source
    views: list[ServiceView]


def write_historical_features(
    spine: pa.Table | Path,
    service: CompiledService,
    store: OfflineStore,
    out: Path,
    *,
    memory_bytes: int = MEMORY_BYTES,
    statuses: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the spine with its features (see `FeatureBatch.to_arrow`) as Parquet; return its rows.

    spine: as of `get_historical_features`, or a Parquet file or a folder of them. Every column of
    it is kept; rows keep their order and number. `out` appears when it is whole.
    memory_bytes: about what the join may take, beside 350 MB for the libraries and the reading of
    files; the events of one in 128 of the entities must fit into it. Beside `out`,
    the disk takes for a while about what the spine's keys, the histories' columns and the result
    take.
    Raises as `get_historical_features` does, and InvalidArgumentError for a column of the spine
    that is called like a feature.
    """
    rows = 0
    whole = Spine(spine)
    partial = out.with_name(f"{out.name}.partial")
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder,
        contextlib.ExitStack() as stack,
    ):
        writer: pq.ParquetWriter | None = None
        for table in _tables(whole, service, store, Path(folder), memory_bytes, statuses, progress):
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(partial, table.schema, compression="zstd")
                )
            writer.write_table(table)
            rows += table.num_rows
    partial.replace(out)
    return rows


def _tables(
    spine: Spine,
    service: CompiledService,
    store: OfflineStore,
    folder: Path,
    memory_bytes: int,
    statuses: bool,
    progress: Progress | None,
) -> Iterator[pa.Table]:
    """Yield the spine with its features; one table at least."""
    none = True
    for chunk, batch in historical_batches(
        spine, service, store, folder, memory_bytes=memory_bytes, progress=progress
    ):
        none = False
        yield with_features(chunk, batch, statuses=statuses)
    if none:
        empty = service.start(0).finish({})
        yield with_features(spine.schema.empty_table(), empty, statuses=statuses)


def with_features(spine: pa.Table, batch: FeatureBatch, *, statuses: bool = False) -> pa.Table:
    """Return the spine's columns and then the features. Raises for a name that both have."""
    features = batch.to_arrow(statuses=statuses)
    for name in features.column_names:
        if name in spine.column_names:
            raise InvalidArgumentError(
                f"column {name!r} is called like a feature",
                where="spine",
                mend="rename it, or leave it out",
            )
        spine = spine.append_column(name, features[name])
    return spine


def historical_batches(
    spine: Spine,
    service: CompiledService,
    store: OfflineStore,
    folder: Path,
    *,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> Iterator[tuple[pa.Table, FeatureBatch]]:
    """Yield the spine's chunks, each with its features; in their order.

    folder: an empty one, for what does not fit into memory. Raises as `get_historical_features`.
    """
    tell: Progress = (lambda _, __: None) if progress is None else progress
    tell("spine", 0.0)
    t_us = _span(spine)
    groups = _groups(service)
    with contextlib.ExitStack() as stack:
        results: list[Results] = []
        queries: dict[Entity, Buckets] = {}
        for number, group in enumerate(groups):
            tell(group.source.name, number / (len(groups) + 1))
            result = Results(folder / f"result-{number}.arrow", group.views, spine.chunk_rows)
            stack.callback(result.close)
            join = _Join(service, group, memory_bytes)
            if group.entity not in queries:
                queries[group.entity] = join.cut_spine(spine, folder / f"spine-{len(queries)}")
            names = columns_of(group.source, group.views)
            reach = reach_of(group.source, [view.view for view in group.views], t_us)
            events = join.cut_history(
                store.batches(group.source, names, reach), folder / f"events-{number}"
            )
            join.run(events, names, queries[group.entity], result)
            shutil.rmtree(folder / f"events-{number}")
            result.finish_writing()
            results.append(result)
        rows = 0
        for number, chunk in enumerate(spine.chunks()):
            assembly = service.start(chunk.num_rows)
            for result in results:
                result.put_chunk(number, assembly)
            request = {
                name: column_from_arrow(chunk, name, dtype, "spine")
                for name, dtype in service.request_fields.items()
            }
            yield chunk, assembly.finish(request)
            rows += chunk.num_rows
            done = (len(groups) + rows / spine.rows) / (len(groups) + 1)
            tell("features", done)
    tell("features", 1.0)


def _span(spine: Spine) -> NDArray[np.int64]:
    """Return the first and the last time of the spine; nothing of an empty one."""
    spans = []
    for chunk in spine.chunks(["event_time"]):
        t_us = times_from_arrow(chunk, "event_time", "spine")
        spans += [t_us.min(), t_us.max()]
    return np.array([min(spans), max(spans)] if spans else [], np.int64)


def _groups(service: CompiledService) -> list[_Group]:
    groups: dict[tuple[Entity, Source], _Group] = {}
    for view in service.views:
        key = (view.view.entity, view.view.source)
        groups.setdefault(key, _Group(*key, [])).views.append(view)
    return list(groups.values())


class _Join:
    """The join of one group, bucket by bucket."""

    def __init__(self, service: CompiledService, group: _Group, memory_bytes: int) -> None:
        self._service = service
        self._group = group
        # Half is for what is joined at a time; the rest for its copies and what is cut.
        self._part_bytes = memory_bytes // 2
        self._buffer_bytes = memory_bytes // 8
        self._row_bytes = _ROW_BYTES + 9 * service.assembly_columns

    def cut_spine(self, spine: Spine, folder: Path) -> Buckets:
        """Cut what a join needs of the spine into buckets."""
        numbered = _numbered(spine.chunks([*self._group.entity.join_keys, "event_time"]))
        return self._cut(numbered, "spine", folder)

    def cut_history(self, history: Iterable[pa.Table], folder: Path) -> Buckets:
        """Cut a history into buckets."""
        return self._cut(history, f"history of source {self._group.source.name!r}", folder)

    def _cut(self, tables: Iterable[pa.Table], where: str, folder: Path) -> Buckets:
        buckets = Buckets(folder)
        buckets.fill(self._group.entity, tables, where, self._buffer_bytes)
        return buckets

    def run(self, events: Buckets, names: Sequence[str], rows: Buckets, result: Results) -> None:
        """Join all rows of the spine with the events; keep what comes of it in `result`."""
        source = self._group.source
        costs = [
            _EVENTS_FACTOR * size + count * self._row_bytes
            for size, count in zip(events.size_bytes, rows.rows, strict=True)
        ]
        nothing = row_schema(source, names).empty_table()
        for first, end in parts_of(costs, self._part_bytes):
            if any(rows.rows[first:end]):
                history = History(source, pa.concat_tables([nothing, *events.read(first, end)]))
                self._join(history, pa.concat_tables(list(rows.read(first, end))), result)

    def _join(self, history: History, spine: pa.Table, result: Results) -> None:
        """Join a part: all events of its entities, and its rows in slices that fit."""
        # A bucket each has its rows in order, several have not.
        spine = spine.sort_by(_ROW)
        slice_rows = max(self._part_bytes // self._row_bytes, 1)
        for start in range(0, spine.num_rows, slice_rows):
            rows = spine.slice(start, slice_rows)
            t_us = times_from_arrow(rows, "event_time", "spine")
            assembly = self._service.start(rows.num_rows)
            joins = Joins(rows, t_us, assembly)
            for view in self._group.views:
                joins.fill(view, history)
            result.append(np.asarray(rows[_ROW]), assembly)


def _numbered(chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    first = 0
    for chunk in chunks:
        numbers = np.arange(first, first + chunk.num_rows)
        first += chunk.num_rows
        yield chunk.append_column(_ROW, pa.chunked_array([numbers]))
