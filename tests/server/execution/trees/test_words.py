"""The layout finds the leaf that a walk down the tree finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UnimplementedError
from server.execution.trees.words import DEPTH_MAX, WORD, Words, groups_of, words_of
from server.explain.trees import Ensemble, read_ensemble
from server.vectors import LANES
from tests.server.execution.trees.forests import forest, regressor, rows
from tests.server.explain.small_trees import ROWS, Leaf, Split, Tree, trees


def ordered(value: np.float32, nan: int, flip: int) -> int:
    """A float32 as a whole number of the same order, by its bits."""
    if np.isnan(value):
        return nan
    bits = int(np.float32(value).view(np.int32))
    return (bits if bits >= 0 else -(bits & 0x7FFFFFFF) - 1 + (bits == -(2**31))) ^ flip


def leaves_of(words: Words, row: np.ndarray) -> list[int]:
    """The place of each tree's leaf, by striking out all others."""
    columns = [
        ordered(row[feature], nan, flip)
        for feature, nan, flip in zip(
            words.feature.tolist(), words.nan.tolist(), words.flip.tolist(), strict=True
        )
    ]
    places = []
    for tree in range(len(words.tree_start) - 1):
        for word in range(words.tree_start[tree], words.tree_start[tree + 1]):
            left = int(words.leaves[word])
            for entry in range(words.entry_start[word], words.entry_start[word + 1]):
                column, limit, kept = words.entries[entry].tolist()
                if columns[column] > limit:
                    left &= kept
            if left:
                places.append(word * WORD + (left & -left).bit_length() - 1)
                break
    return places


def walked(ensemble: Ensemble, tree: Tree, root: int, row: np.ndarray) -> int:
    node = root
    while isinstance(tree, Split):
        yes = tree.goes(float(row[tree.feature]))
        node = int(ensemble.yes[node] if yes else ensemble.no[node])
        tree = tree.yes if yes else tree.no
    return node


def check(many: list[Tree], matrix: np.ndarray) -> None:
    ensemble = read_ensemble(regressor(many))
    words = words_of(ensemble)
    for row in matrix:
        wanted = [
            int(words.leaf[walked(ensemble, tree, root, row)])
            for tree, root in zip(many, ensemble.roots.tolist(), strict=True)
        ]
        assert leaves_of(words, row) == wanted


@given(st.lists(trees([0], sparse=False), min_size=1, max_size=4), ROWS)
def test_the_leaf_that_remains_is_the_one_that_a_walk_ends_at(many, matrix):
    check(many, matrix)


@given(st.integers(0, 1 << 30), st.lists(st.integers(1, 150), min_size=1, max_size=3))
def test_trees_of_more_leaves_than_a_word_has(seed, leaves):
    check(forest(seed, leaves), rows(seed, 8))


@given(st.integers(0, 1 << 30), st.lists(st.integers(1, 70), min_size=1, max_size=40))
def test_groups_hold_the_entries_of_their_words_and_nothing_else(seed, leaves):
    words = words_of(read_ensemble(regressor(forest(seed, leaves))))
    groups = groups_of(words)
    assert sorted(groups.place.tolist()) == list(range(len(words.leaves)))
    starts = np.cumsum(groups.slots) - groups.slots
    filled = 0
    for word, place in enumerate(groups.place.tolist()):
        group, lane = divmod(place, LANES)
        found = groups.entries[starts[group] : starts[group] + groups.slots[group], :, lane]
        wanted = words.entries[words.entry_start[word] : words.entry_start[word + 1]]
        assert found[: len(wanted)].tolist() == wanted.tolist()
        # What fills up keeps all leaves of any row.
        assert (found[len(wanted) :] == [0, 2**31 - 1, -1]).all()
        assert groups.leaves[place] == words.leaves[word]
        filled += len(wanted)
    assert filled == len(words.entries)


def chain(depth: int) -> Tree:
    tree: Tree = Leaf({0: 1.0}, 1)
    for _ in range(depth):
        tree = Split(0, 0.5, "LEQ", False, tree, Leaf({0: 2.0}, 1))
    return tree


def test_what_would_take_too_much_memory_is_refused():
    assert len(words_of(read_ensemble(regressor([chain(DEPTH_MAX - 1)]))).entries) > DEPTH_MAX
    with pytest.raises(UnimplementedError, match="too deep"):
        words_of(read_ensemble(regressor([chain(DEPTH_MAX)])))
    with pytest.raises(UnimplementedError, match="too many leaves"):
        words_of(read_ensemble(regressor([chain(DEPTH_MAX - 1)] * 64)))
