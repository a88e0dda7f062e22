"""One engine for the windows of a view: insert and query states, or replay history.

The state of an entity is a 1-D int64 array (`layout` says what lies where); its bytes are what the
online store keeps. The same compiled steps serve both ways, so a history replayed in the order
(created_time, event_time, sequence) gives the bits that the stream gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from features.definitions import StreamFeatureView
from features.types import DType, Statuses, Words
from features.windows import compiled
from features.windows import layout as state_layout
from features.windows.layout import make_layout
from headrace.errors import InternalError

State = bytes | Words
_NO_CAP = np.iinfo(np.int64).max


class WindowEngine:
    """The windows of one stream view. Holds no state of its own: safe to share between threads."""

    def __init__(self, view: StreamFeatureView, schema_id: int = 0) -> None:
        self.view = view
        self.schema_id = schema_id
        self.columns: list[str] = view.columns
        self.output: list[tuple[str, DType]] = list(view.feature_dtypes.items())
        self._layout = make_layout(view, schema_id)
        self._empty = self.empty().tobytes()
        self._all = np.arange(len(self.output), dtype=np.int64)

    def empty(self) -> Words:
        """Return the state of an entity that has seen nothing."""
        layout = self._layout
        state = np.empty(
            state_layout.AT_LEVELS + state_layout.LEVEL_WORDS * layout.levels, dtype=np.int64
        )
        state[:] = state_layout.NEVER
        state[:2] = layout.table[:2]
        state[state_layout.AT_HEAD_COUNT] = 0
        state[state_layout.AT_LEVELS :: state_layout.LEVEL_WORDS] = 0
        return state

    def insert(
        self,
        state: State | None,
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        words: Words,
        valid: NDArray[np.bool_],
    ) -> tuple[Words, int]:
        """Insert the events of one entity, in the order given: see `insert_many`."""
        index = np.zeros(len(event_time_us), dtype=np.int64)
        states, quarantined = self.insert_many(
            [state], index, event_time_us, created_time_us, words, valid
        )
        return states[0], quarantined

    def insert_many(
        self,
        states: Sequence[State | None],
        index: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        words: Words,
        valid: NDArray[np.bool_],
    ) -> tuple[list[Words], int]:
        """Insert events into the states of many entities, in the order given.

        states: one per entity, None for a new one; index: int64[n], the entity of each event;
        event_time_us, created_time_us: int64[n]; words: int64[n, C], see `types.to_words`;
        valid: bool[n, C]; the C columns are `self.columns`.
        Returns the new state of every entity, and how many events were quarantined because they
        are stamped more than 5 minutes ahead of their created time.
        Raises InternalError when a state is not one of this engine's.
        """
        joined, offsets = self._join(states)
        order = np.arange(len(index), dtype=np.int64)
        starts, rows = compiled.group_by(_int64(index), order, len(states))
        out, new_offsets, quarantined, bad = compiled.insert_many(
            self._layout.table,
            state_layout.HEAD_CAP,
            joined,
            offsets,
            starts,
            rows,
            _int64(event_time_us),
            _int64(created_time_us),
            _bools(valid),
            _int64(words),
        )
        if bad >= 0:
            raise self._unreadable(bad)
        bounds = new_offsets.tolist()
        return [out[bounds[i] : bounds[i + 1]] for i in range(len(states))], int(quarantined)

    def warm_up_insert(self) -> None:
        """Compile (or load from the cache) what inserts: no event may pay for that.

        All engines share the compiled code.
        """
        nothing = np.zeros(1, dtype=np.int64)
        blank = np.zeros((1, len(self.columns)), dtype=np.int64)
        self.insert_many([None], nothing, nothing, nothing, blank, blank != 0)

    def warm_up_query(self) -> None:
        """Compile (or load from the cache) what answers: no request may pay for that."""
        self.query([None, self.empty().tobytes()], np.zeros(2, dtype=np.int64))

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
    ) -> None:
        """Answer rows from their states (None: seen nothing) at their times.

        t_us: int64[rows]; words: int64[rows, F] and status: uint8[rows, F], both C-contiguous,
        written at column targets[k] for output k where that is 0 or more; targets: int64[K].
        Status is 0 present, 1 null, 4 unavailable where the state can no longer answer exactly.
        Raises InternalError when a state is not one of this engine's.
        """
        joined, offsets = self._join(states)
        bad = compiled.query_many(
            self._layout.table, joined, offsets, _int64(t_us), words, status, targets
        )
        if bad >= 0:
            raise self._unreadable(bad)

    def history(
        self,
        keys: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        sequence: NDArray[np.int64],
        words: Words,
        valid: NDArray[np.bool_],
        query_keys: NDArray[np.int64],
        query_t_us: NDArray[np.int64],
    ) -> tuple[Words, Statuses]:
        """Answer every query from history: words int64[queries, K], status uint8[queries, K]."""
        out = np.zeros((len(query_keys), len(self.output)), dtype=np.int64)
        status = np.zeros(out.shape, dtype=np.uint8)
        order = np.lexsort((sequence, event_time_us, created_time_us))
        query_order = np.argsort(query_t_us, kind="stable")
        self.history_into(
            keys, event_time_us, created_time_us, words, valid, order,
            query_keys, query_t_us, query_order, out, status, self._all,
        )  # fmt: skip
        return out, status

    def history_into(
        self,
        keys: NDArray[np.int64],
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        words: Words,
        valid: NDArray[np.bool_],
        order: NDArray[np.int64],
        query_keys: NDArray[np.int64],
        query_t_us: NDArray[np.int64],
        query_order: NDArray[np.int64],
        out: Words,
        status: Statuses,
        targets: NDArray[np.int64],
    ) -> int:
        """Answer every query after all events with created_time ≤ its time.

        keys, query_keys: int64 entity of each event and query, dense from 0; below 0: none (such
        a query is left untouched); order: the events by (created_time, event_time, sequence);
        query_order: the queries by time; out, status, targets: as of `query_into`.
        Returns how many events were quarantined, among those that were visited.
        """
        groups = int(max(keys.max(initial=-1), query_keys.max(initial=-1))) + 1
        starts, rows = compiled.group_by(_int64(keys), _int64(order), groups)
        query_starts, query_rows = compiled.group_by(
            _int64(query_keys), _int64(query_order), groups
        )
        return int(
            compiled.history(
                self._layout.table,
                _NO_CAP,
                starts,
                rows,
                _int64(event_time_us),
                _int64(created_time_us),
                _bools(valid),
                _int64(words),
                query_starts,
                query_rows,
                _int64(query_t_us),
                out,
                status,
                targets,
            )
        )

    def _join(self, states: Sequence[State | None]) -> tuple[Words, NDArray[np.int64]]:
        """Return the states in one writable buffer, and the word offsets of each."""
        parts = [
            self._empty if s is None else s.tobytes() if isinstance(s, np.ndarray) else s
            for s in states
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
