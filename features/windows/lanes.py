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

import numpy as np

from features.windows.cells import INT_MAX, greatest_key, is_taken, least_key
from features.windows.layout import (
    COUNT,
    L_AT_OPERANDS,
    L_AT_SLOTS,
    L_COLUMNS,
    L_OPERANDS,
    L_SLOTS,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    NEVER,
    OPERAND_ROW,
    RECORD_FIXED,
    SLOT_ROW,
    SUM_FLOAT,
    SUM_INT,
)
from features.windows.states import record_words
from features.windows.sums import LIMBS, flags_of, is_added, rounded, split, top_of
from headrace.compiled import step

BLOCK = 32

# What a slot's lanes are: its first running total and its first least (-1: none), its lowest limb,
# its number of limbs, and its first running total of what is no number (-1: all are).
P_ADDS, P_LEASTS, P_LOWEST, P_LIMBS, P_FLAGS = range(5)
PLAN_ROW = 5


@step
def lay_out(layout, records, first, count, key):  # type: ignore[no-untyped-def]
    """Bring the `count` records of a key from records[first:] in the order of their event times.

    `key` is (event times, running greatest created time, created times, operands, bitmaps).
    """
    times, newest_created, created_times, operands, bitmaps = key
    stride = record_words(layout)
    is_sorted = True
    record = first
    for i in range(count):
        times[i] = records[record]
        is_sorted = is_sorted and (i == 0 or times[i - 1] <= times[i])
        record += stride
    if not is_sorted:
        order = np.argsort(times[:count], kind="mergesort")
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
        _fill_operand(layout, operand, count, operands, bitmaps)


@step
def _fill_operand(layout, operand, count, operands, bitmaps):  # type: ignore[no-untyped-def]
    """Fill what a filter leaves of a column: 0 where the event is not taken."""
    row = layout[L_AT_OPERANDS] + OPERAND_ROW * operand
    column = layout[row]
    if column < 0:
        return
    for i in range(count):
        operands[operand, i] = operands[column, i] if is_taken(bitmaps[i], layout[row + 1]) else 0


@step
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
        operand = layout[row + 4]
        row += SLOT_ROW
        plan[slot, :] = -1
        if operand < 0:
            continue
        if kind == COUNT:
            # Without a null it is the number of events.
            if not is_taken(filled, bit):
                plan[slot, P_ADDS] = adds
                adds += 1
        elif kind == SUM_INT:
            plan[slot, P_ADDS] = adds
            adds += 1
        elif kind == SUM_FLOAT:
            lowest, limbs, flags = _reach(operands, operand, count)
            plan[slot, P_ADDS] = adds
            plan[slot, P_LOWEST] = lowest
            plan[slot, P_LIMBS] = limbs
            adds += limbs
            if flags:
                plan[slot, P_FLAGS] = adds
                adds += 3
            if limbs > LIMBS:
                plan[slot, P_LEASTS] = leasts
                leasts += 1
        else:
            plan[slot, P_LEASTS] = leasts
            leasts += 1
    return adds, leasts


@step
def _reach(operands, operand, count):  # type: ignore[no-untyped-def]
    """Return the lowest limb of an operand, how many limbs it reaches, and its flags."""
    least, greatest, flags = INT_MAX, NEVER, 0
    for i in range(count):
        # A null is 0: `write_record`.
        word = operands[operand, i]
        flags |= flags_of(word)
        if is_added(word):
            top = top_of(word)
            least = min(least, top)
            greatest = max(greatest, top)
    if greatest == NEVER:
        return 0, 0, flags
    return least - 2, greatest - least + 3, flags


@step
def lane_words(count):  # type: ignore[no-untyped-def]
    """Length of a lane of leasts: the events, the blocks, the blocks of blocks."""
    blocks = (count + BLOCK - 1) // BLOCK
    return count + blocks + (blocks + BLOCK - 1) // BLOCK


@step
def fill_lanes(layout, key, count, plan, totals, leasts):  # type: ignore[no-untyped-def]
    """Fill the running totals [lane, count + 1] and the leasts [lane, lane_words(count)]."""
    operands, bitmaps = key[3], key[4]
    width = count + 1
    row = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        kind = layout[row]
        bit = layout[row + 1]
        operand = layout[row + 4]
        row += SLOT_ROW
        at = plan[slot, P_ADDS] * width
        lane = plan[slot, P_LEASTS] * lane_words(count)
        if kind == SUM_FLOAT:
            _fill_limbs(plan, slot, operands, operand, count, totals)
            if plan[slot, P_FLAGS] >= 0:
                _fill_flags(operands, operand, count, totals, plan[slot, P_FLAGS] * width)
        elif plan[slot, P_ADDS] >= 0:
            totals[at] = 0
            for i in range(count):
                more = operands[operand, i] if kind == SUM_INT else (bitmaps[i] >> bit) & 1
                totals[at + i + 1] = totals[at + i] + more
        if plan[slot, P_LEASTS] >= 0:
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
    return ~top_of(word) if is_added(word) else INT_MAX


@step
def _fill_limbs(plan, slot, operands, operand, count, totals):  # type: ignore[no-untyped-def]
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
            top = top_of(word)
            low, middle, high = split(word, top)
            place = at + (top - 2 - lowest) * width + i + 1
            totals[place] += low
            totals[place + width] += middle
            totals[place + 2 * width] += high


@step
def _fill_flags(operands, operand, count, totals, at):  # type: ignore[no-untyped-def]
    width = count + 1
    for kind in range(3):
        totals[at] = 0
        for i in range(count):
            totals[at + i + 1] = totals[at + i] + ((flags_of(operands[operand, i]) >> kind) & 1)
        at += width


@step
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
def sum_of(plan, slot, added, least):  # type: ignore[no-untyped-def]
    """Return the rounded sum of floats of a slot, from its lanes' results."""
    at, limbs, flags = plan[slot, P_ADDS], plan[slot, P_LIMBS], 0
    if plan[slot, P_FLAGS] >= 0:
        for kind in range(3):
            if added[plan[slot, P_FLAGS] + kind]:
                flags |= 1 << kind
    first, top = np.int64(0), plan[slot, P_LOWEST] + LIMBS - 1
    if limbs > LIMBS:
        top = ~least[plan[slot, P_LEASTS]]
        if top == NEVER:
            return rounded(first, first, first, first, first, flags)
        first = top - LIMBS + 1 - plan[slot, P_LOWEST]
    return rounded(
        added[at + first] if 0 <= first < limbs else 0,
        added[at + first + 1] if 0 <= first + 1 < limbs else 0,
        added[at + first + 2] if 0 <= first + 2 < limbs else 0,
        added[at + first + 3] if 0 <= first + 3 < limbs else 0,
        top,
        flags,
    )
