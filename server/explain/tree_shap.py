"""Exact Shapley values of tree ensembles, along the paths (TreeSHAP's `tree_path_dependent`).

The game is that of Lundberg, Erion and Lee ("Consistent Individualized Feature Attribution for Tree
Ensembles", 2018): a feature that is not in the coalition is averaged over by the training rows at
each node. Of one leaf of weight w, with features k = 1 … d on its way, of which a row hits h_k (0
or 1) and training rows the share p_k, the coalition S gets w · Π_{S} h_k · Π_{not S} p_k, whose
multilinear extension gives

    φ_k = w · (h_k − p_k) · ∫₀¹ Π_{j ≠ k} f_j(t) dt,   f_j(t) = p_j + t (h_j − p_j).

The integrand has degree d − 1: ⌈d/2⌉ or more points of Gauss and Legendre give it exactly. At a
point t, (h_k − p_k) / f_k is g = 1 / (t + p_k / (1 − p_k)) for a hit and −1 / (1 − t) for none, so

    φ_k = Σ_t g_k(t) · w · Π_j f_j(t),

and leaves below one step share g_k: as in "Linear TreeShap" (Yu, Bifet, Read and Xu, 2022) the
products grow on the way down, their sums over leaves on the way up, and each step is done once. A
feature that is asked for again replaces its factor and its g. Eight points are one vector
(`vectors`): enough for ways of 16 features; longer ones take the trees' walk several times.

The kernel has one signature and is compiled (or loaded from numba's cache) when this module is
imported: in the parent, never in a worker. It lets other threads run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from headrace.compiled import kept
from headrace.errors import UnimplementedError
from server import vectors
from server.explain import paths, trees
from server.explain.paths import (
    AGAIN,
    DISTINCT_MAX,
    EARLIER,
    ENDS,
    FEATURE,
    FLAGS,
    LEVEL,
    MODE_SHIFT,
    NAN_YES,
    WANTED,
    Paths,
    paths_of,
)
from server.explain.trees import EQ, GT, GTE, LEQ, LT, Ensemble
from server.vectors import LANES_64 as LANES
from server.vectors import add, fill, load, multiply, multiply_add, store

TABLE_MAX: Final = 1 << 25  # numbers: 256 MiB
BLOCK_ROWS: Final = 64  # at once: their sums stay in the cache
_ROUNDS_MAX: Final = -(-DISTINCT_MAX // (2 * LANES))
# What `AGAIN` has in the table: factors of a row that hits it, that does no more, that did not.
_CASES: Final = 3
_STEP: Final = np.uint64(LANES)

# Columns of a pass.
_FROM, _TO, _OUTPUT, _POINTS, _TABLE, _WEIGHTS = range(6)

_F8, _F8_2 = types.float64[::1], types.float64[:, ::1]
_I4, _I4_2, _I8_2 = types.int32[::1], types.int32[:, ::1], types.int64[:, ::1]
_SIGNATURE: Final = types.void(
    _F8_2, _I4_2, _I4, _F8, _F8, _I4, _I8_2, _F8, _F8, _F8, types.int64, types.float64[:, :, ::1]
)
_part: Callable[..., Any] = njit(nogil=True, inline="always", error_model="numpy")


@_part
def _goes(mode, value, limit):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Whether a value goes to `yes`."""
    if mode == LEQ:
        return value <= limit
    if mode == LT:
        return value < limit
    if mode == GTE:
        return value >= limit
    if mode == GT:
        return value > limit
    if mode == EQ:
        return value == limit
    return value != limit


@_part
def _rise(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    numbers, flags, feature, gain, above, total, sums, steps, gains, table, totals, to
):
    """Add a leaf's products to the totals of its way, and go up for as long as all below is done.

    `flags`, `feature` and `gain` are those of the step to the leaf.
    """
    while True:
        at = to + feature * _STEP
        store(totals, at, multiply_add(load(table, gain), total, load(totals, at)))
        if flags & WANTED:
            store(sums, above * _STEP, total)
            return
        total = add(total, load(sums, above * _STEP))
        if above == 0:
            return
        s = steps[above]
        gain = gains[above]
        flags = numbers[s, FLAGS]
        feature = np.uint64(numbers[s, FEATURE])
        above -= np.uint64(1)


