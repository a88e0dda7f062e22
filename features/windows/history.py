"""The door to the compiled history: every query of every key from its events, no state kept.

The answers are those of the stream to the bit, as no cell of a window depends on the order of the
events (`sums`). A key's events are sorted by event time once (`lanes`); a query then merges ranges
of them, without those that were created only after it.
"""

from __future__ import annotations

import numpy as np

from features import definitions
from features.windows import (
    bits,
    cells,
    decay,
    lanes,
    layout,
    moments,
    queries,
    sessions,
    states,
    sums,
)
from features.windows.cells import INT_MAX, put, total_of, value_key
from features.windows.lanes import (
    BLOCK,
    P_ADDS,
    P_LEASTS,
    PLAN_ROW,
    add_decayed,
    fill_cell,
    fill_lanes,
    lane_words,
    lay_out,
    least_of,
    plan_lanes,
    sum_of,
)
from features.windows.layout import (
    DECAYED,
    FIRST_FLOAT,
    FIRST_INT,
    L_AT_OUTPUTS,
    L_AT_SLOTS,
    L_AT_WINDOWS,
    L_BITS,
    L_COLUMNS,
    L_FIRST_TIME,
    L_INCLUDES_NOW,
    L_LATENESS,
    L_OPEN,
    L_OPERANDS,
    L_OUTPUTS,
    L_SLOTS,
    L_TAG,
    L_WINDOWS,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    OUT_STDDEV,
    OUT_VARIANCE,
    OUTPUT_ROW,
    SLOT_ROW,
    SQUARES,
    SUM_FLOAT,
    SUM_INT,
    WINDOW_ROW,
)
from features.windows.moments import SQUARE_WORDS
from features.windows.queries import UNAVAILABLE, find_edges, lower_bound, sort_windows
from features.windows.sessions import gap_of, session_start
from features.windows.states import TIME_LIMIT_US, is_refused, record_words, write_record
from features.windows.sums import SUM_WORDS
from headrace.compiled import apart, kept, step

_door = kept(
    definitions, layout, bits, sums, moments, decay, cells, states, sessions, queries, lanes
)


@step
def _find_runs(key, t, first, end, blocks, runs):  # type: ignore[no-untyped-def]
    """Find what of the events [0, end) was created by t, as runs from the end to the front.

    Before the first event that was created later, all of them count. Returns how many runs.
    """
    newest_created, created_times = key[1], key[2]
    if newest_created[end] <= t:
        runs[0, 0], runs[0, 1] = 0, end
        return 1
    whole = lower_bound(newest_created, 0, 1, 0, end, t + 1) - 1
    number = 0
    i = end
    while i > max(whole, first):
        block = (i - 1) // BLOCK
        # A block that was all there by t is not looked into.
        if i == (block + 1) * BLOCK and i - BLOCK >= whole and blocks[block] <= t:
            begin = i - BLOCK
        elif created_times[i - 1] <= t:
            begin = i - 1
        else:
            i -= 1
            continue
        if number and runs[number - 1, 0] == i:
            runs[number - 1, 0] = begin
        else:
            runs[number, 0], runs[number, 1] = begin, i
            number += 1
        i = begin
    if whole > 0:
        if number and runs[number - 1, 0] == whole:
            runs[number - 1, 0] = 0
        else:
            runs[number, 0], runs[number, 1] = 0, whole
            number += 1
    return number


@step
def _outputs_by_window(layout, targets):  # type: ignore[no-untyped-def]
    """Return the outputs that are asked for, window by window, and where each window's begin.

    int64[outputs, 8]: kind, slot, kind of the slot, slot of the count, target, the other slot,
    half-life and operand of the slot.
    """
    starts = np.zeros(layout[L_WINDOWS] + 1, dtype=np.int64)
    rows = np.empty((layout[L_OUTPUTS], 8), dtype=np.int64)
    number = 0
    for window in range(layout[L_WINDOWS]):
        ends = layout[L_AT_WINDOWS] + WINDOW_ROW * window + 3
        for output in range(layout[ends], layout[ends + 1]):
            at = layout[L_AT_OUTPUTS] + OUTPUT_ROW * output
            if targets[layout[at + 4]] >= 0:
                slot = layout[L_AT_SLOTS] + SLOT_ROW * layout[at + 1]
                rows[number, 0] = layout[at]
                rows[number, 1] = layout[at + 1]
                rows[number, 2] = layout[slot]
                rows[number, 3] = layout[at + 2]
                rows[number, 4] = targets[layout[at + 4]]
                rows[number, 5] = layout[at + 3]
                rows[number, 6] = layout[slot + 6]
                rows[number, 7] = layout[slot + 3]
                number += 1
        starts[window + 1] = number
    return starts, rows


