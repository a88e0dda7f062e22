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
COUNT, SUM_INT, SUM_FLOAT, MIN_INT, MAX_INT, MIN_FLOAT, MAX_FLOAT = range(7)
SLOT_WORDS = {SUM_FLOAT: SUM_WORDS}  # the others: 1
# What an output makes of them.
OUT_COUNT, OUT_INT, OUT_MIN_FLOAT, OUT_MAX_FLOAT, OUT_SUM_FLOAT, OUT_MEAN_INT, OUT_MEAN_FLOAT = (
    range(7)
)

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
L_FIXED = 21
LEVEL_ROW = 2  # hop, longest window
SLOT_ROW = 5  # kind, bit, place of its cells in a tile, column, operand (-1: none in history)
WINDOW_ROW = 5  # level, length, kind, its first output and where they end
OUTPUT_ROW = 4  # kind, slot, slot of the count, place among the features
# Kinds of windows: ends at the time of the query, ended before it, begins where a session does.
OPEN, PREVIOUS, SESSION = range(3)
# What is aggregated of events: the word of a column, where a bit of its bitmap is set (-1: always).
# The first operands are the columns by their own bits, the others what filters leave of them.
OPERAND_ROW = 2  # column, bit
EVENT_TIME = -RECORD_FIXED  # as a column: what a record has before its columns

_FUNCTION_SLOTS = {
    "sum": (SUM_INT, SUM_FLOAT),
    "mean": (SUM_INT, SUM_FLOAT),
    "min": (MIN_INT, MIN_FLOAT),
    "max": (MAX_INT, MAX_FLOAT),
}
_FUNCTION_OUTPUTS = {
    "sum": (OUT_INT, OUT_SUM_FLOAT),
    "mean": (OUT_MEAN_INT, OUT_MEAN_FLOAT),
    "min": (OUT_INT, OUT_MIN_FLOAT),
    "max": (OUT_INT, OUT_MAX_FLOAT),
}

_Row = TypeVar("_Row")


def make_layout(view: StreamFeatureView, schema_id: int) -> Words:
    """Return the layout of a view's states: the table for the kernels."""
    hops = view.hops_us
    longest = [0] * len(hops)
    slots = _Slots(view)
    windows: dict[tuple[int, int, int], list[tuple[int, int, int, int]]] = {}
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
    return np.array(table + tail, dtype=np.int64)


def _kind(window: Window) -> int:
    if isinstance(window, SessionWindow):
        return SESSION
    return PREVIOUS if isinstance(window, TumblingWindow) and window.previous else OPEN


class _Slots:
    """The slots of a view's tiles, and the operands that they are of, each once."""

    def __init__(self, view: StreamFeatureView) -> None:
        self._view = view
        self.operands = [(column, column) for column in range(len(view.columns))]
        self.rows: list[tuple[int, int, int, int, int]] = []
        self._found: dict[tuple[int, int], int] = {}
        self.end = 1  # behind the start of the tile

    def of(self, feature: WindowFeature) -> tuple[int, int, int]:
        """Return the kind of a feature's output, its slot and that of its count."""
        view = self._view
        column = -1 if feature.column is None else view.columns.index(feature.column)
        bit = column
        if feature.where is not None:
            bit = len(view.columns) + view.filtered.index((feature.column, feature.where))
        operand = _place(self.operands, (column, bit))
        count = self._slot(COUNT, operand)
        if feature.column is None or feature.function == "count":
            return OUT_COUNT, count, count
        is_float = view.source.dtypes[feature.column].is_float
        slot = self._slot(_FUNCTION_SLOTS[feature.function][is_float], operand)
        return _FUNCTION_OUTPUTS[feature.function][is_float], slot, count

    def first_and_last_time(self) -> tuple[int, int]:
        """Add the times of a tile's first and last event; return their places."""
        first = self.end
        self.end += 2
        self.rows.append((MIN_INT, -1, first, EVENT_TIME, -1))
        self.rows.append((MAX_INT, -1, first + 1, EVENT_TIME, -1))
        return first, first + 1

    def _slot(self, kind: int, operand: int) -> int:
        if (kind, operand) not in self._found:
            self._found[kind, operand] = len(self.rows)
            column, bit = self.operands[operand]
            self.rows.append((kind, bit, self.end, column, operand))
            self.end += SLOT_WORDS.get(kind, 1)
        return self._found[kind, operand]


def _place(rows: list[_Row], row: _Row) -> int:
    if row not in rows:
        rows.append(row)
    return rows.index(row)
