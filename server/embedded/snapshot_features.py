"""Features of a Predictor: read from a snapshot, as the server reads them from its store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features import CompiledService, FeatureBatch, Table
from features.online.reader import ServiceReader
from features.snapshots.file import Snapshot
from headrace.errors import FailedPreconditionError

if TYPE_CHECKING:
    from features.online.progress import Progress
    from features.online.row_keys import RowKeys


class SnapshotFeatures:
    """Implements `server.predict.Features` for one service, None where the model has none."""

    def __init__(self, service: CompiledService | None) -> None:
        self._service = service
        self._reader: ServiceReader | None = None
        self.snapshot: Snapshot | None = None
        self.last: FeatureBatch | None = None  # what was read last
        if service is not None:
            unknown = {entry.view.name: 0 for entry in service.views}
            self._reader = ServiceReader(service, _NoSnapshot(), unknown)

    def use(self, snapshot: Snapshot) -> None:
        """Read from this snapshot. Raises FailedPreconditionError where it lacks a view."""
        if self._service is not None:
            self._reader = ServiceReader(
                self._service, snapshot, _schema_ids(self._service, snapshot)
            )
        self.snapshot = snapshot

    async def read(
        self,
        service: CompiledService,
        inputs: Table,
        event_time_us: npt.NDArray[np.int64],
        min_offset: str | None,
        deadline_ns: int,
    ) -> FeatureBatch:
        """Return the rows' features as of their event times. Raises what `ServiceReader` raises,
        FailedPreconditionError where a view is to be read and there is no snapshot."""
        assert self._reader is not None, "a model without a service reads no features"
        self.last = await self._reader.read(
            inputs, event_time_us, min_offset, deadline_ns, time.monotonic_ns
        )
        return self.last


def _schema_ids(service: CompiledService, snapshot: Snapshot) -> dict[str, int]:
    found = {}
    for entry in service.views:
        schema_id = snapshot.schema_ids.get(entry.view.hash)
        if schema_id is None:
            raise FailedPreconditionError(
                f"the snapshot has not view '{entry.view.name}' as the model's definitions have it",
                where=f"feature service '{service.name}'",
                mend="take one for this bundle: headrace features snapshot",
            )
        found[entry.view.name] = schema_id
    return found


class _NoSnapshot:
    """In place of a snapshot that was not given: a service that reads none never asks for it."""

    store_id: str | None = None

    @property
    def progress(self) -> Progress:
        """Raise FailedPreconditionError."""
        raise self._error()

    async def get_rows(self, keys: RowKeys) -> list[bytes | None]:
        """Raise FailedPreconditionError."""
        raise self._error()

    @staticmethod
    def _error() -> FailedPreconditionError:
        return FailedPreconditionError(
            "the model's features need a snapshot",
            mend="give Predictor(…, snapshot=…) a file of `headrace features snapshot`",
        )