@step
def _answer(  # type: ignore[no-untyped-def]
    plan, operands, results, outputs, first, end, t, span, out, out_floats, status, row
):
    """Write the outputs of one window, `span` long, from the results of its lanes."""
    seen, added, least, decayed, cells = results
    summed = -1  # sum and mean of a column share the rounding
    total = 0.0
    for i in range(first, end):
        kind, slot, slot_kind = outputs[i, 0], outputs[i, 1], outputs[i, 2]
        count_lane = plan[outputs[i, 3], P_ADDS]
        count = seen if count_lane < 0 else added[count_lane]
        value = 0
        if kind >= OUT_VARIANCE:
            half_life, other = outputs[i, 6], outputs[i, 5]
            if kind in (OUT_VARIANCE, OUT_STDDEV):
                fill_cell(SUM_FLOAT, plan, slot, added, least, cells[0])
                fill_cell(SQUARES, plan, other, added, least, cells[1])
                total = total_of(kind, cells[0], 0, cells[1], 0, count, t, half_life)
            else:
                total = total_of(
                    kind, decayed, slot * SUM_WORDS, decayed, other * SUM_WORDS, count, t, half_life
                )
            summed = -1
        elif slot_kind == SUM_FLOAT:
            if slot != summed:
                total = sum_of(plan, slot, added, least)
                summed = slot
        elif slot_kind in (MAX_INT, MAX_FLOAT):
            value = ~least[plan[slot, P_LEASTS]]
        elif slot_kind in (MIN_INT, MIN_FLOAT):
            value = least[plan[slot, P_LEASTS]]
        elif slot_kind == SUM_INT:
            value = added[plan[slot, P_ADDS]]
        elif slot_kind >= FIRST_INT and count:
            event = least[plan[slot, P_LEASTS]]
            event = event if slot_kind in (FIRST_INT, FIRST_FLOAT) else ~event
            value = value_key(slot_kind, operands[outputs[i, 7], event])
        target = outputs[i, 4]
        status[row, target] = put(
            kind, count, value, total, t, span, out, out_floats, row, target
        )  # fmt: skip


@step
def _refuse(outputs, number, out, status, row):  # type: ignore[no-untyped-def]
    for i in range(number):
        out[row, outputs[i, 4]] = 0
        status[row, outputs[i, 4]] = UNAVAILABLE


@apart
def _raise_lows(layout, event_times, runs, number, t, lows):  # type: ignore[no-untyped-def]
    """Raise the far edges of the windows that are sessions to where these begin."""
    for window in range(layout[L_WINDOWS]):
        gap = gap_of(layout, window)
        if gap:
            lows[window] = session_start(event_times, runs, number, t, lows[window], gap)


@apart
def _query_key(  # type: ignore[no-untyped-def]
    layout, key, count, plan, lane_data, scratch, outputs, queries, times, out, out_floats, status
):
    """Answer the queries of one key from its lanes."""
    event_times = key[0]
    totals, leasts, adds, least_lanes, blocks = lane_data
    order, lows, highs, added, least, decayed, cells, runs = scratch
    starts, rows = outputs
    width, lane_width, windows = count + 1, lane_words(count), layout[L_WINDOWS]
    for row in queries:
        t = times[row]
        if not -TIME_LIMIT_US < t < TIME_LIMIT_US:
            _refuse(rows, starts[windows], out, status, row)
            continue
        lowest = find_edges(layout, t, lows, highs)
        end = lower_bound(event_times, 0, 1, 0, count, t + layout[L_INCLUDES_NOW])
        first = lower_bound(event_times, 0, 1, 0, end, lowest)
        number = _find_runs(key, t, first, end, blocks, runs)
        if layout[L_FIRST_TIME]:
            _raise_lows(layout, event_times, runs, number, t, lows)
        sort_windows(layout, lows, order)
        added[:adds] = 0
        least[:least_lanes] = INT_MAX
        decayed[:] = 0
        seen = 0
        for place in range(windows):
            window = order[place]
            if place >= layout[L_OPEN]:
                added[:adds] = 0
                least[:least_lanes] = INT_MAX
                decayed[:] = 0
                seen = 0
                end = lower_bound(event_times, 0, 1, 0, count, highs[window])
            begin = lower_bound(event_times, 0, 1, 0, end, lows[window])
            # Each window adds what the one before it, which begins later, did not have.
            for run in range(number):
                first = max(runs[run, 0], begin)
                last = min(runs[run, 1], end)
                if first < last:
                    seen += last - first
                    for lane in range(adds):
                        at = lane * width
                        added[lane] += totals[at + last] - totals[at + first]
                    for lane in range(least_lanes):
                        found = least_of(leasts, lane * lane_width, count, first, last)
                        least[lane] = min(least[lane], found)
                    if decayed.size:
                        _add_all_decayed(layout, key, count, plan, leasts, first, last, decayed)
            end = begin
            _answer(
                plan, key[3], (seen, added, least, decayed, cells), rows, starts[window],
                starts[window + 1], t, min(t, highs[window]) - lows[window], out, out_floats,
                status, row,
            )  # fmt: skip


@apart
def _add_all_decayed(layout, key, count, plan, leasts, first, end, decayed):  # type: ignore[no-untyped-def]
    """Add the events [first, end) to the cells of the slots that decay."""
    row = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        if layout[row] == DECAYED:
            add_decayed(
                layout[row + 3], layout[row + 6], count, key, leasts,
                plan[slot, P_LEASTS] * lane_words(count), first, end, decayed, slot * SUM_WORDS,
            )  # fmt: skip
        row += SLOT_ROW


