"""Splits on categories, as splits on numbers that a table gives.

ONNX's trees compare numbers. A split that asks whether a category is in a set becomes one on a
column of its own: 0 where a row goes left, 1 where it goes right. The tables of a feature have a
row for each category, one for whatever is none of these, and one for NaN; so what trees see of a
row is the row, and behind it the columns of all its categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UnimplementedError
from server.backends.graph_writer import INT64, GraphWriter
from server.explain.trees import FEATURES_MAX
from trainer.trees import Tree

TABLE_MAX = 1 << 24  # numbers of all tables: 64 MiB


@dataclass(frozen=True)
class Tables:
    """For each feature with categories, its table float32 [categories + 2, columns]. `owner` int32
    [columns of all tables]: the feature of each, in the order of the columns."""

    by_feature: dict[int, NDArray[np.float32]]
    owner: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Split:
    """Where a category goes: left if it is in `members` (sorted int64, as bytes)."""

    feature: int
    members: bytes
    nan_left: bool


def split_by_tables(trees: Sequence[Tree], features: int) -> tuple[list[Tree], Tables]:
    """Return trees of `features` and more, and the tables that the columns behind come from.

    Raises UnimplementedError for tables that are too large.
    """
    splits = {
        (number, node): _Split(
            int(tree.feature[node]), members.tobytes(), bool(tree.nan_left[node])
        )
        for number, tree in enumerate(trees)
        for node, members in tree.sets.items()
    }
    # The columns of a feature lie together.
    columns = sorted(dict.fromkeys(splits.values()), key=lambda split: split.feature)
    if len(columns) > FEATURES_MAX - features:
        raise _too_many(f"at most {FEATURES_MAX} features and sets", features + len(columns))
    place = {split: at for at, split in enumerate(columns)}
    changed = []
    for number, tree in enumerate(trees):
        if tree.sets:
            feature, threshold = tree.feature.copy(), tree.threshold.copy()
            for node in tree.sets:
                feature[node] = features + place[splits[number, node]]
                threshold[node] = 0.5
            tree = replace(tree, feature=feature, threshold=threshold, sets={})  # noqa: PLW2901
        changed.append(tree)
    owner = np.array([split.feature for split in columns], np.int32)
    return changed, Tables(_tables(columns), owner)


def _tables(columns: Sequence[_Split]) -> dict[int, NDArray[np.float32]]:
    by_feature: dict[int, list[_Split]] = {}
    for split in columns:
        by_feature.setdefault(split.feature, []).append(split)
    members = {split: np.frombuffer(split.members, np.int64) for split in columns}
    sizes = {
        feature: max((int(members[split].max(initial=-1)) for split in splits), default=-1) + 1
        for feature, splits in by_feature.items()
    }
    total = sum((sizes[feature] + 2) * len(splits) for feature, splits in by_feature.items())
    if total > TABLE_MAX:
        raise _too_many(f"at most {TABLE_MAX} pairs of a category and a set", total)
    tables = {}
    for feature, splits in by_feature.items():
        table = np.ones((sizes[feature] + 2, len(splits)), np.float32)
        for at, split in enumerate(splits):
            table[members[split], at] = 0.0
            table[-1, at] = 0.0 if split.nan_left else 1.0
        tables[feature] = table
    return tables


def _too_many(expected: str, got: int) -> UnimplementedError:
    return UnimplementedError(
        "the trees split too many categories too often",
        expected=expected,
        got=got,
        mend="join rare categories, or number them without gaps",
    )


def write_tables(writer: GraphWriter, rows: str, tables: Tables, least: float) -> str:
    """Add what looks up the tables' columns; return the rows with these behind.

    A number from `least` on is a category, whose fraction is cut off.
    """
    features = list(tables.by_feature)
    counts = [len(tables.by_feature[feature]) - 2 for feature in features]
    chosen = writer.node("Gather", [rows, writer.constant(features, "i8")], axis=1)
    below = writer.constant(counts, "f4")
    known = writer.node(
        "And",
        [
            writer.node("GreaterOrEqual", [chosen, writer.constant(least, "f4")]),
            writer.node("Less", [chosen, below]),
        ],
    )
    # What is no category comes behind all of them.
    number = writer.node("Where", [known, chosen, below])
    place = writer.node(
        "Add",
        [
            writer.node("Cast", [number], to=INT64),
            writer.node("Cast", [writer.node("IsNaN", [chosen])], to=INT64),
        ],
    )
    columns = [rows]
    for at, feature in enumerate(features):
        mine = writer.node("Gather", [place, writer.constant(at, "i8")], axis=1)
        table = writer.constant(tables.by_feature[feature], "f4")
        columns.append(writer.node("Gather", [table, mine], axis=0))
    return writer.node("Concat", columns, axis=1)
