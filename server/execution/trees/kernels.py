"""The compiled code that evaluates an ensemble: see `words` for how it is laid out.

Sums are made as onnxruntime makes them in one thread: in float32, over the trees in their order,
the base last. So the answers have the same bits, whatever rows came with a row.

Sixteen rows are evaluated side by side. A few rows cost as much as sixteen there, so they are
evaluated one by one, sixteen words side by side.

The kernel has one signature and is compiled (or loaded from numba's cache) when this module is
imported: in the parent, never in a worker. It lets other threads run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from headrace.compiled import kept
from server import vectors
from server.execution.trees import graph, words
from server.execution.trees.graph import (
    ABOVE_HALF,
    ABOVE_ZERO,
    LOGISTIC,
    PLAIN,
    SHARES,
    SIGNS,
    SOFTMAX,
    TreeGraph,
)
from server.execution.trees.words import WORD, Words, groups_of, words_of
from server.explain.trees import Ensemble
from server.vectors import (
    LANES,
    add,
    at_most,
    bits,
    fill,
    first_bit,
    gather,
    keep,
    load,
    multiply,
    multiply_add,
    ordered,
    store,
    where_any,
)

# What the first numbers of `code` are: sizes, what is to be done, and where the rest lies.
(
    _TREES, _COLUMNS, _OUTPUTS, _GROUPS, _SINGLE, _AVERAGES, _FINISH, _SIGMOID, _LABEL,
    _AT_FEATURE, _AT_NAN, _AT_FLIP, _AT_TREE, _AT_WORD, _AT_ENTRY, _AT_LEAVES,
    _AT_SLOTS, _AT_GROUP_LEAVES, _AT_GROUP_ENTRY, _AT_PLACE, _AT_WEIGHT, _AT_OUTPUT,
    _HEAD,
) = range(23)  # fmt: skip
_ENTRY: Final = 3
_L: Final = np.uint64(LANES)
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)

# onnxruntime's Sigmoid (its `MlasComputeLogistic`): a quotient of polynomials of x, fused steps.
# It is cut off below 0, and not above 1.
_SIGMOID_MAX = np.float32(18)
_P9, _P7, _P5, _P3, _P1 = (
    np.float32(each)
    for each in (
        4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
        2.48287947061529e-01,
    )
)  # fmt: skip
_Q10, _Q8, _Q6, _Q4, _Q2, _Q0 = (
    np.float32(each)
    for each in (
        6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
        1.16817656904453e-01, 9.93151921023180e-01,
    )
)  # fmt: skip

# Rows are read where they came: in a request's bytes, at any place.
_ROWS = types.Array(types.float32, 2, "C", readonly=True, aligned=False)
_SIGNATURE: Final = types.void(
    _ROWS, types.int32[::1], types.float32[::1], types.int64, types.float32[:, ::1],
    types.int32[::1],
)  # fmt: skip
_part: Callable[..., Any] = njit(nogil=True, error_model="numpy")


@_part
def _read_block(rows, begin, code, columns):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the columns of sixteen rows from `begin` on; behind the last row it comes again."""
    count, width = rows.shape
    lane = at_most(load(_LANE, np.uint64(0)), fill(np.int32(min(count - begin, LANES) - 1)))
    place = multiply(lane, fill(np.int32(width)))
    block = rows[begin:]
    for c in range(code[_COLUMNS]):
        values = gather(block, add(place, fill(code[code[_AT_FEATURE] + c])))
        nan, flip = code[code[_AT_NAN] + c], code[code[_AT_FLIP] + c]
        store(columns, np.uint64(c) * _L, ordered(bits(values), fill(nan), fill(flip)))


@_part
def _find_block(code, columns, places):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the leaf of each tree for the sixteen rows in `columns`."""
    at_tree, at_word, at_leaves = code[_AT_TREE], code[_AT_WORD], code[_AT_LEAVES]
    for tree in range(code[_TREES]):
        place = fill(np.int32(0))
        # The first word that has a leaf is the last one to say so.
        for word in range(code[at_tree + tree + 1] - 1, code[at_tree + tree] - 1, -1):
            mask = fill(code[at_leaves + word])
            at = np.uint64(code[_AT_ENTRY] + _ENTRY * code[at_word + word])
            end = np.uint64(code[_AT_ENTRY] + _ENTRY * code[at_word + word + 1])
            while at < end:
                values = load(columns, np.uint64(code[at]) * _L)
                limits, kept = code[at + np.uint64(1)], code[at + np.uint64(2)]
                mask = keep(mask, values, fill(limits), fill(kept))
                at += np.uint64(_ENTRY)
            found = add(first_bit(mask), fill(np.int32(word * WORD)))
            place = where_any(mask, found, place)
        store(places, np.uint64(tree) * _L, place)


@_part
def _read_row(rows, begin, code, columns):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the columns of one row, one behind the other."""
    row = rows[begin:]
    at = np.uint64(0)
    while at < np.uint64(code[_COLUMNS]):
        values = gather(row, load(code, np.uint64(code[_AT_FEATURE]) + at))
        nan = load(code, np.uint64(code[_AT_NAN]) + at)
        flip = load(code, np.uint64(code[_AT_FLIP]) + at)
        store(columns, at, ordered(bits(values), nan, flip))
        at += _L