@step
def _greatest_of_blocks(values, count, blocks):  # type: ignore[no-untyped-def]
    for block in range(count // BLOCK):
        greatest = values[block * BLOCK]
        for i in range(block * BLOCK + 1, (block + 1) * BLOCK):
            greatest = max(greatest, values[i])
        blocks[block] = greatest


@step
def _decays(layout):  # type: ignore[no-untyped-def]
    """Whether any slot does."""
    for slot in range(layout[L_SLOTS]):
        if layout[layout[L_AT_SLOTS] + SLOT_ROW * slot] == DECAYED:
            return True
    return False


@_door
def history(layout, starts, records, query_starts, query_rows, times, out, status, targets):  # type: ignore[no-untyped-def]
    """Answer the queries of every key.

    Key k has the records starts[k] … starts[k + 1] and the queries
    query_rows[query_starts[k]:query_starts[k + 1]], both in any order.
    """
    most = np.int64(1)
    for k in range(starts.size - 1):
        most = max(most, starts[k + 1] - starts[k])
    stride = record_words(layout)
    key = (
        np.empty(most, dtype=np.int64),
        np.empty(most + 1, dtype=np.int64),
        np.empty(most, dtype=np.int64),
        np.empty((layout[L_OPERANDS], most), dtype=np.int64),
        np.empty(most, dtype=np.int64),
    )
    blocks = np.empty(most // BLOCK + 1, dtype=np.int64)
    plan = np.empty((layout[L_SLOTS], PLAN_ROW), dtype=np.int64)
    windows = layout[L_WINDOWS]
    order = np.zeros(windows, dtype=np.int64)
    lows, highs = np.zeros(windows, dtype=np.int64), np.zeros(windows, dtype=np.int64)
    runs = np.empty((most + 1, 2), dtype=np.int64)
    totals, leasts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    added, least = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    decayed = np.zeros(layout[L_SLOTS] * SUM_WORDS if _decays(layout) else 0, dtype=np.int64)
    cells = np.zeros((2, SQUARE_WORDS), dtype=np.int64)
    outputs = _outputs_by_window(layout, targets)
    out_floats = out.view(np.float64)
    for k in range(starts.size - 1):
        if query_starts[k] == query_starts[k + 1]:
            continue
        count = starts[k + 1] - starts[k]
        lay_out(layout, records, starts[k] * stride, count, key)
        adds, least_lanes = plan_lanes(layout, key, count, plan)
        if totals.size < adds * (count + 1):
            totals = np.empty(2 * adds * (count + 1), dtype=np.int64)
        if leasts.size < least_lanes * lane_words(count):
            leasts = np.empty(2 * least_lanes * lane_words(count), dtype=np.int64)
        if added.size < adds:
            added = np.empty(2 * adds, dtype=np.int64)
        if least.size < least_lanes:
            least = np.empty(2 * least_lanes, dtype=np.int64)
        fill_lanes(layout, key, count, plan, totals, leasts)
        _greatest_of_blocks(key[2], count, blocks)
        _query_key(
            layout, key, count, plan, (totals, leasts, adds, least_lanes, blocks),
            (order, lows, highs, added, least, decayed, cells, runs), outputs,
            query_rows[query_starts[k] : query_starts[k + 1]], times, out, out_floats, status,
        )  # fmt: skip


@_door
def group_events(layout, ids, groups, event, created, taken, values):  # type: ignore[no-untyped-def]
    """Counting sort into records: those of each group, in their order, one after the other.

    Events with an id below 0, or that are refused, are left out. Returns (starts [groups + 1],
    records, refused as [too far ahead, too late]).
    """
    starts = np.zeros(groups + 1, dtype=np.int64)
    refusals = np.zeros(3, dtype=np.int64)
    lateness = layout[L_LATENESS]
    for i in range(ids.size):
        if ids[i] >= 0:
            refused = is_refused(lateness, event[i], created[i])
            refusals[refused] += 1
            starts[ids[i] + 1] += refused == 0
    for group in range(groups):
        starts[group + 1] += starts[group]
    tag, columns, bits = layout[L_TAG], layout[L_COLUMNS], layout[L_BITS]
    stride = record_words(layout)
    records = np.empty(starts[groups] * stride, dtype=np.int64)
    cursor = starts[:-1].copy()
    for i in range(ids.size):
        group = ids[i]
        if group >= 0 and is_refused(lateness, event[i], created[i]) == 0:
            record = cursor[group] * stride
            cursor[group] += 1
            write_record(
                tag, columns, bits, records, record, event[i], created[i], taken, values, i
            )  # fmt: skip
    return starts, records, refusals[1:]


@_door
def group_by(ids, groups):  # type: ignore[no-untyped-def]
    """Counting sort: the rows by their id, each group in their order.

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
    for i in range(ids.size):
        group = ids[i]
        if group >= 0:
            rows[cursor[group]] = i
            cursor[group] += 1
    return starts, rows
