"""The ways to the leaves of an ensemble, laid out for the kernel of `tree_shap`.

On the way to a node each feature counts once, however often the way asks for it: a row *hits* it
while it goes along at every such node, and its *share* is that of the training rows that do, as far
as the nodes' covers tell (the product over these nodes of the child's part of its parent).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from headrace.errors import UnimplementedError
from server.explain.trees import Ensemble

DISTINCT_MAX: Final = 64  # features on one way
DEPTH_MAX: Final = 512
# Columns of `Paths.numbers`, and the bits of the last; a comparison's mode is above them.
LEVEL, FEATURE, EARLIER, FLAGS = range(4)
WANTED: Final = 1  # the step leads to `yes`
ENDS: Final = 2  # at a leaf
NAN_YES: Final = 4
AGAIN: Final = 8  # the feature was asked for further up
MODE_SHIFT: Final = 4

_I4, _I4_2, _F8 = types.int32[::1], types.int32[:, ::1], types.float64[::1]
_I8, _U1 = types.int64[::1], types.uint8[::1]


@dataclass(frozen=True)
class Paths:
    """All S steps from a node to a child, in the order of a walk that goes down before it goes on,
    to `yes` before `no`.

    `numbers` int32 [S, 4]: the child's level (1: below the root), the feature that decides, the
    level of the last step above that the same feature decided (0: none), flags. `limit` float64
    [S]: what the feature is compared with. `share` float64 [S]: of the feature, at the child;
    `share_before` [S]: above it (1 where it was not asked for).
    `column` int32 [S]: where a row has what is compared: the feature, or a column of its lookups.
    `node` int32 [S]: the child. Tree t has the steps tree_start[t]:tree_start[t + 1], and at most
    `widest[t]` features on a way. `part` float64 [N]: of the training rows, that reach this leaf (0
    for an inner node). `levels`: how many there are, the root's included.
    """

    numbers: NDArray[np.int32]
    limit: NDArray[np.float64]
    share: NDArray[np.float64]
    share_before: NDArray[np.float64]
    column: NDArray[np.int32]
    node: NDArray[np.int32]
    tree_start: NDArray[np.int64]
    widest: NDArray[np.int64]
    part: NDArray[np.float64]
    levels: int


def paths_of(ensemble: Ensemble) -> Paths:
    """Lay out the ways. Raises UnimplementedError for trees that are too deep."""
    nodes, trees = len(ensemble.feature), len(ensemble.roots)
    steps = nodes - trees
    numbers, node = np.empty((steps, 4), np.int32), np.empty(steps, np.int32)
    limit, share, share_before = np.empty((3, steps))
    tree_start, widest = np.zeros(trees + 1, np.int64), np.zeros(trees, np.int64)
    part = np.zeros(nodes)
    levels = _walk(
        ensemble.roots, ensemble.players, ensemble.threshold, ensemble.mode, ensemble.nan_yes,
        ensemble.yes, ensemble.no, ensemble.cover, numbers, limit, share, share_before, node,
        tree_start, widest, part,
    )  # fmt: skip
    if levels == 0 or widest.max() > DISTINCT_MAX:
        raise UnimplementedError(
            "its trees cannot be explained as such: they are too deep",
            expected=f"at most {DEPTH_MAX} levels, and {DISTINCT_MAX} features on a way",
        )
    return Paths(
        numbers, limit, share, share_before, _columns(ensemble)[node], node, tree_start, widest,
        part, int(levels),
    )  # fmt: skip


def _columns(ensemble: Ensemble) -> NDArray[np.int32]:
    """Return the feature of each node's parent, [N]."""
    inner = np.flatnonzero(ensemble.yes >= 0)
    columns = np.zeros(len(ensemble.yes), np.int32)
    for children in (ensemble.yes, ensemble.no):
        columns[children[inner]] = ensemble.feature[inner]
    return columns


_compiled: Callable[..., Any] = njit(
    types.int64(
        _I4, _I4, _F8, _U1, _U1, _I4, _I4, _F8, _I4_2, _F8, _F8, _F8, _I4, _I8, _I8, _F8
    ),
    cache=True,
    nogil=True,
)  # fmt: skip


@_compiled
def _walk(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    roots, feature, threshold, mode, nan_yes, yes, no, cover, numbers, limit, share, share_before,
    node, tree_start, widest, part,
):  # fmt: skip
    """Fill in what is behind `cover`; return the number of levels, 0 where they are too many."""
    way = np.zeros(DEPTH_MAX + 1, np.int64)  # the step at each level of the way
    distinct = np.zeros(DEPTH_MAX + 1, np.int64)
    waiting = np.empty((DEPTH_MAX + 2, 3), np.int32)  # child, its parent, its level
    step, levels = 0, 1
    for tree in range(roots.size):
        root = roots[tree]
        size = 0
        if yes[root] < 0:
            part[root] = 1.0
        else:
            waiting[0, 0], waiting[0, 1], waiting[0, 2] = no[root], root, 1
            waiting[1, 0], waiting[1, 1], waiting[1, 2] = yes[root], root, 1
            size = 2
        while size > 0:
            size -= 1
            child, parent, level = waiting[size, 0], waiting[size, 1], waiting[size, 2]
            if level >= DEPTH_MAX:
                return 0
            levels = max(levels, level + 1)
            above = level - 1
            while above > 0 and numbers[way[above], FEATURE] != feature[parent]:
                above -= 1
            flags = np.int32(mode[parent]) << MODE_SHIFT
            if child == yes[parent]:
                flags |= WANTED
            if nan_yes[parent]:
                flags |= NAN_YES
            before = 1.0
            if above > 0:
                flags |= AGAIN
                before = share[way[above]]
            distinct[level] = distinct[level - 1] + (above == 0)
            widest[tree] = max(widest[tree], distinct[level])
            if yes[child] < 0:
                flags |= ENDS
                part[child] = cover[child] / cover[root]
            numbers[step, LEVEL] = level
            numbers[step, FEATURE] = feature[parent]
            numbers[step, EARLIER] = above
            numbers[step, FLAGS] = flags
            limit[step] = threshold[parent]
            share_before[step] = before
            share[step] = before * cover[child] / cover[parent]
            node[step] = child
            way[level] = step
            step += 1
            if yes[child] >= 0:
                waiting[size, 0], waiting[size, 1], waiting[size, 2] = no[child], child, level + 1
                waiting[size + 1, 0], waiting[size + 1, 1] = yes[child], child
                waiting[size + 1, 2] = level + 1
                size += 2
        tree_start[tree + 1] = step
    return levels
