"""The doors to the compiled steps on states: query many, compact many.

Only the doors are cached (`headrace.compiled`), each made of the files of all steps.
"""

from __future__ import annotations

import numpy as np

from features import definitions
from features.windows import bits, cells, decay, layout, moments, queries, sessions, states, sums
from features.windows.queries import make_scratch, query_one
from features.windows.states import (
    compact,
    compacted_words_max,
    is_ours,
)
from headrace.compiled import kept, step

_door = kept(definitions, layout, bits, sums, moments, decay, cells, states, sessions, queries)


@step
def _first_unreadable(layout, joined, offsets):  # type: ignore[no-untyped-def]
    """Return the first packed state that is not one of ours, or -1."""
    for state in range(offsets.size - 1):
        if not is_ours(layout, joined, offsets[state], offsets[state + 1] - offsets[state]):
            return state
    return -1


@_door
def query_many(layout, joined, offsets, places, times, out, status, targets):  # type: ignore[no-untyped-def]
    """Answer row r from the state joined[offsets[p]:offsets[p + 1]], p = places[r], at times[r].

    A row with a place below 0 is left untouched. Returns the first unreadable state, or -1.
    """
    bad = _first_unreadable(layout, joined, offsets)
    if bad >= 0:
        return bad
    scratch = make_scratch(layout)
    out_floats = out.view(np.float64)
    for row in range(times.size):
        place = places[row]
        if place < 0:
            continue
        length = offsets[place + 1] - offsets[place]
        query_one(
            layout, joined, offsets[place], length, times[row], scratch, out, out_floats, status,
            row, targets,
        )  # fmt: skip
    return -1


@step
def _copied(out, used, more):  # type: ignore[no-untyped-def]
    """Return `out`, or one with the same `used` words and room for more."""
    if out.size >= used + more:
        return out
    larger = np.empty(2 * (used + more), dtype=np.int64)
    larger[:used] = out[:used]
    return larger


@_door
def compact_many(layout, joined, offsets):  # type: ignore[no-untyped-def]
    """Compact every state; returns (joined new states, their offsets, first unreadable or -1)."""
    count = offsets.size - 1
    new_offsets = np.zeros(count + 1, dtype=np.int64)
    bad = _first_unreadable(layout, joined, offsets)
    if bad >= 0:
        return new_offsets, new_offsets, bad
    out = np.empty(joined.size, dtype=np.int64)
    for state in range(count):
        start, to = offsets[state], new_offsets[state]
        length = offsets[state + 1] - start
        out = _copied(out, to, compacted_words_max(layout, joined, start, length))
        compacted = compact(layout, joined, start, length, out, to)
        if compacted == 0:
            out[to : to + length] = joined[start : start + length]
            compacted = length
        new_offsets[state + 1] = to + compacted
    return out[: new_offsets[count]], new_offsets, -1
