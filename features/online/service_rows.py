"""A service's rows, without IO: which keys to read, and the features of what was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from features.batch import FeatureBatch
from features.definitions import StreamFeatureView
from features.online.keys import START, Checkpoint, Offset, row_suffix, schema_ids_of
from features.row import NO_TTL, RowCodec, last_known
from features.service import Assembly, CompiledService, ServiceView
from features.types import Table, row_count
from headrace.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from features.online.row_keys import EntityRows, KeyParts, RowKeys
    from features.windows.engine import WindowEngine


class KnownStore(Protocol):
    """A store that is to stay the one it was."""

    store_id: str | None  # of the store that was read from, once one was


@dataclass
class _Lookup:
    """Where the rows of one view are, and how to read them."""

    view: ServiceView
    suffix: bytes
    engine: WindowEngine | None
    codec: RowCodec | None
    ttl_us: int | None


class ServiceRows:
    """The rows of one service in one store.

    schema_ids: the registry's id by view name. Raises FailedPreconditionError when one is missing.
    """

    def __init__(
        self, service: CompiledService, store: KnownStore, schema_ids: Mapping[str, int]
    ) -> None:
        self.service = service
        self._known = store
        self._store_start = b"?"  # how the checkpoint of the store that was read from begins
        # Every join key once: the columns of `KeyParts`.
        self.join_keys = list(dict.fromkeys(k for e in service.entities for k in e.join_keys))
        self._lookups: list[list[_Lookup]] = []
        self._rows: list[EntityRows] = []
        for entity in service.entities:
            # Compiled code is loaded where there are rows to read.
            from features.online.row_keys import EntityRows

            views = [view for view in service.views if view.view.entity is entity]
            lookups = [_lookup(view, schema_ids) for view in views]
            columns = [self.join_keys.index(name) for name in entity.join_keys]
            self._lookups.append(lookups)
            self._rows.append(EntityRows.of(columns, [lookup.suffix for lookup in lookups]))

    @property
    def needs_store(self) -> bool:
        """Whether anything is to be read: else all is in the request."""
        return bool(self._lookups)

    def check_inputs(self, inputs: Table, rows: int) -> Table:
        """Return the request fields of inputs that must have so many rows.

        Raises InvalidArgumentError.
        """
        request = self.service.check_request(inputs)
        given = row_count(inputs, f"service {self.service.name!r}")
        if given != rows:
            raise InvalidArgumentError(
                "event_time is not one a row",
                where=f"service {self.service.name!r}",
                expected=f"{given} times",
                got=rows,
            )
        return request

    def keys_of_inputs(self, inputs: Table) -> RowKeys:
        """Return the keys of the rows that are needed. Raises InvalidArgumentError."""
        from features.online.row_keys import key_parts

        return self.keys_of(key_parts(self.service.entities, inputs))

    def keys_of(self, parts: KeyParts) -> RowKeys:
        """Return the keys of the rows that are needed; `parts` has a column per join key."""
        from features.online.row_keys import row_keys

        return row_keys(parts, self._rows)

    def batch(
        self,
        keys: RowKeys,
        values: list[bytes | None],
        event_time_us: NDArray[np.int64],
        request: Table,
    ) -> FeatureBatch:
        """Return the features of what was read; request: of `check_inputs`.

        Raises UnavailableError (the store was reset), InternalError (a row cannot be read).
        """
        checkpoint = values[0]
        if checkpoint is None or not checkpoint.startswith(self._store_start):
            self.check(checkpoint)
            self._store_start = f"{self._known.store_id}:".encode()
        assembly = self.service.start(len(event_time_us))
        at = 1
        for lookups, places, count in zip(self._lookups, keys.places, keys.counts, strict=True):
            for lookup in lookups:
                _fill(assembly, lookup, values[at : at + count], places, event_time_us)
                at += count
        return assembly.finish(request)

    def reached(self, value: bytes | None, wanted: Offset | None) -> Offset:
        """Return how far the ingester was, as `check` does, for one who waits until it is `wanted`.

        Whoever pushed may be quicker than the first ingester's start: that is a wait.
        """
        if value is None and wanted is not None and self._known.store_id is None:
            return START
        return self.check(value)

    def check(self, value: bytes | None) -> Offset:
        """Return how far the ingester was; refuse a store that is not the one it was."""
        if value is None:
            raise UnavailableError(
                "the store holds no features: it was reset, or no ingester has run yet",
                where="online store",
                mend="start the ingester, and fill the store again",
            )
        checkpoint = Checkpoint.decode(value)
        store = self._known
        if store.store_id is None:
            store.store_id = checkpoint.store_id
        elif store.store_id != checkpoint.store_id:
            raise UnavailableError(
                "the store was reset: what it held is gone, and missing must not be served as 0",
                where="online store",
                mend="fill it again, then restart this worker",
            )
        return checkpoint.offset


def service_schema_ids(service: CompiledService, catalog: Sequence[bytes]) -> dict[str, int]:
    """Return the schema id of each view of a service; catalog: the reply to an HGETALL of it.

    Raises UnavailableError for a view that no ingester feeds.
    """
    found = schema_ids_of(catalog, [entry.view.hash for entry in service.views])
    ids = {}
    for entry in service.views:
        if entry.view.hash not in found:
            raise UnavailableError(
                f"view '{entry.view.name}' of service '{service.name}' is not in the store yet",
                mend="apply its definitions, and let an ingester run",
            )
        ids[entry.view.name] = found[entry.view.hash]
    return ids


def _lookup(service_view: ServiceView, schema_ids: Mapping[str, int]) -> _Lookup:
    view = service_view.view
    schema_id = schema_ids.get(view.name)
    if schema_id is None:
        raise FailedPreconditionError(
            f"view {view.name!r} has no schema id",
            where="feature reader",
            mend="apply the definitions first",
        )
    suffix = row_suffix(view.name, schema_id)
    if isinstance(view, StreamFeatureView):
        # Its compiled code is loaded where there are windows.
        from features.windows.engine import WindowEngine

        return _Lookup(service_view, suffix, WindowEngine(view, schema_id), None, None)
    import features.last_known  # noqa: F401 - compiled, or loaded, before the first read

    return _Lookup(service_view, suffix, None, RowCodec.of_view(view, schema_id), view.ttl_us)


def _fill(
    assembly: Assembly,
    lookup: _Lookup,
    values: list[bytes | None],
    index: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
) -> None:
    """Put one view's features into the assembly; index: each row's place in `values`, or -1."""
    if lookup.engine is not None:
        lookup.engine.query_into(
            values, event_time_us, assembly.words, assembly.status, lookup.view.targets, index
        )
        return
    assert lookup.codec is not None
    if not lookup.view.variables and _read_piles(assembly, lookup, values, index, event_time_us):
        return
    places = index.tolist()
    stored = [None if place < 0 else values[place] for place in places]
    rows, status = last_known(stored, event_time_us.tolist(), lookup.ttl_us)
    assembly.put_rows(lookup.view, lookup.codec.unpack(rows), status)


def _read_piles(
    assembly: Assembly,
    lookup: _Lookup,
    values: list[bytes | None],
    index: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
) -> bool:
    """Put a last-known view's features into the assembly; False when a pile cannot be read."""
    from features.last_known import joined_piles, read_piles

    assert lookup.codec is not None
    joined, lengths = joined_piles(values)
    ttl_us = NO_TTL if lookup.ttl_us is None else lookup.ttl_us
    bad = read_piles(
        joined, lengths, index, event_time_us, ttl_us, lookup.codec.schema_id, lookup.view.targets,
        assembly.words, assembly.status,
    )  # fmt: skip
    return int(bad) < 0
