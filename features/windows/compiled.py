"""The doors to the compiled steps: insert into, and query, many states; replay history.

Only the doors are cached (`headrace.compiled`), each made of the files of all steps.

See `kernels` for the conventions of the arguments.
"""

from __future__ import annotations

import numpy as np

from features import definitions
from features.definitions import FUTURE_TOLERANCE_US
from features.windows import kernels, layout, queries
from features.windows.kernels import (
    ORIGIN,
    copy_state,
    fold,
    insert,
    make_room,
    pack_sections,
    packed_words,
    place,
    step,
)
from features.windows.layout import (
    AT_HEAD_COUNT,
    EXACT_LAG_US,
    HEAD_FIXED,
    L_AT_LEVELS,
    L_COLUMNS,
    L_LEVELS,
    L_SLOTS,
    LEVEL_ROW,
)
from features.windows.queries import TIME_LIMIT_US, make_scratch, query_one
from headrace.compiled import kept

_door = kept(definitions, layout, kernels, queries)


@step
def widest(layout, joined, offsets, added, sections, level_capacity):  # type: ignore[no-untyped-def]
    """Check every packed state and find the room that the largest needs with `added` events.

    Returns (index of the first that is not one of ours or -1, head capacity); level_capacity is
    filled in.
    """
    head_capacity = ORIGIN
    for state in range(offsets.size - 1):
        length = offsets[state + 1] - offsets[state]
        new = added[state + 1] - added[state] if added.size > 0 else 0
        if not place(layout, joined, offsets[state], length, sections):
            return state, head_capacity
        head = sections[0, 2]
        head_capacity = max(head_capacity, head + new)
        for level in range(layout[L_LEVELS]):
            count = sections[level + 1, 2]
            level_capacity[level] = max(level_capacity[level], count + head + new)
    return -1, head_capacity


@_door
def query_many(layout, joined, offsets, times, out, status, targets):  # type: ignore[no-untyped-def]
    """Answer row r from the packed state joined[offsets[r]:offsets[r + 1]] at times[r].

    Returns the row of the first unreadable state, or -1.
    """
    floats = joined.view(np.float64)
    sections = np.zeros((layout[L_LEVELS] + 1, 3), dtype=np.int64)
    level_capacity = np.zeros(layout[L_LEVELS], dtype=np.int64)
    bad, _ = widest(layout, joined, offsets, np.empty(0, dtype=np.int64), sections, level_capacity)
    if bad >= 0:
        return bad
    scratch = make_scratch(layout, level_capacity)
    sums = np.zeros(layout[L_SLOTS], dtype=np.int64)
    for row in range(times.size):
        place(layout, joined, offsets[row], offsets[row + 1] - offsets[row], sections)
        query_one(
            layout, joined, floats, offsets[row], sections, times[row], scratch, sums, out, status,
            row, targets,
        )  # fmt: skip
    return -1


@step
def is_quarantined(event, created):  # type: ignore[no-untyped-def]
    """Whether a stamp is too far in the future, or no time at all."""
    if not (-TIME_LIMIT_US < event < TIME_LIMIT_US and -TIME_LIMIT_US < created < TIME_LIMIT_US):
        return True
    return event > created + FUTURE_TOLERANCE_US


