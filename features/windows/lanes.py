"""The events of one key, sorted and laid out so that any range of them is merged in a few steps.

Every slot becomes *lanes* of int64, one number an event, and there are two kinds:

- What adds (counts, sums of integers, the limbs of sums of floats) is kept as running totals, so
  that a range costs two reads. Integers come out exact, so taking one total from another loses
  nothing.
- What is a least or a greatest (as the complement of a least) is kept with the least of each block
  of 32, and of each block of 32 blocks.

The limbs of a column are those that this key's values reach. Are they more than a cell of the
stream keeps (`sums`), then a lane of the greatest limb says which ones count for a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from features.windows.cells import (
    INT_MAX,
    ONE_BITS,
    double_of,
    greatest_key,
    is_taken,
    least_key,
    value_key,
)
from features.windows.decay import weight_of, weighted
from features.windows.layout import (
    COUNT,
    DECAYED,
    EVENT_TIME,
    FIRST_INT,
    L_AT_OPERANDS,
    L_AT_SLOTS,
    L_COLUMNS,
    L_IS_ORDERED,
    L_OPERANDS,
    L_SLOTS,
    LAST_FLOAT,
    LAST_INT,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    NEVER,
    OPERAND_ROW,
    RECORD_FIXED,
    SLOT_ROW,
    SQUARES,
    SUM_FLOAT,
    SUM_INT,
)
from features.windows.moments import SPREAD, SQUARE_LIMBS, split_square, top_of_square
from features.windows.states import record_words
from features.windows.sums import (
    FLAGS_BITS,
    LIMBS,
    add_float,
    flags_of,
    is_added,
    rounded,
    split,
    top_limb,
    top_of,
)
from headrace.compiled import apart, step

BLOCK = 32

# What a slot's lanes are: its first running total and its first least (-1: none), its lowest limb,
# its number of limbs, and its first running total of what is no number (-1: all are).
P_ADDS, P_LEASTS, P_LOWEST, P_LIMBS, P_FLAGS = range(5)
PLAN_ROW = 5


@apart
def lay_out(layout, records, first, count, key):  # type: ignore[no-untyped-def]
    """Bring the `count` records of a key from records[first:] in the order of their event times.

    Where a first or last value is asked for, those of one event time by their created times.
    `key` is (event times, running greatest created time, created times, operands, bitmaps).
    """
    times, newest_created, created_times, operands, bitmaps = key
    stride = record_words(layout)
    is_ordered = layout[L_IS_ORDERED] != 0
    is_sorted = True
    record = first
    for i in range(count):
        times[i] = records[record]
        created_times[i] = records[record + 1]
        if i:
            is_sorted = is_sorted and times[i - 1] <= times[i]
            if is_ordered and times[i - 1] == times[i]:
                is_sorted = is_sorted and created_times[i - 1] <= created_times[i]
        record += stride
    if not is_sorted:
        order = np.argsort(times[:count], kind="mergesort")
        if is_ordered:
            order = np.argsort(created_times[:count], kind="mergesort")
            order = order[np.argsort(times[:count][order], kind="mergesort")]
    newest = np.int64(NEVER)
    newest_created[0] = newest
    for i in range(count):
        record = first + (i if is_sorted else order[i]) * stride
        times[i] = records[record]
        created_times[i] = records[record + 1]
        newest = max(newest, created_times[i])
        newest_created[i + 1] = newest
        bitmaps[i] = records[record + 2]
        for column in range(layout[L_COLUMNS]):
            operands[column, i] = records[record + RECORD_FIXED + column]
    for operand in range(layout[L_COLUMNS], layout[L_OPERANDS]):
        _fill_operand(layout, operand, count, key)


@apart
def _fill_operand(layout, operand, count, key):  # type: ignore[no-untyped-def]
    """Fill an operand that is more than a column: 0 where the event is not taken."""
    event_times, _, _, operands, bitmaps = key
    row = layout[L_AT_OPERANDS] + OPERAND_ROW * operand
    bit, column, is_int, half_life = layout[row], layout[row + 1], layout[row + 2], layout[row + 3]
    for i in range(count):
        word: Any = 0
        if is_taken(bitmaps[i], bit):
            if column >= 0:
                word = double_of(operands[column, i], is_int)
            else:
                word = event_times[i] if column == EVENT_TIME else ONE_BITS
            if half_life:
                word = weighted(word, weight_of(event_times[i], half_life)[0])
        operands[operand, i] = word


@apart
def plan_lanes(layout, key, count, plan):  # type: ignore[no-untyped-def]
    """Fill `plan` (a row per slot) and return the numbers of running totals and of leasts."""
    operands, bitmaps = key[3], key[4]
    filled = np.int64(-1)  # bitmap of the columns without a null
    for i in range(count):
        filled &= bitmaps[i]
    adds = leasts = 0
    row = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        kind = layout[row]
        bit = layout[row + 1]
        operand = layout[row + 3]
        row += SLOT_ROW
        plan[slot, :] = -1
        if operand < 0 and kind != COUNT:
            continue
        if kind == COUNT:
            # Without a null it is the number of events.
            if not is_taken(filled, bit):
                plan[slot, P_ADDS] = adds
                adds += 1
        elif kind == SUM_INT:
            plan[slot, P_ADDS] = adds
            adds += 1
        elif kind in (SUM_FLOAT, SQUARES):
            lowest, limbs, flags = _reach(kind, operands, operand, count)
            plan[slot, P_ADDS] = adds
            plan[slot, P_LOWEST] = lowest
            plan[slot, P_LIMBS] = limbs
            adds += limbs
            if flags:
                plan[slot, P_FLAGS] = adds
                adds += 3
            if limbs > limbs_of(kind):
                plan[slot, P_LEASTS] = leasts
                leasts += 1
        else:
            plan[slot, P_LEASTS] = leasts
            leasts += 1
    return adds, leasts


@step
def limbs_of(kind):  # type: ignore[no-untyped-def]
    """Return how many limbs a cell keeps."""
    return SQUARE_LIMBS if kind == SQUARES else LIMBS


@step
def _top(kind, word):  # type: ignore[no-untyped-def]
    """Return the greatest limb of what a sum takes of a value that is not zero."""
    return top_of_square(word) if kind == SQUARES else top_of(word, 0)


@apart
def _reach(kind, operands, operand, count):  # type: ignore[no-untyped-def]
    """Return the lowest limb of an operand, how many limbs it reaches, and its flags."""
    least, greatest, flags = INT_MAX, NEVER, 0
    for i in range(count):
        # A null is 0: `write_record`.
        word = operands[operand, i]
        flags |= flags_of(word)
        if is_added(word):
            top = _top(kind, word)
            least = min(least, top)
            greatest = max(greatest, top)
    if greatest == NEVER:
        return 0, 0, flags
    below = SPREAD - 1 if kind == SQUARES else 2
    return least - below, greatest - least + below + 1, flags


@step
def lane_words(count):  # type: ignore[no-untyped-def]
    """Length of a lane of leasts: the events, the blocks, the blocks of blocks."""
    blocks = (count + BLOCK - 1) // BLOCK
    return count + blocks + (blocks + BLOCK - 1) // BLOCK


@apart
def fill_lanes(layout, key, count, plan, totals, leasts):  # type: ignore[no-untyped-def]
    """Fill the running totals [lane, count + 1] and the leasts [lane, lane_words(count)]."""
    operands, bitmaps = key[3], key[4]
    width = count + 1
    row = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        kind = layout[row]
        bit = layout[row + 1]
        operand = layout[row + 3]
        half_life = layout[row + 6]
        row += SLOT_ROW
        at = plan[slot, P_ADDS] * width
        lane = plan[slot, P_LEASTS] * lane_words(count)
        if kind in (SUM_FLOAT, SQUARES):
            _fill_limbs(kind, plan, slot, operands, operand, count, totals)
            if plan[slot, P_FLAGS] >= 0:
                _fill_flags(operands, operand, count, totals, plan[slot, P_FLAGS] * width)
        elif plan[slot, P_ADDS] >= 0:
            totals[at] = 0
            for i in range(count):
                more = operands[operand, i] if kind == SUM_INT else (bitmaps[i] >> bit) & 1
                totals[at + i + 1] = totals[at + i] + more
        if plan[slot, P_LEASTS] >= 0:
            if kind >= FIRST_INT:
                _fill_ends(kind, bit, operand, count, key, leasts, lane)
            elif kind == DECAYED:
                _fill_tops(operand, half_life, count, key, leasts, lane)
            else:
                for i in range(count):
                    taken = is_taken(bitmaps[i], bit)
                    leasts[lane + i] = _least_word(kind, operands[operand, i]) if taken else INT_MAX
            _fill_blocks(leasts, lane, count)


@step
def _least_word(kind, word):  # type: ignore[no-untyped-def]
    """Return what a lane of leasts holds for a value."""
    if kind == MIN_INT:
        return word
    if kind == MAX_INT:
        return ~word
    if kind == MIN_FLOAT:
        return least_key(word)
    if kind == MAX_FLOAT:
        return ~greatest_key(word)
    return ~_top(kind, word) if is_added(word) else INT_MAX


@apart
def _fill_ends(kind, bit, operand, count, key, leasts, lane):  # type: ignore[no-untyped-def]
    """Fill a lane of a first or last value: each event has the index of the one that stands for
    all of its event and created time (of a last value its complement).
    """
    times, _, created_times, operands, bitmaps = key
    is_last = kind in (LAST_INT, LAST_FLOAT)
    begin = 0
    while begin < count:
        end = begin
        chosen = -1
        while (
            end < count
            and times[end] == times[begin]
            and (created_times[end] == created_times[begin])
        ):
            if is_taken(bitmaps[end], bit):
                value = value_key(kind, operands[operand, end])
                if chosen < 0 or (value > value_key(kind, operands[operand, chosen])) == is_last:
                    chosen = end
            end += 1
        for i in range(begin, end):
            leasts[lane + i] = INT_MAX
            if is_taken(bitmaps[i], bit):
                leasts[lane + i] = ~chosen if is_last else chosen
        begin = end


@apart
def _fill_tops(operand, half_life, count, key, leasts, lane):  # type: ignore[no-untyped-def]
    """Fill a lane with the complements of the greatest limbs of what decays: see `add_decayed`."""
    times, operands = key[0], key[3]
    for i in range(count):
        word = operands[operand, i]
        if is_added(word):
            leasts[lane + i] = ~top_of(word, weight_of(times[i], half_life)[1])
        else:
            # What is no number is never passed over.
            leasts[lane + i] = NEVER if flags_of(word) else INT_MAX


@apart
def add_decayed(operand, half_life, count, key, leasts, lane, first, end, cells, at):  # type: ignore[no-untyped-def]
    """Add the events [first, end) of an operand that decays to a cell, the newest first.

    Their limbs reach too far for running totals. But what lies below the limbs that the cell keeps
    is nothing to it, and so most blocks are passed over.
    """
    times, operands = key[0], key[3]
    i = end
    while i > first:
        lowest = top_limb(cells, at, LIMBS) - LIMBS + 1
        is_whole = i % BLOCK == 0 and i - BLOCK >= first
        if is_whole and ~leasts[lane + count + i // BLOCK - 1] < lowest:
            i -= BLOCK
            continue
        i -= 1
        if ~leasts[lane + i] >= lowest:
            word = operands[operand, i]
            add_float(cells, at, word, weight_of(times[i], half_life)[1])


@apart
def _fill_limbs(kind, plan, slot, operands, operand, count, totals):  # type: ignore[no-untyped-def]
    width = count + 1
    at = plan[slot, P_ADDS] * width
    limbs = plan[slot, P_LIMBS]
    lowest = plan[slot, P_LOWEST]
    for limb in range(limbs):
        totals[at + limb * width] = 0
    for i in range(count):
        for limb in range(limbs):
            place = at + limb * width + i
            totals[place + 1] = totals[place]
        word = operands[operand, i]
        if is_added(word):
            top = _top(kind, word)
            if kind == SQUARES:
                place = at + (top - SPREAD + 1 - lowest) * width + i + 1
                parts = split_square(word, top)
                for limb in range(SPREAD):
                    totals[place + limb * width] += parts[limb]
            else:
                place = at + (top - 2 - lowest) * width + i + 1
                low, middle, high = split(word, 0, top)
                totals[place] += low
                totals[place + width] += middle
                totals[place + 2 * width] += high


@apart
def _fill_flags(operands, operand, count, totals, at):  # type: ignore[no-untyped-def]
    width = count + 1
    for kind in range(3):
        totals[at] = 0
        for i in range(count):
            totals[at + i + 1] = totals[at + i] + ((flags_of(operands[operand, i]) >> kind) & 1)
        at += width


@apart
def _fill_blocks(leasts, lane, count):  # type: ignore[no-untyped-def]
    source, target, left = lane, lane + count, count
    for _ in range(2):
        blocks = (left + BLOCK - 1) // BLOCK
        for block in range(blocks):
            least = INT_MAX
            for i in range(source + block * BLOCK, source + min((block + 1) * BLOCK, left)):
                least = min(least, leasts[i])
            leasts[target + block] = least
        source, target, left = target, target + blocks, blocks


@step
def least_of(leasts, lane, count, first, end):  # type: ignore[no-untyped-def]
    """Return the least of the events [first, end) of a lane."""
    least = INT_MAX
    base, left = lane, count
    for level in range(3):
        first_block = (first + BLOCK - 1) // BLOCK
        end_block = end // BLOCK
        if level == 2 or first_block >= end_block:
            for i in range(base + first, base + end):
                least = min(least, leasts[i])
            return least
        for i in range(base + first, base + first_block * BLOCK):
            least = min(least, leasts[i])
        for i in range(base + end_block * BLOCK, base + end):
            least = min(least, leasts[i])
        base += left
        left = (left + BLOCK - 1) // BLOCK
        first, end = first_block, end_block
    return least


@step
def _found_top(kind, plan, slot, least):  # type: ignore[no-untyped-def]
    """Return the greatest limb that counts of a slot's sum in a window; NEVER: there is none."""
    if plan[slot, P_LIMBS] > limbs_of(kind):
        return ~least[plan[slot, P_LEASTS]]
    # All limbs that there are fit into a cell.
    return plan[slot, P_LOWEST] + limbs_of(kind) - 1


