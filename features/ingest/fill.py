"""Filling a view from history: what its rows would have, had it been there from the beginning.

A view that is new to a store with a history gets from the stream what comes after its cut. What
came before, the filler adds behind the stream's writes: windows and last known values do not depend
on the order in which events come. Until all is there the view is not in the catalog, and reads of
it are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.definitions import StoredView
from features.ingest.apply import Applier, Plan
from features.loading import Definitions
from features.offline.history import History
from features.offline.replay import Place, replayed
from headrace.errors import InternalError

WAITS, RUNS = "waits", "runs"


class FillMark(NamedTuple):
    """The value of a view's field in `hr:fills`, by the hash of the view.

    Events with a sequence below `cut` are not in the rows, but for those before `place`; state:
    whether anybody has asked to fill it.
    """

    schema_id: int
    cut: int
    state: str
    place: Place

    def encode(self) -> bytes:
        """Return the stored form."""
        return ":".join(map(str, (*self[:3], *self.place))).encode()

    @classmethod
    def decode(cls, value: bytes) -> FillMark:
        """Read the stored form. Raises InternalError when it is none."""
        try:
            schema_id, cut, state, appended, sequence = value.decode().split(":")
            return cls(int(schema_id), int(cut), state, Place(int(appended), int(sequence)))
        except ValueError as error:
            raise InternalError(
                "the mark of a fill cannot be read",
                where="online store",
                mend="the key hr:fills was written by something else than an ingester",
            ) from error


@dataclass
class FillStep:
    """Some events of history: what they change, and the mark behind them."""

    plan: Plan
    events: int
    mark: FillMark


class Filler:
    """Reads the history of one view's source, from a mark on. One reader at a time."""

    def __init__(self, view: StoredView, mark: FillMark, root: Path) -> None:
        self.view = view
        self.applier = Applier(
            Definitions(b"", views={view.name: view}), {view.name: mark.schema_id}
        )
        self._mark = mark
        self._names = list(dict.fromkeys([*view.entity.join_keys, *view.fields]))
        folder = root / view.source.name
        self._tables: Iterator[tuple[pa.Table, Place]] = replayed(
            folder, self._names, mark.place, mark.cut
        )

    def next_step(self) -> FillStep | None:
        """Return what comes next; None when all is there. Reads files: not for an event loop."""
        found = next(self._tables, None)
        if found is None:
            return None
        table, place = found
        history = History(self.view.source, table)
        batch, sequence = history.batch(self._names), np.array(history.sequence)
        self._mark = self._mark._replace(place=place)
        return FillStep(self.applier.plan([(batch, sequence)]), len(batch), self._mark)
