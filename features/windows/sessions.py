"""Where the sessions begin that a query sees.

A session is what a sliding window holds from the last pause on that is longer than the gap. Its
tiles are as wide as the gap, so that no pause lies within one, and keep the times of their first
and last event: it takes no more than these, and the times in the tail, to find a session exactly.
"""

from __future__ import annotations

import numpy as np

from features.windows.layout import (
    AT_LEVELS,
    L_AT_LEVELS,
    L_AT_WINDOWS,
    L_FIRST_TIME,
    L_INCLUDES_NOW,
    L_LAST_TIME,
    L_LEVELS,
    L_TILE,
    L_WINDOWS,
    LEVEL_ROW,
    LEVEL_WORDS,
    NEVER,
    SESSION,
    WINDOW_ROW,
)
from features.windows.states import header_words, is_folded, record_words, tail_start
from headrace.compiled import apart, step


@step
def gap_of(layout, window):  # type: ignore[no-untyped-def]
    """Return the gap of a window that is a session, else 0."""
    row = layout[L_AT_WINDOWS] + WINDOW_ROW * window
    if layout[row + 2] != SESSION:
        return 0
    return layout[layout[L_AT_LEVELS] + LEVEL_ROW * layout[row]]


@apart
def find_sessions(layout, words, at, length, t, lowest, lows):  # type: ignore[no-untyped-def]
    """Raise the far edge in `lows` of each window that is a session to where it begins.

    To after t where it is over.
    """
    times = _seen_times(layout, words, at, length, t, lowest)
    base = at + header_words(layout)
    tile = layout[L_TILE]
    for level in range(layout[L_LEVELS]):
        count = 0
        if is_folded(layout, words, at, length):
            count = words[at + AT_LEVELS + LEVEL_WORDS * level]
        for window in range(layout[L_WINDOWS]):
            gap = gap_of(layout, window)
            if gap and layout[layout[L_AT_WINDOWS] + WINDOW_ROW * window] == level:
                last = base + (count - 1) * tile
                lows[window] = _session_start(
                    words, times, last, count, tile, layout[L_FIRST_TIME], layout[L_LAST_TIME], t,
                    lows[window], gap,
                )  # fmt: skip
        base += count * tile


@step
def _seen_times(layout, words, at, length, t, lowest):  # type: ignore[no-untyped-def]
    """Return the event times from `lowest` on that t may see of the tail, ascending."""
    start = tail_start(layout, words, at, length)
    stride = record_words(layout)
    times = np.empty((length - start) // stride, dtype=np.int64)
    number = 0
    for record in range(at + start, at + length, stride):
        event = words[record]
        if lowest <= event < t + layout[L_INCLUDES_NOW] and words[record + 1] <= t:
            times[number] = event
            number += 1
    return np.sort(times[:number])


@step
def _session_start(words, times, last, count, stride, first_time, last_time, t, far, gap):  # type: ignore[no-untyped-def]
    """Walk back from t over events and tiles (`count` of them, the last at words[last])."""
    reached = t
    event, tile = times.size - 1, last
    left = count
    found = False
    while True:
        newest_event = times[event] if event >= 0 else NEVER
        newest_in_tile = words[tile + last_time] if left else NEVER
        newest = max(newest_event, newest_in_tile)
        if newest < far or reached - newest > gap:
            # All that there is from this hop on belongs to the session.
            return reached // gap * gap if found else t + 1
        found = True
        if newest_event >= newest_in_tile:
            reached = min(reached, newest_event)
            event -= 1
        else:
            reached = min(reached, words[tile + first_time])
            tile -= stride
            left -= 1


@step
def session_start(times, runs, number, t, far, gap):  # type: ignore[no-untyped-def]
    """Return the same from the sorted times of a history, of which `runs` can be seen."""
    reached = t
    found = False
    for run in range(number):
        for i in range(runs[run, 1] - 1, runs[run, 0] - 1, -1):
            if times[i] < far or reached - times[i] > gap:
                return reached // gap * gap if found else t + 1
            reached = times[i]
            found = True
    return reached // gap * gap if found else t + 1