@_part
def _find_row(code, columns, firsts, places):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the leaf of each tree for the one row in `columns`, as if it were the block's first."""
    at = np.uint64(code[_AT_GROUP_ENTRY])
    for group in range(code[_GROUPS]):
        mask = load(code, np.uint64(code[_AT_GROUP_LEAVES]) + np.uint64(group) * _L)
        for _ in range(code[code[_AT_SLOTS] + group]):
            values = gather(columns, load(code, at))
            mask = keep(mask, values, load(code, at + _L), load(code, at + _L + _L))
            at += _L + _L + _L
        store(firsts, np.uint64(group) * _L, first_bit(mask))
    at_tree, at_place = code[_AT_TREE], code[_AT_PLACE]
    for tree in range(code[_TREES]):
        word, last = code[at_tree + tree], code[at_tree + tree + 1] - 1
        first = firsts[code[at_place + word]]
        while first == WORD and word < last:
            word += 1
            first = firsts[code[at_place + word]]
        places[tree * LANES] = word * WORD + min(first, WORD - 1)


@_part
def _add_block(code, weights, places, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add up the leaves of sixteen rows that have one output."""
    total = fill(_ZERO)
    offset = fill(np.int32(1))  # the base is in front
    for tree in range(code[_TREES]):
        place = load(places, np.uint64(tree) * _L)
        total = add(total, gather(weights, add(place, offset)))
    store(sums, np.uint64(0), total)


@_part
def _add_row(code, weights, places, lane, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add up the leaves of one row."""
    outputs = code[_OUTPUTS]
    for k in range(outputs):
        sums[k * LANES + lane] = _ZERO
    if code[_SINGLE]:
        total = _ZERO
        for tree in range(code[_TREES]):
            total += weights[np.uint64(places[tree * LANES + lane]) + np.uint64(1)]
        sums[lane] = total
        return
    at_weight, at_output = code[_AT_WEIGHT], code[_AT_OUTPUT]
    for tree in range(code[_TREES]):
        place = at_weight + places[tree * LANES + lane]
        for at in range(code[place], code[place + 1]):
            sums[code[at_output + at] * LANES + lane] += weights[outputs + at]


@_part
def _logistic(value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    share = _ONE / (_ONE + math.exp(-abs(value)))
    return _ONE - share if value < _ZERO else share


@_part
def _sigmoid(value):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    x = min(max(value, -_SIGMOID_MAX), _SIGMOID_MAX)
    square = x * x
    above = multiply_add(square, _P9, _P7)
    above = multiply_add(above, square, _P5)
    above = multiply_add(above, square, _P3)
    above = multiply_add(above, square, _P1) * x
    below = multiply_add(square, _Q10, _Q8)
    below = multiply_add(below, square, _Q6)
    below = multiply_add(below, square, _Q4)
    below = multiply_add(below, square, _Q2)
    below = multiply_add(below, square, _Q0)
    return max(above / below + _HALF, _ZERO)


@_part
def _label_of(rule, outputs, lane, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Return the label's number."""
    if rule == ABOVE_ZERO:
        return np.int32(sums[lane] > _ZERO)
    if rule == ABOVE_HALF:
        return np.int32(sums[lane] > _HALF)
    largest = np.int32(0)
    for k in range(1, outputs):
        if sums[k * LANES + lane] > sums[largest * LANES + lane]:
            largest = np.int32(k)
    return largest


@_part
def _pair(finish, score):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Return the answers of two classes with one score."""
    if finish == SHARES:
        return _ONE - score, score
    if finish == SIGNS:
        return -score, score
    return _logistic(-score), _logistic(score)


@_part
def _softmax(outputs, lane, sums, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    largest, total = sums[lane], _ZERO
    for k in range(1, outputs):
        largest = max(largest, sums[k * LANES + lane])
    for k in range(outputs):
        out[k] = math.exp(sums[k * LANES + lane] - largest)
        total += out[k]
    for k in range(outputs):
        out[k] /= total


@_part
def _answer(code, weights, lane, sums, out, labels):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write what becomes of one row's sums: `out` [width], and `labels` [1]."""
    outputs, finish = code[_OUTPUTS], code[_FINISH]
    for k in range(outputs):
        if code[_AVERAGES]:
            sums[k * LANES + lane] /= np.float32(code[_TREES])
        sums[k * LANES + lane] += weights[k]
    if code[_LABEL]:
        labels[0] = _label_of(code[_LABEL], outputs, lane, sums)
    if finish == SOFTMAX:
        _softmax(outputs, lane, sums, out)
    elif finish == PLAIN or finish == LOGISTIC:  # noqa: PLR1714, SIM109 - compiled
        for k in range(outputs):
            score = sums[k * LANES + lane]
            out[k] = _logistic(score) if finish == LOGISTIC else score
    else:
        out[0], out[1] = _pair(finish, sums[lane])
    if code[_SIGMOID]:
        for k in range(len(out)):
            out[k] = _sigmoid(out[k])


_LANE: Final = np.arange(LANES, dtype=np.int32)


@kept(graph, vectors, words, signature=_SIGNATURE, nogil=True, error_model="numpy")
def evaluate(rows, code, weights, alone, out, labels):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Write the answers to rows float32 [rows, features]: `out` float32 [rows, width], and `labels`
    int32 [rows] where there are any.

    At most `alone` rows that fill no block are evaluated one by one. There is one row at least, and
    features enough; `code` and `weights` are of `Layout`.
    """
    count = rows.shape[0]
    columns = np.empty((code[_COLUMNS] + LANES) * LANES, np.int32)
    places = np.empty(code[_TREES] * LANES, np.int32)
    firsts = np.empty(code[_GROUPS] * LANES, np.int32)
    sums = np.empty(code[_OUTPUTS] * LANES, np.float32)
    begin = 0
    while begin < count:
        filled = min(count - begin, LANES)
        if filled <= alone:
            for row in range(begin, begin + filled):
                _read_row(rows, row, code, columns)
                _find_row(code, columns, firsts, places)
                _add_row(code, weights, places, 0, sums)
                _answer(code, weights, 0, sums, out[row], labels[row:])
        else:
            _read_block(rows, begin, code, columns)
            _find_block(code, columns, places)
            if code[_SINGLE]:
                _add_block(code, weights, places, sums)
            for lane in range(filled):
                if not code[_SINGLE]:
                    _add_row(code, weights, places, lane, sums)
                row = begin + lane
                _answer(code, weights, lane, sums, out[row], labels[row:])
        begin += filled


class Layout:
    """The two arrays that a graph's trees are for the kernel."""

    def __init__(self, graph: TreeGraph) -> None:
        """Raises UnimplementedError for trees that are too many."""
        ensemble = graph.ensemble
        trees = words_of(ensemble)
        groups = groups_of(trees)
        weights, parts = _weights(ensemble, trees)
        head = dict.fromkeys(range(_HEAD), 0) | {
            _TREES: len(ensemble.roots),
            _COLUMNS: len(trees.feature),
            _OUTPUTS: ensemble.outputs,
            _GROUPS: len(groups.slots),
            _SINGLE: int(ensemble.outputs == 1),
            _AVERAGES: int(graph.averages),
            _FINISH: graph.finish,
            _SIGMOID: int(graph.sigmoid),
            _LABEL: graph.label,
        }
        parts |= {
            _AT_FEATURE: _padded(trees.feature),
            _AT_NAN: _padded(trees.nan),
            _AT_FLIP: _padded(trees.flip),
            _AT_TREE: trees.tree_start,
            _AT_WORD: trees.entry_start,
            _AT_ENTRY: trees.entries,
            _AT_LEAVES: trees.leaves,
            _AT_SLOTS: groups.slots,
            _AT_GROUP_LEAVES: groups.leaves,
            _AT_GROUP_ENTRY: groups.entries,
            _AT_PLACE: groups.place,
        }
        at = _HEAD
        for name, part in parts.items():
            head[name] = at
            at += part.size
        first = np.array([head[name] for name in range(_HEAD)], np.int32)
        self.code = np.concatenate([first, *(part.ravel() for part in parts.values())])
        self.weights = np.concatenate([ensemble.base.astype(np.float32), weights])
        self.width = graph.width

    def run(
        self, rows: NDArray[np.float32], alone: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return the answers float32 [rows, width] to rows that are C-contiguous, and their labels'
        numbers int32 [rows]. See `evaluate`."""
        out = np.empty((len(rows), self.width), np.float32)
        labels = np.empty(len(rows), np.int32)
        evaluate(rows, self.code, self.weights, alone, out, labels)
        return out, labels


def _padded(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return values with zeros behind them, that whole vectors may be read."""
    return np.concatenate([values, np.zeros(LANES, np.int32)])


def _weights(
    ensemble: Ensemble, trees: Words
) -> tuple[NDArray[np.float32], dict[int, NDArray[np.int32]]]:
    """Return the leaves' weights: by the leaf's place where there is one output; else one behind
    the other, with where each leaf's begin and which outputs they are for."""
    leaves = np.flatnonzero(trees.leaf >= 0)
    leaves = leaves[np.argsort(trees.leaf[leaves])]
    starts = ensemble.weight_start[leaves]
    places = len(trees.leaves) * WORD
    if ensemble.outputs == 1:
        weights = np.zeros(places, np.float32)
        weights[trees.leaf[leaves]] = ensemble.weight[starts]
        return weights, {}
    counts = ensemble.weight_start[leaves + 1] - starts
    ends = np.zeros(places + 1, np.int64)
    ends[trees.leaf[leaves] + 1] = counts
    order = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    return ensemble.weight[order].astype(np.float32), {
        _AT_WEIGHT: np.cumsum(ends).astype(np.int32),
        _AT_OUTPUT: ensemble.weight_output[order],
    }
