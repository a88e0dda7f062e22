"""Nodes that name their children by numbers, put into the order that a `Tree` has."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Nodes(NamedTuple):
    """The nodes of one tree: those with children and those without, from the root on, int64; and
    what a `Tree` calls each node, int32 (≥ 0: inner, else leaf `~place`)."""

    inner: NDArray[np.int64]
    leaves: NDArray[np.int64]
    place: NDArray[np.int32]


def ordered(left: NDArray[Any], right: NDArray[Any]) -> Nodes:
    """Return the nodes below node 0, it first: others may lie about. A leaf's children are below 0.

    Raises ValueError for what is no tree.
    """
    reached = _reached(left, right)
    inner = reached[left[reached] >= 0]
    leaves = reached[left[reached] < 0]
    place = np.zeros(len(left), np.int32)
    place[inner], place[leaves] = np.arange(len(inner)), ~np.arange(len(leaves))
    return Nodes(inner, leaves, place)


def _reached(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int64]:
    if len(left) != len(right) or not len(left):
        raise ValueError("columns of different lengths")
    level = np.zeros(1, np.int64)
    levels = [level]
    count = 1
    while len(level):
        split = level[left[level] >= 0]
        level = np.concatenate([left[split], right[split]]).astype(np.int64)
        if ((level <= 0) | (level >= len(left))).any():
            raise ValueError("a child that is not there")
        count += len(level)
        if count > len(left):
            raise ValueError("a node below itself")
        levels.append(level)
    return np.concatenate(levels)
