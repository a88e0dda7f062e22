"""LightGBM's model text: read its trees, and rewrite them so that single precision loses nothing.

The text format is LightGBM's own (`gbdt_model_text.cpp`, version v4): a header, one block of
`key=values` lines per tree, `end of trees`, and notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from headrace.errors import UnimplementedError

# LightGBM's predictor reads every |x| up to this as zero (`kZeroThreshold`, a float32 constant).
ZERO = np.float32(1e-35)
# Leaf values become multiples of this. Sums of them are exact in float32 while they stay below 16
# (a probability within 1e-7 of 0 or 1), so that the order of summation, and with it batch size and
# number of threads, cannot change a bit of an answer.
LEAF_GRID = 2.0**-20

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_NONE, _MISSING_ZERO, _MISSING_NAN = 0, 1, 2
_MENDS = {
    "categorical splits": "encode categories as numbers",
    "linear leaves": "train without linear_tree",
    "zero as missing": "train without zero_as_missing",
}


@dataclass(frozen=True)
class Tree:
    """One tree. Children ≥ 0 are inner nodes, negative ones are leaf `~child`. n leaves, n − 1
    nodes.

    `feature` int32, `threshold` float64 (x ≤ threshold goes left), `nan_left` bool, `left` and
    `right` int32: all [n − 1]. `leaf` float64 [n]. How many training rows came by: `cover` float64
    [n − 1] and `leaf_cover` float64 [n].

    `sets`: nodes that ask for a category, which goes left if it is one of these (int64, sorted),
    whatever their threshold is.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    nan_left: NDArray[np.bool_]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    leaf: NDArray[np.float64]
    cover: NDArray[np.float64]
    leaf_cover: NDArray[np.float64]
    sets: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Forest:
    """The trees of a binary classifier: probability = sigmoid(sum of one leaf per tree)."""

    trees: list[Tree]
    features: int


def read_forest(text: str) -> Forest:
    """Return the trees of a LightGBM model text.

    Raises UnimplementedError for anything but a plain binary classifier on numbers.
    """
    header = read_header(text)
    if header.get("objective") != "binary sigmoid:1" or "average_output" in text[:2000]:
        raise UnimplementedError(
            "only LightGBM's binary objective can be exported",
            expected="objective=binary sigmoid:1",
            got=f"objective={header.get('objective')}",
        )
    trees = read_trees(text)
    if any(tree.sets for tree in trees):
        raise _not_exported("categorical splits")
    return Forest(trees, int(header["max_feature_idx"]) + 1)


def read_header(text: str) -> dict[str, str]:
    """Return what a LightGBM model text says before its trees."""
    return _fields(text.partition("\nTree=")[0])


def read_trees(text: str) -> list[Tree]:
    """Return the trees of a LightGBM model text, whatever their sums are for.

    Raises UnimplementedError for linear leaves and for zero as missing, and KeyError, ValueError or
    IndexError for a text that is not LightGBM's.
    """
    return [_read_tree(_fields(block)) for block in _blocks(text)]


def to_single_precision(text: str) -> str:
    """Return the model text with every number such that float32 holds it.

    On float32 inputs the trees' paths stay exactly the same: `x <= t` and `x <= t rounded down`
    agree for every float32 x. Leaf values move by at most `LEAF_GRID` / 2 each.
    """

    def thresholds(match: re.Match[str]) -> str:
        return _line("threshold", round_down(_floats(match[1])).astype(np.float64))

    def leaves(match: re.Match[str]) -> str:
        return _line("leaf_value", round_leaves(_floats(match[1])))

    start, end = text.index("Tree=0\n"), text.index("end of trees\n")
    body = re.sub(r"^threshold=(.*)$", thresholds, text[start:end], flags=re.MULTILINE)
    body = re.sub(r"^leaf_value=(.*)$", leaves, body, flags=re.MULTILINE)
    # LightGBM's reader seeks by these sizes.
    blocks = re.split(r"(?=^Tree=)", body, flags=re.MULTILINE)[1:]
    sizes = " ".join(str(len(block.encode())) for block in blocks)
    head = re.sub(r"^tree_sizes=.*$", f"tree_sizes={sizes}", text[:start], flags=re.MULTILINE)
    return head + body + text[end:]


