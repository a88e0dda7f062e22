"""The point-in-time join of last-known views.

A row can be seen from max(event_time, created_time) on. So a key's rows are put in that order, the
greatest (event_time, created_time, sequence) so far is carried along, and a query is one binary
search, however late the rows were: walking back from the event time would take every late row once
more for every query. The queries stay in their order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import definitions
from features import row as row_layout
from features import status as status_rule
from features.definitions import FUTURE_TOLERANCE_US
from features.status import PRESENT, put_absent, put_value, status_at
from features.types import FeatureStatus
from headrace.compiled import kept, step

NOT_FOUND = FeatureStatus.NOT_FOUND
# Up to here, and where rows are almost in order, moving them one by one is quickest.
_FEW = 48


Int64s = NDArray[np.int64]


class Seen(NamedTuple):
    """The rows of every key in the order in which they can be seen, each as the greatest so far.

    starts: int64[keys + 1], where a key's begin; rows, seen_from: int64[usable rows], the row that
    is last known from a time on, until the next.
    """

    starts: Int64s
    rows: Int64s
    seen_from: Int64s


def order_rows(
    keys: Int64s, event_time_us: Int64s, created_time_us: Int64s, sequence: Int64s, groups: int
) -> Seen:
    """Put rows in order for the join.

    keys: int64 ids, below 0: no key, else below `groups`. Rows stamped more than 5 minutes ahead of
    their created time are quarantined, as in the stream.
    """
    columns = (keys, event_time_us, created_time_us, sequence)
    return Seen(*_order(*(np.require(column, np.int64, ["C", "W"]) for column in columns), groups))


def last_known_rows(seen: Seen, query_keys: Int64s, query_t_us: Int64s) -> Int64s:
    """Return for each query the row that is last known at its time, int64[queries]; -1: none."""
    queries = (np.require(column, np.int64, ["C", "W"]) for column in (query_keys, query_t_us))
    found: Int64s = _find(*seen, *queries)
    return found


@step
def _is_greater(event, created, sequence, row, other):  # type: ignore[no-untyped-def]
    if event[row] != event[other]:
        return event[row] > event[other]
    if created[row] != created[other]:
        return created[row] > created[other]
    return sequence[row] > sequence[other]


@step
def _sort(seen_from, rows, first, end):  # type: ignore[no-untyped-def]
    """Sort rows[first:end] by seen_from[first:end], and that with them."""
    if end - first > _FEW and np.any(seen_from[first + 1 : end] < seen_from[first : end - 1]):
        order = np.argsort(seen_from[first:end], kind="mergesort")
        seen_from[first:end] = seen_from[first:end][order]
        rows[first:end] = rows[first:end][order]
        return
    for i in range(first + 1, end):
        moment, row = seen_from[i], rows[i]
        place = i
        while place > first and seen_from[place - 1] > moment:
            seen_from[place], rows[place] = seen_from[place - 1], rows[place - 1]
            place -= 1
        seen_from[place], rows[place] = moment, row


@step
def _group(keys, event, created, groups):  # type: ignore[no-untyped-def]
    """Return where each key's rows begin, the rows, and when each can be seen from."""
    starts = np.zeros(groups + 1, dtype=np.int64)
    usable = np.empty(keys.size, dtype=np.bool_)
    for row in range(keys.size):
        usable[row] = keys[row] >= 0 and event[row] - FUTURE_TOLERANCE_US <= created[row]
        if usable[row]:
            starts[keys[row] + 1] += 1
    for group in range(groups):
        starts[group + 1] += starts[group]
    rows = np.empty(starts[groups], dtype=np.int64)
    seen_from = np.empty(starts[groups], dtype=np.int64)
    cursor = starts[:-1].copy()
    for row in range(keys.size):
        if usable[row]:
            place = cursor[keys[row]]
            cursor[keys[row]] += 1
            rows[place] = row
            seen_from[place] = max(event[row], created[row])
    return starts, rows, seen_from


@step
def _last_until(seen_from, low, high, t):  # type: ignore[no-untyped-def]
    """Return how many of seen_from[:high], sorted from `low` on, are t or before.

    One way out only: with more, the arrays of every query are counted as used, which takes longer
    than to search them.
    """
    while low < high:
        middle = (low + high) >> 1
        if seen_from[middle] <= t:
            low = middle + 1
        else:
            high = middle
    return low


@kept(definitions)
def _order(keys, event, created, sequence, groups):  # type: ignore[no-untyped-def]
    starts, rows, seen_from = _group(keys, event, created, groups)
    for group in range(groups):
        first, end = starts[group], starts[group + 1]
        _sort(seen_from, rows, first, end)
        for i in range(first + 1, end):
            if not _is_greater(event, created, sequence, rows[i], rows[i - 1]):
                rows[i] = rows[i - 1]
    return starts, rows, seen_from


@kept()
def _find(starts, rows, seen_from, query_keys, query_times):  # type: ignore[no-untyped-def]
    found = np.empty(query_keys.size, dtype=np.int64)
    for query in range(query_keys.size):
        key = query_keys[query]
        first = starts[key] if key >= 0 else 0
        end = starts[key + 1] if key >= 0 else 0
        place = _last_until(seen_from, first, end, query_times[query])
        found[query] = rows[place - 1] if place > first else -1
    return found


@kept(row_layout, status_rule)
def put_last_known(rows, event, times, ttl, values, valid, targets, words, status):  # type: ignore[no-untyped-def]
    """Write the fields of the rows that were found, as of `times`, into an assembly.

    rows: int64[queries] of `last_known_rows`; ttl: microseconds, or `row.NO_TTL`; values:
    int64[n, F] and valid: bool[n, F], a word each; field f goes to words[:, targets[f]] where that
    is 0 or more.
    """
    for query in range(rows.size):
        row = rows[query]
        outcome = NOT_FOUND if row < 0 else status_at(event[row], times[query], ttl)
        if outcome != PRESENT:
            put_absent(words, status, query, targets, outcome)
            continue
        for field in range(targets.size):
            if targets[field] >= 0:
                is_null = not valid[row, field]
                put_value(words, status, query, targets[field], values[row, field], is_null)
