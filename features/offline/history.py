"""Training sets: the features of a service as they were known at each row's time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import column_from_arrow, times_from_arrow
from features.batch import FeatureBatch
from features.definitions import FeatureView, StreamFeatureView
from features.offline.integer_ids import SpineKeys
from features.offline.join import last_known_rows, order_rows, put_last_known
from features.offline.reach import reach_of
from features.offline.store import OfflineStore
from features.online.payload import EventBatch
from features.row import NO_TTL, Rows
from features.service import Assembly, CompiledService, ServiceView
from features.sources import Entity, Source
from features.types import Column, DType, FeatureStatus, Table
from features.windows.engine import WindowEngine
from features.windows.events import event_words, field_words

Progress = Callable[[str, float], None]


@dataclass
class History:
    """The events of one source, with what is worked out once for all of its views."""

    source: Source
    events: pa.Table

    @property
    def where(self) -> str:
        """How an error names this history."""
        return f"history of source {self.source.name!r}"

    @cached_property
    def event_time_us(self) -> NDArray[np.int64]:
        """The event times, int64[n] UTC microseconds."""
        return times_from_arrow(self.events, "event_time", self.where)

    @cached_property
    def created_time_us(self) -> NDArray[np.int64]:
        """The created times, int64[n] UTC microseconds."""
        return times_from_arrow(self.events, "created_time", self.where)

    @cached_property
    def sequence(self) -> NDArray[np.int64]:
        """What decides between events of equal times, int64[n]."""
        return times_from_arrow(self.events, "sequence", self.where)

    def table(self, names: Iterable[str]) -> Table:
        """Return fields of the events by name."""
        return {
            name: column_from_arrow(self.events, name, self.source.dtypes[name], self.where)
            for name in names
        }

    def batch(self, names: Iterable[str]) -> EventBatch:
        """Return the events with these fields, as they would be pushed."""
        columns = self.table(names)
        return EventBatch(self.source.name, columns, self.event_time_us, self.created_time_us)


def get_historical_features(
    spine: pa.Table,
    service: CompiledService,
    store: OfflineStore,
    progress: Progress | None = None,
) -> FeatureBatch:
    """Return the features of every row of the spine as they were known at its `event_time`.

    spine: the join keys and request fields of the service, and `event_time` (int64 UTC
    microseconds or a timestamp with a zone); other columns are ignored; rows keep their order and
    number. `progress` is told the view at work and the share done.
    Raises InvalidArgumentError for a column that is missing or of a wrong type, NotFoundError for
    a source without history.
    """
    t_us = times_from_arrow(spine, "event_time", "spine")
    request = {
        name: column_from_arrow(spine, name, dtype, "spine")
        for name, dtype in service.request_fields.items()
    }
    histories: dict[str, History] = {}
    assembly = service.start(len(t_us))
    joins = Joins(spine, t_us, assembly)
    for done, view in enumerate(service.views):
        if progress is not None:
            progress(view.view.name, done / len(service.views))
        source = view.view.source
        if source.name not in histories:
            names = columns_of(source, service.views)
            reach = reach_of(source, [one.view for one in service.views], t_us)
            histories[source.name] = History(source, store.rows(source, names, reach))
        joins.fill(view, histories[source.name])
    batch = assembly.finish(request)
    if progress is not None:
        progress("on-demand", 1.0)
    return batch


def columns_of(source: Source, views: Iterable[ServiceView]) -> list[str]:
    """Return the columns of a source that those of the views read which are of it."""
    names: dict[str, None] = {}
    for one in views:
        if one.view.source is source:
            names.update(dict.fromkeys(one.view.entity.join_keys))
            names.update(dict.fromkeys(one.view.fields))
    return list(names)


class Joins:
    """Fills the views of an assembly, whose rows are the spine's, from histories."""

    def __init__(self, spine: pa.Table, t_us: NDArray[np.int64], assembly: Assembly) -> None:
        self._spine = spine
        self._t_us = t_us
        self._assembly = assembly
        self._keys: dict[Entity, SpineKeys] = {}

    def fill(self, view: ServiceView, history: History) -> None:
        """Fill a view from its history."""
        entity = view.view.entity
        if entity not in self._keys:
            self._keys[entity] = SpineKeys(entity, self._spine)
        keys, query_keys = self._keys[entity].join(history.events, history.where)
        if isinstance(view.view, StreamFeatureView):
            self._fill_windows(view, view.view, history, keys, query_keys)
            return
        groups = int(max(keys.max(initial=-1), query_keys.max(initial=-1))) + 1
        seen = order_rows(
            keys, history.event_time_us, history.created_time_us, history.sequence, groups
        )
        rows = last_known_rows(seen, query_keys, self._t_us)
        if view.variables:
            _put_last_known(view, view.view, history, rows, self._t_us, self._assembly)
            return
        fields = history.table(list(view.view.fields))
        words, valid = field_words(view.view.feature_dtypes, fields, len(keys))
        ttl_us = NO_TTL if view.view.ttl_us is None else view.view.ttl_us
        put_last_known(
            rows, history.event_time_us, self._t_us, ttl_us, words, valid,
            view.targets, self._assembly.words, self._assembly.status,
        )  # fmt: skip

    def _fill_windows(
        self,
        view: ServiceView,
        definition: StreamFeatureView,
        history: History,
        keys: NDArray[np.int64],
        query_keys: NDArray[np.int64],
    ) -> None:
        words, valid = event_words(definition, history.table(definition.fields), len(keys))
        WindowEngine(definition).history_into(
            keys,
            history.event_time_us,
            history.created_time_us,
            words,
            valid,
            query_keys,
            self._t_us,
            self._assembly.words,
            self._assembly.status,
            view.targets,
        )


def _put_last_known(
    view: ServiceView,
    definition: FeatureView,
    history: History,
    rows: NDArray[np.int64],
    t_us: NDArray[np.int64],
    assembly: Assembly,
) -> None:
    found = rows >= 0
    status = np.where(found, FeatureStatus.PRESENT, FeatureStatus.NOT_FOUND).astype(np.uint8)
    taken = np.maximum(rows, 0)

    def take(values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(found, values[taken], 0) if len(values) else np.zeros_like(rows)

    event_time_us = take(history.event_time_us)
    if definition.ttl_us is not None:
        expired = found & (t_us - event_time_us > definition.ttl_us)
        status[expired] = FeatureStatus.EXPIRED
        found &= ~expired
    fields: Table = {}
    for name, column in history.table(list(definition.fields)).items():
        dtype = definition.feature_dtypes[name]
        picked = (column if len(column) else _nothing(dtype)).take(taken)
        fields[name] = Column(picked.values, found & picked.mask)
    assembly.put_rows(
        view,
        Rows(found, event_time_us, take(history.created_time_us), take(history.sequence), fields),
        status,
    )


def _nothing(dtype: DType) -> Column:
    """One null, for rows to point at when there is no history."""
    return Column(np.zeros(1, dtype=dtype.numpy), np.zeros(1, dtype=np.bool_))
