"""What lies where in the state of one (view, entity), and the table that steers the kernels.

A state is a 1-D int64 array of up to three parts, one after the other:

1. A header (`AT_*`), then per level its number of tiles and the greatest start of one that was
   evicted.
2. Per level (a distinct hop, ascending): tiles sorted by start: the start, then the cells of every
   slot (`cells`).
3. The tail: records, one per event, in the order in which they came: event time, created time, tag
   with the bitmap of what is to be taken of it (`events.event_words`), then a word per column.

A new entity's state is a tail alone, so that an event is added by appending its record, without
reading anything. When the tail has grown, it is *compacted*: what is older than `EXACT_LAG_US`
before the newest event is folded into the tiles of each level. A query adds those records of the
tail that it may see to the tiles, and no tile holds an event that a query within the lag may not
see. What is folded is never taken out again (no subtraction), and a query that cannot be exact any
more says so. Where the tiles would take more room than the records, the records stay.

No cell depends on the order in which events came (`sums`), so neither when a state was compacted
nor by whom changes an answer. Sawtooth windows after Chronon (airbnb/chronon, windowing); the
packed row per entity after zipline's "MegaTile"; the lagging fold is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np

from features.aggregations import SessionWindow, TumblingWindow, Window, WindowFeature
from features.definitions import StreamFeatureView
from features.types import Words
from features.windows.moments import SQUARE_WORDS
from features.windows.sums import SUM_WORDS
from headrace.digest import canonical_json

FORMAT = 0x4852_5702  # "HRW", format 2
NEVER = np.iinfo(np.int64).min

# Header words. The first is no event time: those end far below it.
AT_FORMAT = 0  # format << 32 | schema id
AT_LAYOUT = 1  # fingerprint of the layout
AT_WORDS = 2  # length of header and tiles: where the tail begins
AT_FOLDED_EVENT = 3  # greatest event time in any tile
AT_FOLDED_CREATED = 4
AT_LEVELS = 5  # per level: number of tiles, greatest evicted start
LEVEL_WORDS = 2

# Words of a record. The tag tells records of one layout from those of another.
RECORD_FIXED = 3  # event time, created time, tag << TAG_SHIFT | bitmap
TAG_SHIFT = 48

# How far behind its newest event a state still answers exactly, and how many records a compaction
# leaves for that. Above it the first that came are folded early: an entity with 1,000 events a
# second is exact an eighth of a second back, one with an event in ten seconds for the whole lag.
# The lag covers the tolerance for future stamps.
EXACT_LAG_US = 15 * 60 * 1_000_000
TAIL_KEPT = 128
# Compaction is tried whenever the tail holds a multiple of so many records, and done in any case
# from `TAIL_MAX` records on, even where tiles take more room.
TAIL_STEP = 128
TAIL_MAX = 512

# Kinds of slots: what a tile keeps. Least and greatest are kept as integers that sort alike.
COUNT, SUM_INT, SUM_FLOAT, MIN_INT, MAX_INT, MIN_FLOAT, MAX_FLOAT, SQUARES, DECAYED = range(9)
# These keep the value, its event time and its created time.
FIRST_INT, FIRST_FLOAT, LAST_INT, LAST_FLOAT = range(9, 13)
SLOT_WORDS = {SUM_FLOAT: SUM_WORDS, DECAYED: SUM_WORDS, SQUARES: SQUARE_WORDS}
SLOT_WORDS |= dict.fromkeys((FIRST_INT, FIRST_FLOAT, LAST_INT, LAST_FLOAT), 3)  # the others: 1
# What an output makes of them.
OUT_COUNT, OUT_INT, OUT_MIN_FLOAT, OUT_MAX_FLOAT, OUT_SUM_FLOAT, OUT_MEAN_INT, OUT_MEAN_FLOAT = (
    range(7)
)
OUT_RATE, OUT_SECONDS_SINCE, OUT_VARIANCE, OUT_STDDEV = range(7, 11)
OUT_DECAYED_COUNT, OUT_DECAYED_SUM, OUT_DECAYED_MEAN = range(11, 14)

# The layout table: fixed words, then rows at the offsets that L_AT_* hold.
L_FORMAT, L_LAYOUT, L_TAG, L_COLUMNS, L_BITS = range(5)
L_TILE = 5  # words of a tile, its start among them
L_INCLUDES_NOW = 6  # 1: an event at the time of the query counts
L_LATENESS = 7  # µs; an event that was created later than so much after its time is left out
L_LEVELS, L_SLOTS, L_WINDOWS, L_OUTPUTS, L_OPERANDS = range(8, 13)
L_AT_LEVELS, L_AT_SLOTS, L_AT_WINDOWS, L_AT_OUTPUTS, L_AT_OPERANDS = range(13, 18)
L_OPEN = 18  # number of windows that end at the time of the query: all but the previous ones
# Where a tile keeps the times of its first and last event, which sessions need (0: nowhere).
L_FIRST_TIME, L_LAST_TIME = 19, 20
L_IS_ORDERED = 21  # 1: a first or last value is asked for
L_FIXED = 22
LEVEL_ROW = 2  # hop, longest window
SLOT_ROW = 7  # kind, bit, place of its cells in a tile, its operand (-1: none) and what that is
WINDOW_ROW = 5  # level, length, kind, its first output and where they end
OUTPUT_ROW = 5  # kind, slot, slot of the count, another slot, place among the features
# Kinds of windows: ends at the time of the query, ended before it, begins where a session does.
OPEN, PREVIOUS, SESSION = range(3)
# What is aggregated of events: the word of a column, where a bit of its bitmap is set (-1: always).
# The first operands are the columns by their own bits.
OPERAND_ROW = 4  # bit, column, whether an integer becomes a double, half-life if it decays (else 0)
# As a column: what a record has before its columns, and the number 1.
EVENT_TIME, ONE = -RECORD_FIXED, -1

_FUNCTION_SLOTS = {
    "sum": (SUM_INT, SUM_FLOAT),
    "mean": (SUM_INT, SUM_FLOAT),
    "min": (MIN_INT, MIN_FLOAT),
    "max": (MAX_INT, MAX_FLOAT),
    "first": (FIRST_INT, FIRST_FLOAT),
    "last": (LAST_INT, LAST_FLOAT),
}
_FUNCTION_OUTPUTS = {
    "sum": (OUT_INT, OUT_SUM_FLOAT),
    "mean": (OUT_MEAN_INT, OUT_MEAN_FLOAT),
    "min": (OUT_INT, OUT_MIN_FLOAT),
    "max": (OUT_INT, OUT_MAX_FLOAT),
    "first": (OUT_INT, OUT_MAX_FLOAT),
    "last": (OUT_INT, OUT_MAX_FLOAT),
}
_MOMENTS = {"variance": OUT_VARIANCE, "stddev": OUT_STDDEV}
_DECAYED = {"decayed_sum": OUT_DECAYED_SUM, "decayed_mean": OUT_DECAYED_MEAN}

_Row = TypeVar("_Row")


def make_layout(view: StreamFeatureView, schema_id: int) -> Words:
    """Return the layout of a view's states: the table for the kernels."""
    hops = view.hops_us
    longest = [0] * len(hops)
    slots = _Slots(view)
    windows: dict[tuple[int, int, int], list[tuple[int, ...]]] = {}
    for place, feature in enumerate(view.features):
        level = hops.index(feature.window.hop_us)
        longest[level] = max(longest[level], feature.window.length_us)
        window = level, feature.window.length_us, _kind(feature.window)
        windows.setdefault(window, []).append((*slots.of(feature), place))
    session_times = (0, 0)
    if any(kind == SESSION for _, _, kind in windows):
        session_times = slots.first_and_last_time()
    columns, bits = len(view.columns), len(view.columns) + len(view.filtered)
    levels = list(zip(hops, longest, strict=True))
    ends = list(accumulate((len(outputs) for outputs in windows.values()), initial=0))
    placed = [(*window, *ends[i : i + 2]) for i, window in enumerate(windows)]
    outputs = [output for outputs in windows.values() for output in outputs]
    tables: list[Sequence[tuple[int, ...]]] = [levels, slots.rows, placed, outputs, slots.operands]
    # 8 bytes of a digest as an int64: a state of another layout is refused, not misread.
    digest = hashlib.sha256(canonical_json([columns, bits, tables, schema_id])).digest()
    fingerprint = int.from_bytes(digest[:8], "little", signed=True)
    tag = int.from_bytes(digest[8:10], "little", signed=True)
    table = [FORMAT << 32 | schema_id, fingerprint, tag, columns, bits]
    table += [slots.end, int(view.includes_now), view.allowed_lateness_us]
    table += [len(rows) for rows in tables]
    tail: list[int] = []
    for rows in tables:
        table.append(L_FIXED + len(tail))
        tail += [word for row in rows for word in row]
    table += [sum(kind != PREVIOUS for _, _, kind in windows), *session_times]
    table.append(int(any(row[0] >= FIRST_INT for row in slots.rows)))
    return np.array(table + tail, dtype=np.int64)