def round_down(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the float32 thresholds that split float32 numbers as LightGBM splits them.

    Each is the greatest float32 not above the threshold, but around zero: LightGBM reads |x| ≤
    `ZERO` as 0, ONNX does not, so a threshold in there moves to the edge that keeps all of them
    together.
    """
    down = float32_below(thresholds)
    below_zero = np.nextafter(-ZERO, np.float32(-np.inf))
    down = np.where((down >= -ZERO) & (thresholds < 0), below_zero, down)
    return np.where((thresholds >= 0) & (down < ZERO), ZERO, down).astype(np.float32)


def float32_below(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the greatest float32 not above each: every float32 is on the same side of both."""
    with np.errstate(over="ignore", under="ignore"):
        near = values.astype(np.float32)
        lower = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > values, lower, near)


def round_leaves(leaves: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest multiples of `LEAF_GRID`."""
    rounded: NDArray[np.float64] = np.rint(leaves / LEAF_GRID) * LEAF_GRID
    return rounded


def _read_tree(fields: dict[str, str]) -> Tree:
    decision = _integers(fields.get("decision_type", ""))
    categorical = (decision & _CATEGORICAL) != 0
    missing = (decision >> 2) & 3
    for problem, found in (
        ("linear leaves", fields.get("is_linear", "0") != "0"),
        ("zero as missing", ((missing == _MISSING_ZERO) & ~categorical).any()),
    ):
        if found:
            raise _not_exported(problem)
    threshold = _floats(fields.get("threshold", ""))
    # Where training saw no NaN, LightGBM reads one as 0; no set has it.
    default_left = (decision & _DEFAULT_LEFT) != 0
    nan_left = np.where(missing == _MISSING_NONE, threshold >= 0, default_left) & ~categorical
    return Tree(
        feature=_integers(fields.get("split_feature", "")),
        threshold=threshold,
        nan_left=nan_left,
        left=_integers(fields.get("left_child", "")),
        right=_integers(fields.get("right_child", "")),
        leaf=_floats(fields["leaf_value"]),
        cover=_floats(fields.get("internal_count", "")),
        leaf_cover=_floats(fields.get("leaf_count", "0")),
        sets=_sets(fields, threshold, np.flatnonzero(categorical)),
    )


def _sets(
    fields: dict[str, str], threshold: NDArray[np.float64], nodes: NDArray[np.int64]
) -> dict[int, NDArray[np.int64]]:
    """Return the categories that go left at each of `nodes`: a threshold is the place of a set,
    which is bits in words of 32."""
    if not len(nodes):
        return {}
    bounds = np.array(fields["cat_boundaries"].split(), np.int64)
    words = np.array(fields["cat_threshold"].split(), np.uint32)
    found = {}
    taken = 0
    for node in nodes.tolist():
        place = int(threshold[node])
        if not 0 <= place < len(bounds) - 1:
            raise ValueError("a set that is not there")
        if not 0 <= bounds[place] <= bounds[place + 1] <= len(words):
            raise ValueError("a set that is not there")
        # Of sets that lie over each other a small text has more than memory.
        taken += int(bounds[place + 1] - bounds[place])
        if taken > len(words):
            raise ValueError("sets that share what is in them")
        bits = words[bounds[place] : bounds[place + 1]].astype("<u4").view(np.uint8)
        found[node] = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    return found


def _not_exported(problem: str) -> UnimplementedError:
    return UnimplementedError(f"{problem} cannot be exported", mend=_MENDS[problem])


def _blocks(text: str) -> list[str]:
    body = text.partition("\nend of trees")[0]
    return body.split("\nTree=")[1:]


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {key: value for key, equals, value in pairs if equals}


def _line(key: str, values: NDArray[np.float64]) -> str:
    return f"{key}={' '.join(map(repr, values.tolist()))}"


def _floats(text: str) -> NDArray[np.float64]:
    return np.array(text.split(), dtype=np.float64)


def _integers(text: str) -> NDArray[np.int32]:
    return np.array(text.split(), dtype=np.int32)
