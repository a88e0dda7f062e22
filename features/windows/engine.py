"""One engine for the windows of a view: states that grow and are queried, and history.

The state of an entity is a 1-D int64 array (`layout` says what lies where); its bytes are what the
online store keeps. No answer depends on the order in which events came, so that history, which has
an algorithm of its own, gives the bits that the stream gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.definitions import StreamFeatureView
from features.types import DType, Statuses, Words
from features.windows import compiled
from features.windows.history import group_by, group_events, history
from features.windows.layout import RECORD_FIXED, TAIL_STEP, make_layout
from headrace.errors import InternalError

State = bytes | Words


class Refused(NamedTuple):
    """How many events were left out: stamped more than 5 minutes ahead of their created time, and
    created later after their time than the view allows."""

    ahead: int
    late: int


class WindowEngine:
    """The windows of one stream view. Holds no state of its own: safe to share between threads."""

    def __init__(self, view: StreamFeatureView, schema_id: int = 0) -> None:
        self.view = view
        self.schema_id = schema_id
        self.columns: list[str] = view.columns
        self.output: list[tuple[str, DType]] = list(view.feature_dtypes.items())
        self._layout = make_layout(view, schema_id)
        self.record_bytes = 8 * (RECORD_FIXED + len(self.columns))
        # A state is worth compacting when its length passes a multiple of this.
        self.compact_step_bytes = TAIL_STEP * self.record_bytes
        self._all = np.arange(len(self.output), dtype=np.int64)

    def records(
        self,
        index: NDArray[np.int64],
        entities: int,
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        words: Words,
        taken: NDArray[np.bool_],
    ) -> tuple[list[bytes], Refused]:
        """Return what the events of each entity append to its state, and how many were left out.

        index: int64[n], the entity of each event, below `entities`; event_time_us,
        created_time_us: int64[n]; words: int64[n, C] and taken: bool[n, C + F], both of
        `events.event_words`.
        """
        starts, records, refused = group_events(
            self._layout, _int64(index), entities, _int64(event_time_us),
            _int64(created_time_us), _bools(taken), _int64(words),
        )  # fmt: skip
        joined = records.tobytes()
        bounds = (starts * self.record_bytes).tolist()
        return [joined[a:b] for a, b in pairwise(bounds)], Refused(*refused.tolist())

    def compact_many(self, states: Sequence[State]) -> list[Words]:
        """Return the states with what is old in their tails folded into tiles, where that pays.

        Raises InternalError when a state is not one of this engine's.
        """
        out, new_offsets, bad = compiled.compact_many(self._layout, *self._join(states))
        if bad >= 0:
            raise self._unreadable(bad)
        return _cut(out, new_offsets)

    def warm_up_insert(self) -> None:
        """Compile (or load from the cache) what inserts: no event may pay for that.

        All engines share the compiled code.
        """
        nothing = np.zeros(1, dtype=np.int64)
        words = np.zeros((1, len(self.columns)), dtype=np.int64)
        taken = np.zeros((1, len(self.columns) + len(self.view.filtered)), dtype=np.bool_)
        self.records(nothing, 1, nothing, nothing, words, taken)
        self.compact_many([b""])

    def warm_up_query(self) -> None:
        """Compile (or load from the cache) what answers: no request may pay for that."""
        self.query([None, b""], np.zeros(2, dtype=np.int64))

    def query(
        self, states: Sequence[State | None], t_us: NDArray[np.int64]
    ) -> tuple[Words, Statuses]:
        """Answer every output: words int64[rows, K], status uint8[rows, K]. See `query_into`."""
        words = np.zeros((len(states), len(self.output)), dtype=np.int64)
        status = np.zeros(words.shape, dtype=np.uint8)
        self.query_into(states, t_us, words, status, self._all)
        return words, status

    def query_into(
        self,
        states: Sequence[State | None],
        t_us: NDArray[np.int64],
        words: Words,
        status: Statuses,
        targets: NDArray[np.int64],
        places: NDArray[np.int64] | None = None,
    ) -> None:
        """Answer rows from their states (None: seen nothing) at their times.

        places: int64[rows], the state of each row (below 0: none, the row is left untouched);
        without it, each row has its own.
        t_us: int64[rows]; words: int64[rows, F] and status: uint8[rows, F], both C-contiguous,
        written at column targets[k] for output k where that is 0 or more; targets: int64[K].
        Status is 0 present, 1 null, 4 unavailable where the state can no longer answer exactly.
        Raises InternalError when a state is not one of this engine's.
        """
        joined, offsets = self._join(states)
        if places is None:
            places = np.arange(len(states), dtype=np.int64)
        bad = compiled.query_many(
            self._layout, joined, offsets, places, _int64(t_us), words, status, targets
        )
        if bad >= 0:
            raise self._unreadable(bad)

    def history(
        self,
        keys: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        words: Words,
        taken: NDArray[np.bool_],
        query_keys: NDArray[np.int64],
        query_t_us: NDArray[np.int64],
    ) -> tuple[Words, Statuses]:
        """Answer every query from history: words int64[queries, K], status uint8[queries, K]."""
        out = np.zeros((len(query_keys), len(self.output)), dtype=np.int64)
        status = np.zeros(out.shape, dtype=np.uint8)
        self.history_into(
            keys, event_time_us, created_time_us, words, taken, query_keys, query_t_us, out, status,
            self._all,
        )  # fmt: skip
        return out, status

    def history_into(
        self,
        keys: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        words: Words,
        taken: NDArray[np.bool_],
        query_keys: NDArray[np.int64],
        query_t_us: NDArray[np.int64],
        out: Words,
        status: Statuses,
        targets: NDArray[np.int64],
    ) -> Refused:
        """Answer every query by the events with created_time ≤ its time, whatever their order.

        keys, query_keys: int64 entity of each event and query, dense from 0; below 0: none (such
        a query is left untouched); out, status, targets: as of `query_into`.
        Returns how many events were left out.
        """
        groups = int(max(keys.max(initial=-1), query_keys.max(initial=-1))) + 1
        table = self._layout
        starts, records, refused = group_events(
            table, _int64(keys), groups, _int64(event_time_us), _int64(created_time_us),
            _bools(taken), _int64(words),
        )  # fmt: skip
        query_starts, query_rows = group_by(_int64(query_keys), groups)
        times = _int64(query_t_us)
        history(table, starts, records, query_starts, query_rows, times, out, status, targets)
        return Refused(*refused.tolist())

    def _join(self, states: Sequence[State | None]) -> tuple[Words, NDArray[np.int64]]:
        """Return the states in one writable buffer, and the word offsets of each."""
        parts = [
            b"" if s is None else s.tobytes() if isinstance(s, np.ndarray) else s for s in states
        ]
        if any(len(part) % 8 for part in parts):
            # What the kernel calls not one of ours, instead of shifting all that follow.
            parts = [bytes(8) if len(part) % 8 else part for part in parts]
        ends = accumulate([len(part) >> 3 for part in parts], initial=0)
        offsets = np.array(list(ends), dtype=np.int64)
        return np.frombuffer(bytearray().join(parts), dtype=np.int64), offsets

    def _unreadable(self, row: int) -> InternalError:
        return InternalError(
            f"the stored window state of row {row} cannot be read",
            where=f"view {self.view.name!r}",
            expected=f"a state of schema id {self.schema_id}",
            mend="was it cut, or written by another definition? Materialize the view again",
        )


def _cut(joined: Words, offsets: NDArray[np.int64]) -> list[Words]:
    """Return the states that lie joined."""
    bounds = offsets.tolist()
    return [joined[start:end] for start, end in pairwise(bounds)]


def _int64(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return values as a C-contiguous writable int64 array: what the kernels are compiled for."""
    flags = values.flags
    if values.dtype == np.int64 and flags.c_contiguous and flags.writeable:
        return values
    return np.array(values, dtype=np.int64, order="C")


def _bools(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the same for a mask."""
    flags = valid.flags
    if valid.dtype == np.bool_ and flags.c_contiguous and flags.writeable:
        return valid
    return np.array(valid, dtype=np.bool_, order="C")