def _kind(window: Window) -> int:
    if isinstance(window, SessionWindow):
        return SESSION
    return PREVIOUS if isinstance(window, TumblingWindow) and window.previous else OPEN


class _Slots:
    """The slots of a view's tiles, and the operands that they are of, each once."""

    def __init__(self, view: StreamFeatureView) -> None:
        self._view = view
        self.operands = [(column, column, 0, 0) for column in range(len(view.columns))]
        self.rows: list[tuple[int, ...]] = []
        self._found: dict[tuple[int, ...], int] = {}
        self.end = 1  # behind the start of the tile

    def of(self, feature: WindowFeature) -> tuple[int, int, int, int]:
        """Return the kind of a feature's output, its slot, that of its count, and another one."""
        view, function = self._view, feature.function
        column = ONE if feature.column is None else view.columns.index(feature.column)
        bit = column
        if feature.where is not None:
            bit = len(view.columns) + view.filtered.index((feature.column, feature.where))
        count = self._slot(COUNT, bit)
        if function in {"count", "rate"}:
            return (OUT_COUNT if function == "count" else OUT_RATE), count, count, count
        if function == "seconds_since_last":
            newest = self._slot(MAX_INT, bit, EVENT_TIME)
            return OUT_SECONDS_SINCE, newest, count, count
        if function == "decayed_count":
            ones = self._slot(DECAYED, bit, ONE, 0, feature.half_life_us)
            return OUT_DECAYED_COUNT, ones, count, ones
        assert feature.column is not None
        is_int = not view.source.dtypes[feature.column].is_float
        if function in _DECAYED:
            slot = self._slot(DECAYED, bit, column, is_int, feature.half_life_us)
            ones = slot
            if function == "decayed_mean":
                ones = self._slot(DECAYED, bit, ONE, 0, feature.half_life_us)
            return _DECAYED[function], slot, count, ones
        if function in _MOMENTS:
            total = self._slot(SUM_FLOAT, bit, column, is_int)
            return _MOMENTS[function], total, count, self._slot(SQUARES, bit, column, is_int)
        slot = self._slot(_FUNCTION_SLOTS[function][not is_int], bit, column)
        return _FUNCTION_OUTPUTS[function][not is_int], slot, count, count

    def first_and_last_time(self) -> tuple[int, int]:
        """Add the times of a tile's first and last event; return their places."""
        first = self.end
        self.end += 2
        self.rows.append((MIN_INT, -1, first, -1, EVENT_TIME, 0, 0))
        self.rows.append((MAX_INT, -1, first + 1, -1, EVENT_TIME, 0, 0))
        return first, first + 1

    def _slot(self, kind: int, bit: int, *value: int) -> int:
        """Return the slot of a kind; `value`: the rest of its operand, if it needs one."""
        column, is_int, half_life_us = (*value, 0, 0, 0)[:3]
        whole = bit, column, int(is_int), half_life_us
        if (kind, *whole) not in self._found:
            self._found[kind, *whole] = len(self.rows)
            operand = _place(self.operands, whole) if value else -1
            self.rows.append((kind, bit, self.end, operand, *whole[1:]))
            self.end += SLOT_WORDS.get(kind, 1)
        return self._found[kind, *whole]


def _place(rows: list[_Row], row: _Row) -> int:
    if row not in rows:
        rows.append(row)
    return rows.index(row)
