"""An ensemble laid out so that no row walks down a tree: each node strikes out leaves.

This is QuickScorer (Lucchese et al., "QuickScorer: a Fast Algorithm to Rank Documents with Additive
Ensembles of Regression Trees", SIGIR 2015), with rows side by side (Lucchese et al., "Exploiting
CPU SIMD Extensions to Speed-up Document Scoring with Tree Ensembles", SIGIR 2016). Leaves are
numbered from left to right, 32 to a *word*. A row that does not go left at a node loses all leaves
below the left child, whatever the other nodes say: the first leaf that remains is the row's. So
each node is one comparison and one AND, in any order, and the processor has nothing to guess.

Every comparison becomes "strike out if the column's number is above a limit". Numbers are float32
as whole numbers of the same order (`vectors.ordered`). A feature has up to four *columns*: NaN is
above all numbers or below, and the order is turned round or not. x ≥ t and x > t go left where
x < t and x ≤ t go right; x < t is x ≤ the number before t; x = t is two comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UnimplementedError
from server.explain.trees import EQ, GT, GTE, LT, NEQ, Ensemble
from server.vectors import LANES

WORD: Final = 32  # leaves
ENTRIES_MAX: Final = 1 << 18
DEPTH_MAX: Final = 512
ABOVE, BELOW = 2**31 - 1, -(2**31)  # no number comes there
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Words:
    """T trees as W words, W ≥ T.

    `feature`, `nan`, `flip` int32 [C]: the columns; what NaN is there, and −1 where the order is
    turned round. Tree t has the words tree_start[t]:tree_start[t + 1]. Word w has the entries
    entry_start[w]:entry_start[w + 1] of `entries` int32 [E, 3] (column, limit, the leaves to keep)
    and the leaves of `leaves` int32 [W], one bit each. `leaf` int32 [N]: each leaf's place, 32 ·
    word + bit; −1 for inner nodes.
    """

    feature: Ints
    nan: Ints
    flip: Ints
    tree_start: Ints
    entry_start: Ints
    entries: Ints
    leaves: Ints
    leaf: Ints


@dataclass(frozen=True)
class Groups:
    """The words again, sixteen side by side: for a row that comes alone.

    Group g has `slots` int32 [G] entries for each of its words, one behind the other in `entries`
    int32 [slots, 3, 16]; those that fill up strike out nothing. `leaves` int32 [G · 16]; word w is
    at `place` int32 [W].
    """

    slots: Ints
    entries: Ints
    leaves: Ints
    place: Ints


def words_of(ensemble: Ensemble) -> Words:
    """Return the layout of an ensemble. Raises UnimplementedError for one that is too large."""
    mode, inner = ensemble.mode, np.flatnonzero(ensemble.yes >= 0)
    turned = np.isin(mode, (GTE, GT, NEQ))
    left = np.where(turned, ensemble.no, ensemble.yes)
    right = np.where(turned, ensemble.yes, ensemble.no)
    tree, first, count = _leaves(ensemble.roots, left, right)
    sizes = count[ensemble.roots]
    tree_start = np.concatenate([[0], np.cumsum(-(-sizes // WORD))])
    leaf = np.where(ensemble.yes < 0, tree_start[tree] * WORD + first, -1)

    equal = inner[np.isin(mode[inner], (EQ, NEQ))]
    nodes = np.concatenate([inner, equal])
    again = np.arange(len(nodes)) >= len(inner)
    nan_left = np.where(turned, ensemble.nan_yes == 0, ensemble.nan_yes != 0) & (mode != NEQ)
    columns, column = np.unique(
        ensemble.feature[nodes].astype(np.int64) * 4 + nan_left[nodes] * 2 + again,
        return_inverse=True,
    )
    limit = _limits(ensemble)[nodes]
    begin, end = first[nodes], first[nodes] + count[left[nodes]]
    # A node's leaves may reach over several words.
    touched = (end - 1) // WORD - begin // WORD + 1
    if touched.sum() > ENTRIES_MAX:
        raise UnimplementedError("its trees have too many leaves to be evaluated side by side")
    source = np.repeat(np.arange(len(nodes)), touched)
    part = np.arange(len(source)) - np.repeat(np.cumsum(touched) - touched, touched)
    at = begin[source] // WORD + part
    word = tree_start[tree[nodes[source]]] + at
    low = np.clip(begin[source] - at * WORD, 0, WORD)
    high = np.clip(end[source] - at * WORD, 0, WORD)
    entries = np.stack(
        [column[source], np.where(again, ~limit, limit)[source], ~(_ones(high) ^ _ones(low))],
        axis=1,
    )
    order = np.argsort(word, kind="stable")
    words = int(tree_start[-1])
    of_word = np.arange(words) - np.repeat(tree_start[:-1], np.diff(tree_start))
    filled = np.repeat(sizes, np.diff(tree_start)) - of_word * WORD
    return Words(
        feature=(columns // 4).astype(np.int32),
        nan=np.where(columns & 2, BELOW, ABOVE).astype(np.int32),
        flip=-(columns & 1).astype(np.int32),
        tree_start=tree_start.astype(np.int32),
        entry_start=np.searchsorted(word[order], np.arange(words + 1)).astype(np.int32),
        entries=_wrapped(entries[order]),
        leaves=_wrapped(_ones(np.minimum(filled, WORD))),
        leaf=leaf.astype(np.int32),
    )


def groups_of(words: Words) -> Groups:
    """Return the words side by side; those of like length are together."""
    counts = np.diff(words.entry_start)
    order = np.argsort(counts, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    groups = -(-len(order) // LANES)
    slots = np.zeros(groups, np.int64)
    np.maximum.at(slots, place // LANES, counts)
    starts = np.cumsum(slots) - slots
    entries = np.empty((int(slots.sum()), 3, LANES), np.int32)
    entries[:] = np.array([[0], [ABOVE], [-1]])
    word = np.repeat(np.arange(len(counts)), counts)
    slot = starts[place[word] // LANES] + np.arange(len(word)) - words.entry_start[word]
    entries[slot, :, place[word] % LANES] = words.entries
    leaves = np.ones(groups * LANES, np.int32)
    leaves[place] = words.leaves
    return Groups(slots.astype(np.int32), entries, leaves, place.astype(np.int32))


def _leaves(
    roots: NDArray[np.int32], left: NDArray[np.int32], right: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return each node's tree, the first of the tree's leaves below it, and how many these are."""
    levels = [roots.astype(np.int64)]
    tree, first, count = (np.zeros(len(left), np.int64) for _ in range(3))
    tree[roots] = np.arange(len(roots))
    while len(levels[-1]):
        if len(levels) > DEPTH_MAX:
            raise UnimplementedError("its trees are too deep to be evaluated side by side")
        inner = levels[-1][left[levels[-1]] >= 0]
        for side in (left, right):
            tree[side[inner]] = tree[inner]
        levels.append(np.concatenate([left[inner], right[inner]]).astype(np.int64))
    for level in reversed(levels):
        inner = level[left[level] >= 0]
        count[level] = 1
        count[inner] = count[left[inner]] + count[right[inner]]
    for level in levels:
        inner = level[left[level] >= 0]
        first[left[inner]] = first[inner]
        first[right[inner]] = first[inner] + count[left[inner]]
    return tree, first, count


def _limits(ensemble: Ensemble) -> NDArray[np.int64]:
    """Return what a column's number must not be above at each node, for a row to go left."""
    threshold = ensemble.threshold.astype(np.float32)
    bits = np.where(threshold == 0, np.float32(0), threshold).view(np.int32)
    limit = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    limit -= np.isin(ensemble.mode, (LT, GTE))
    # Nothing compares with NaN: all numbers go to `no`, which is on the left for two modes.
    nowhere = np.where(np.isin(ensemble.mode, (GTE, GT)), ABOVE - 1, BELOW)
    return np.where(np.isnan(threshold), nowhere, limit)


def _ones(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers whose lowest bits are set, `count` of them, 32 at most."""
    return (np.int64(1) << count) - 1


def _wrapped(values: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the lowest 32 bits of whole numbers."""
    return np.ascontiguousarray(values & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