@_part
def _add_tree(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    row, begin, end, numbers, column, limit, share, entry, t, at_table, table, weights, at_weights,
    products, sums, goes, hit, steps, gains, totals, to,
):  # fmt: skip
    """Add a row's sums over one tree, at eight points, to the totals from `to` on."""
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(_CASES)
    for at in range(begin, end):
        s = np.uint64(at)
        level = np.uint64(numbers[s, LEVEL])
        flags = numbers[s, FLAGS]
        above = level - one
        if flags & WANTED:  # a walk goes to `yes` first
            value = row[np.uint64(column[s])]
            mode = flags >> MODE_SHIFT
            yes = value <= limit[s] if mode == LEQ else _goes(mode, value, limit[s])
            missing = (value != value) & ((flags & NAN_YES) != 0)  # noqa: PLR0124 - NaN
            goes[above] = yes | missing
        before = hit[np.uint64(numbers[s, EARLIER])]
        now = before & (goes[above] == (flags & WANTED))
        place = np.uint64(entry[s])
        if flags & AGAIN:
            place += two - np.uint64(before) - np.uint64(now)
            factor = load(table, at_table + place * _STEP)
            place += three
        else:
            factor = multiply_add(t, fill(np.float64(now) - share[s]), fill(share[s]))
            place *= np.uint64(now)
        product = multiply(load(products, above * _STEP), factor)
        gain = at_table + place * _STEP
        if flags & ENDS:
            total = multiply(product, fill(weights[at_weights + at]))
            feature = np.uint64(numbers[s, FEATURE])
            _rise(
                numbers, flags, feature, gain, above, total, sums, steps, gains, table, totals, to
            )
        else:
            store(products, level * _STEP, product)
            hit[level], steps[level], gains[level] = now, s, gain


@kept(vectors, paths, trees, signature=_SIGNATURE, nogil=True, error_model="numpy")
def _explain(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, numbers, column, limit, share, entry, passes, points, table, weights, levels, out
):
    """Add the attributions of rows [rows, columns] to out [rows, features, outputs].

    `points` has, for eight points, the points, their weights and −1 / (1 − t). `table` has, for the
    eight points of a pass, that last row again, and then for each step in the place `entry`: its g,
    or, for one with `AGAIN`, three factors and what three g are more than those before.
    """
    count, width = rows.shape[0], out.shape[1]
    products, sums = np.empty(levels * LANES), np.empty(levels * LANES)
    goes, hit = np.zeros(levels, np.uint8), np.ones(levels, np.uint8)
    steps, gains = np.zeros(levels, np.uint64), np.zeros(levels, np.uint64)
    totals = np.zeros(count * width * LANES)
    for p in range(passes.shape[0]):
        begin, end, output = passes[p, _FROM], passes[p, _TO], passes[p, _OUTPUT]
        at_points = np.uint64(passes[p, _POINTS])
        t = load(points, at_points)
        store(products, np.uint64(0), load(points, at_points + _STEP))
        for r in range(count):
            _add_tree(
                rows[r], begin, end, numbers, column, limit, share, entry, t,
                np.uint64(passes[p, _TABLE]), table, weights, passes[p, _WEIGHTS] - begin,
                products, sums, goes, hit, steps, gains, totals, np.uint64(r * width) * _STEP,
            )  # fmt: skip
        if p + 1 == passes.shape[0] or passes[p + 1, _OUTPUT] != output:
            for at in range(count * width):
                r, f = at // width, at % width
                for lane in range(at * LANES, (at + 1) * LANES):
                    out[r, f, output] += totals[lane]
                    totals[lane] = 0.0


