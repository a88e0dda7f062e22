"""What lies where in the state of one (view, entity), and the table that steers the kernels.

A state is a 1-D int64 array; floats lie in it by their bits. It has three parts:

1. A header: see the `AT_*` constants, then per level its number of tiles and the greatest start of
   a tile that was evicted.
2. The head: the newest events as they came, in the order of their insertion: event time, created
   time, bitmap of valid columns, then a word per column.
3. Per level (a distinct hop, ascending): tiles sorted by start: the start, then a word per slot.

An event waits in the head until everything newer than `EXACT_LAG_US` before the newest event has
passed it; then it is folded into the tile of each level, in the order of insertion. So a query at a
time up to that far behind the newest event is still exact: it adds those events of the head that it
may see to the tiles, and no tile holds an event that it may not see. What is folded is never taken
out again (no subtraction), and a query that cannot be exact any more says so.

Because folding keeps the order of insertion, float sums have the same bits whether the events came
by history or by stream. Sawtooth windows after Chronon (airbnb/chronon, windowing); the packed row
per entity after zipline's "MegaTile"; the lagging fold is ours.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple, TypeVar

import numpy as np

from features.definitions import FUNCTIONS, StreamFeatureView
from features.types import Words
from headrace.digest import canonical_json

FORMAT = 0x4852_5701  # "HRW", format 1
NEVER = np.iinfo(np.int64).min

# Header words of a state.
AT_FORMAT = 0  # format << 32 | schema id
AT_LAYOUT = 1  # fingerprint of the layout
AT_MAX_EVENT = 2
AT_MAX_CREATED = 3
AT_FOLDED_EVENT = 4  # greatest event time in any tile
AT_FOLDED_CREATED = 5
AT_HEAD_COUNT = 6
AT_LEVELS = 7  # per level: number of tiles, greatest evicted start
LEVEL_WORDS = 2
HEAD_FIXED = 3  # event time, created time, bitmap

# How far behind its newest event a state still answers exactly, and how many events it keeps for
# that. Above the cap the oldest are folded early: an entity with 1,000 events a second is exact a
# quarter of a second back, one with an event a minute for the whole lag. The lag covers the
# tolerance for future stamps, which is what history needs to be exact always.
EXACT_LAG_US = 15 * 60 * 1_000_000
HEAD_CAP = 256

# Kinds of slots: what a tile keeps.
COUNT, SUM_INT, SUM_FLOAT, MIN_INT, MAX_INT, MIN_FLOAT, MAX_FLOAT = range(7)
# What an output makes of them.
OUT_COUNT, OUT_INT, OUT_FLOAT, OUT_MEAN_INT, OUT_MEAN_FLOAT = range(5)

# The layout table: fixed words, then rows at the offsets that L_AT_* hold.
L_FORMAT, L_LAYOUT, L_COLUMNS, L_SLOTS, L_LEVELS, L_WINDOWS, L_OUTPUTS = range(7)
L_AT_LEVELS, L_AT_SLOTS, L_AT_WINDOWS, L_AT_OUTPUTS = range(7, 11)
L_FIXED = 11
LEVEL_ROW = 2  # hop, longest window
SLOT_ROW = 2  # kind, column (-1: the event itself)
WINDOW_ROW = 2  # level, length
OUTPUT_ROW = 4  # window, kind, slot, slot of the count


_Row = TypeVar("_Row")


class Layout(NamedTuple):
    """The table for the kernels, and what it was made of."""

    table: Words
    columns: int
    slots: int
    levels: int


def make_layout(view: StreamFeatureView, schema_id: int) -> Layout:
    """Return the layout of a view's states."""
    hops = view.hops_us
    longest = [0] * len(hops)
    slots: list[tuple[int, int]] = []
    windows: list[tuple[int, int]] = []
    outputs: list[tuple[int, int, int, int]] = []
    for feature in view.features:
        level = hops.index(feature.window.hop_us)
        longest[level] = max(longest[level], feature.window.length_us)
        window = _place(windows, (level, feature.window.length_us))
        column = -1 if feature.column is None else view.columns.index(feature.column)
        count_slot = _place(slots, (COUNT, column))
        if feature.function == "count":
            outputs.append((window, OUT_COUNT, count_slot, count_slot))
            continue
        assert feature.column is not None
        is_float = view.source.dtypes[feature.column].is_float
        slot = _place(slots, (_slot_kind(feature.function, is_float), column))
        kind = (
            (OUT_MEAN_FLOAT if is_float else OUT_MEAN_INT)
            if feature.function == "mean"
            else (OUT_FLOAT if is_float else OUT_INT)
        )
        outputs.append((window, kind, slot, count_slot))
    levels = list(zip(hops, longest, strict=True))
    shape = [len(view.columns), levels, slots, windows, outputs]
    # 8 bytes of a digest as an int64: a state of another layout is refused, not misread.
    fingerprint = int.from_bytes(
        hashlib.sha256(canonical_json(shape)).digest()[:8], "little", signed=True
    )
    table = [FORMAT << 32 | schema_id, fingerprint, len(view.columns)]
    table += [len(slots), len(hops), len(windows), len(outputs)]
    at = L_FIXED
    tail: list[int] = []
    for rows in (levels, slots, windows, outputs):
        table.append(at + len(tail))
        tail += [word for row in rows for word in row]
    return Layout(np.array(table + tail, dtype=np.int64), len(view.columns), len(slots), len(hops))


def _place(rows: list[_Row], row: _Row) -> int:
    if row not in rows:
        rows.append(row)
    return rows.index(row)


def _slot_kind(function: str, is_float: bool) -> int:
    assert function in FUNCTIONS
    if function in {"sum", "mean"}:
        return SUM_FLOAT if is_float else SUM_INT
    if function == "min":
        return MIN_FLOAT if is_float else MIN_INT
    return MAX_FLOAT if is_float else MAX_INT