@_door
def insert_many(layout, head_cap, joined, offsets, starts, rows, event, created, valid, values):  # type: ignore[no-untyped-def]
    """Insert into packed state s the events rows[starts[s]:starts[s + 1]], in this order.

    Returns (joined new states, their offsets, quarantined, first unreadable state or -1).
    """
    states = offsets.size - 1
    sections = np.zeros((layout[L_LEVELS] + 1, 3), dtype=np.int64)
    work_sections = np.zeros_like(sections)
    level_capacity = np.zeros(layout[L_LEVELS], dtype=np.int64)
    bad, head_capacity = widest(layout, joined, offsets, starts, sections, level_capacity)
    new_offsets = np.zeros(states + 1, dtype=np.int64)
    if bad >= 0:
        return new_offsets, new_offsets, 0, bad
    nothing = np.empty(0, dtype=np.int64)
    work = np.empty(
        make_room(layout, nothing, head_capacity, level_capacity, work_sections), dtype=np.int64
    )
    floats = work.view(np.float64)
    # An event adds at most one record, and one tile a level.
    grown = layout[L_LEVELS] * (1 + layout[L_SLOTS]) + HEAD_FIXED + layout[L_COLUMNS]
    heads = 0
    for state in range(states):
        heads += joined[offsets[state] + AT_HEAD_COUNT]
    out = np.empty(joined.size + (rows.size + heads) * grown, dtype=np.int64)
    quarantined = 0
    for state in range(states):
        at = offsets[state]
        length = offsets[state + 1] - at
        make_room(layout, work, head_capacity, level_capacity, work_sections)
        place(layout, joined, at, length, sections)
        copy_state(layout, joined, at, sections, work, ORIGIN, work_sections)
        for i in range(starts[state], starts[state + 1]):
            row = rows[i]
            if is_quarantined(event[row], created[row]):
                quarantined += 1
                continue
            insert(
                layout, work, floats, ORIGIN, work_sections, head_cap, event[row], created[row],
                valid, values, row,
            )  # fmt: skip
        base = new_offsets[state]
        new_offsets[state + 1] = base + packed_words(layout, work, ORIGIN)
        pack_sections(layout, work, ORIGIN, base, sections)
        copy_state(layout, work, ORIGIN, work_sections, out, base, sections)
    return out[: new_offsets[states]], new_offsets, quarantined, -1


@_door
def history(  # type: ignore[no-untyped-def]
    layout, head_cap, starts, rows, event, created, valid, values, query_starts, query_rows, times,
    out, status, targets,
):  # fmt: skip
    """Replay every key's events and answer its queries on the way; returns the quarantined.

    Key k has the events rows[starts[k]:starts[k + 1]], ordered by (created, event, sequence), and
    the queries query_rows[query_starts[k]:query_starts[k + 1]], ordered by time.
    """
    events_max = ORIGIN
    for key in range(starts.size - 1):
        events_max = max(events_max, starts[key + 1] - starts[key])
    level_capacity = np.zeros(layout[L_LEVELS], dtype=np.int64)
    for level in range(layout[L_LEVELS]):
        hop = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level]
        longest = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level + 1]
        # Twice what can be kept, so that a section is moved down once in so many events.
        kept = 2 * ((EXACT_LAG_US + longest) // hop + 3)
        level_capacity[level] = min(events_max, kept)
    sections = np.zeros((layout[L_LEVELS] + 1, 3), dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    work = np.empty(
        make_room(layout, nothing, events_max, level_capacity, sections), dtype=np.int64
    )
    floats = work.view(np.float64)
    room = np.empty_like(level_capacity)
    for level in range(layout[L_LEVELS]):
        room[level] = level_capacity[level] + events_max
    scratch = make_scratch(layout, room)
    sums = np.zeros(layout[L_SLOTS], dtype=np.int64)
    quarantined = 0
    for key in range(starts.size - 1):
        if query_starts[key] == query_starts[key + 1]:
            continue
        make_room(layout, work, events_max, level_capacity, sections)
        i = starts[key]
        for query in range(query_starts[key], query_starts[key + 1]):
            t = times[query_rows[query]]
            while i < starts[key + 1] and created[rows[i]] <= t:
                row = rows[i]
                i += 1
                if is_quarantined(event[row], created[row]):
                    quarantined += 1
                    continue
                insert(
                    layout, work, floats, ORIGIN, sections, head_cap, event[row], created[row],
                    valid, values, row,
                )  # fmt: skip
            # No query after this one is earlier: the head need not wait for one.
            fold(layout, work, floats, ORIGIN, sections, t, t)
            query_one(
                layout, work, floats, ORIGIN, sections, t, scratch, sums, out, status,
                query_rows[query], targets,
            )  # fmt: skip
    return quarantined


@_door
def group_by(ids, order, groups):  # type: ignore[no-untyped-def]
    """Counting sort: the rows of `order` by their id, each group in the order given.

    Ids below 0 are left out. Returns (starts [groups + 1], rows).
    """
    starts = np.zeros(groups + 1, dtype=np.int64)
    for i in range(ids.size):
        if ids[i] >= 0:
            starts[ids[i] + 1] += 1
    for group in range(groups):
        starts[group + 1] += starts[group]
    rows = np.empty(starts[groups], dtype=np.int64)
    cursor = starts[:-1].copy()
    for i in range(order.size):
        group = ids[order[i]]
        if group >= 0:
            rows[cursor[group]] = order[i]
            cursor[group] += 1
    return starts, rows