class TreeShap:
    """Explains the raw scores of one ensemble; for any thread."""

    def __init__(self, ensemble: Ensemble) -> None:
        """Raises UnimplementedError for trees that are too deep, or too many."""
        ways = paths_of(ensemble)
        self.outputs = ensemble.outputs
        self.features = ensemble.features  # at least; of lookups, exactly
        self._lookups = ensemble.lookups
        self.base = _base(ensemble, ways)
        entry, sizes = _entries(ways)
        rounds = -(-ways.widest // (2 * LANES))
        size = int((sizes * rounds).sum()) * LANES
        if size > TABLE_MAX:
            raise UnimplementedError(
                "its trees cannot be explained as such: they are too many",
                expected=f"tables of at most {TABLE_MAX} numbers",
                got=size,
            )
        passes, table, weights = _passes(ensemble, ways, entry, sizes)
        self._arguments = (
            ways.numbers, ways.column, ways.limit, ways.share, entry, passes, _ROWS_OF_POINTS,
            table, weights, ways.levels,
        )  # fmt: skip

    def explain(self, matrix: NDArray[Any]) -> NDArray[np.float64]:
        """Return float64 [rows, features, outputs]: what each feature adds to each raw score.

        With `base` [outputs] they add up to the raw score. `matrix` holds numbers, [rows,
        features], as wide as the trees ask for (`features`) at least; NaN is a missing value.
        """
        assert matrix.ndim == 2
        assert matrix.shape[1] >= self.features
        rows = np.ascontiguousarray(matrix, np.float64)
        out = np.zeros((*rows.shape, self.outputs))
        for at in range(0, len(rows), BLOCK_ROWS):
            block = rows[at : at + BLOCK_ROWS]
            if self._lookups is not None:
                block = self._lookups.extended(block)
            _explain(block, *self._arguments, out[at : at + BLOCK_ROWS])
        return out


def _points(rounds: int) -> NDArray[np.float64]:
    """Return points, weights and −1 / (1 − t) of 8 · rounds points of ∫₀¹, [rounds, 3, 8]."""
    x, w = np.polynomial.legendre.leggauss(LANES * rounds)
    t = (x + 1) / 2
    rows = np.stack([t, w / 2, -1 / (1 - t)])
    return rows.reshape(3, rounds, LANES).transpose(1, 0, 2)


_BY_ROUNDS = [_points(rounds) for rounds in range(1, _ROUNDS_MAX + 1)]
_ROWS_OF_POINTS = np.concatenate(_BY_ROUNDS).ravel()


def _base(ensemble: Ensemble, ways: Paths) -> NDArray[np.float64]:
    """Return the raw scores of a row of which nothing is known, [outputs]."""
    parts = np.repeat(ways.part, np.diff(ensemble.weight_start))
    expected = np.bincount(ensemble.weight_output, ensemble.weight * parts, ensemble.outputs)
    base: NDArray[np.float64] = ensemble.base + expected
    return base


def _entries(ways: Paths) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return each step's place in its tree's table, in rows, and how many rows that has."""
    again = ways.numbers[:, FLAGS] & AGAIN != 0
    ends = np.concatenate([[0], np.cumsum(np.where(again, 2 * _CASES, 1))])
    firsts = ends[ways.tree_start[:-1]]
    sizes = ends[ways.tree_start[1:]] - firsts + 1
    entry = ends[:-1] - np.repeat(firsts, np.diff(ways.tree_start)) + 1
    return entry.astype(np.int32), sizes


def _passes(
    ensemble: Ensemble, ways: Paths, entry: NDArray[np.int32], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the passes, by output: one for each tree, output of its leaves, and eight points.

    And their tables, and the weights of their steps (0 where a step does not end).
    """
    passes: list[tuple[int, ...]] = []
    tables: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    table_at = weight_at = 0
    for tree, widest in enumerate(ways.widest.tolist()):
        begin, end = ways.tree_start[tree : tree + 2].tolist()
        if begin == end:
            continue
        rounds = -(-widest // (2 * LANES))
        first_points = rounds * (rounds - 1) // 2
        places = [table_at + number * int(sizes[tree]) * LANES for number in range(rounds)]
        steps = slice(begin, end)
        tables += [
            _table(ways, steps, entry[steps], int(sizes[tree]), points)
            for points in _BY_ROUNDS[rounds - 1]
        ]
        table_at = places[-1] + int(sizes[tree]) * LANES
        for output, values in _weights(ensemble, ways.node[steps]):
            weights.append(values)
            passes += [
                (begin, end, output, (first_points + number) * 3 * LANES, place, weight_at)
                for number, place in enumerate(places)
            ]
            weight_at += len(values)
    passes.sort(key=lambda each: each[_OUTPUT])
    empty = np.empty(0)
    return (
        np.array(passes, np.int64).reshape(-1, 6),
        np.concatenate([*tables, empty]),
        np.concatenate([*weights, empty]),
    )


def _weights(ensemble: Ensemble, nodes: NDArray[np.int32]) -> list[tuple[int, NDArray[np.float64]]]:
    """Return the outputs that a tree adds to, each with the weight of every step's child."""
    starts = ensemble.weight_start[nodes]
    counts = ensemble.weight_start[nodes + 1] - starts
    step = np.repeat(np.arange(len(nodes)), counts)
    at = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(len(step))
    outputs = ensemble.weight_output[at]
    result: list[tuple[int, NDArray[np.float64]]] = []
    for output in np.unique(outputs).tolist():
        of_it = outputs == output
        values = np.bincount(step[of_it], ensemble.weight[at[of_it]], len(nodes))
        result.append((output, values.astype(np.float64)))
    return result


def _table(
    ways: Paths,
    steps: slice,
    entry: NDArray[np.int32],
    size: int,
    points: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the table of a tree for eight points, flat: see `_explain`."""
    t, _, missed = points
    table = np.zeros((size, LANES))
    table[0] = missed
    numbers, share = ways.numbers[steps], ways.share[steps]
    gains = _gain(share, t)
    again = numbers[:, FLAGS] & AGAIN != 0
    table[entry[~again]] = gains[~again]
    at, new, old = entry[again], share[again][:, None], ways.share_before[steps][again][:, None]
    factor_before = old + t * (1 - old)
    gains_before = _gain(old[:, 0], t)
    table[at] = (new + t * (1 - new)) / factor_before
    table[at + 1] = new * (1 - t) / factor_before
    table[at + 2] = np.divide(new, old, out=np.zeros_like(new), where=old > 0)
    table[at + 3] = gains[again] - gains_before
    table[at + 4] = missed - gains_before
    return table.ravel()


def _gain(share: NDArray[np.float64], t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (t + p / (1 − p)), [steps, points]."""
    return (1 - share)[:, None] / (share[:, None] + t * (1 - share[:, None]))