@step
def _found_flags(plan, slot, added):  # type: ignore[no-untyped-def]
    flags = 0
    if plan[slot, P_FLAGS] >= 0:
        for kind in range(3):
            if added[plan[slot, P_FLAGS] + kind]:
                flags |= 1 << kind
    return flags


@step
def sum_of(plan, slot, added, least):  # type: ignore[no-untyped-def]
    """Return the rounded sum of floats of a slot, from its lanes' results."""
    at, limbs = plan[slot, P_ADDS], plan[slot, P_LIMBS]
    flags = _found_flags(plan, slot, added)
    top = _found_top(SUM_FLOAT, plan, slot, least)
    if top == NEVER:
        return rounded(0, 0, 0, 0, 0, flags)
    first = top - LIMBS + 1 - plan[slot, P_LOWEST]
    return rounded(
        added[at + first] if 0 <= first < limbs else 0,
        added[at + first + 1] if 0 <= first + 1 < limbs else 0,
        added[at + first + 2] if 0 <= first + 2 < limbs else 0,
        added[at + first + 3] if 0 <= first + 3 < limbs else 0,
        32 * (top - LIMBS + 1),
        flags,
    )


@apart
def fill_cell(kind, plan, slot, added, least, cells):  # type: ignore[no-untyped-def]
    """Write the cell that a sum of floats or squares would be in the stream to cells[0:]."""
    size = limbs_of(kind)
    at, limbs = plan[slot, P_ADDS], plan[slot, P_LIMBS]
    top = _found_top(kind, plan, slot, least)
    cells[: size + 1] = 0
    cells[size] = _found_flags(plan, slot, added)
    if top == NEVER or limbs == 0:
        return
    cells[size] |= (top + 1) << FLAGS_BITS
    for i in range(size):
        limb = top - size + 1 + i
        if 0 <= limb - plan[slot, P_LOWEST] < limbs:
            cells[limb & (size - 1)] = added[at + limb - plan[slot, P_LOWEST]]
