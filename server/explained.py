"""Explanations as `headrace.v1` gives them: one a row, with the names of its features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.models.explanations import Explanation
from server.models.versions import Version


@dataclass(frozen=True, slots=True)
class RowExplanation:
    """`values` and `errors` (None: exact) float64 [features, scores], `base` float64 [scores]."""

    method: str
    features: list[str]
    values: npt.NDArray[np.float64]
    base: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64] | None


def row_explanations(
    version: Version, feeds: Sequence[npt.NDArray[Any]], explanation: Explanation
) -> list[RowExplanation]:
    """Return what was found of each row; `feeds` are what the version's model got."""
    names = _names(version, feeds)
    return [
        RowExplanation(
            explanation.method,
            names,
            explanation.values[row],
            explanation.base[row],
            None if explanation.errors is None else explanation.errors[row],
        )
        for row in range(len(explanation.values))
    ]


def _names(version: Version, feeds: Sequence[npt.NDArray[Any]]) -> list[str]:
    """Return the service's columns; without one the inputs, those of several numbers by place."""
    if version.service is not None:
        return list(version.service.columns)
    names: list[str] = []
    for spec, feed in zip(version.model.feed_order, feeds, strict=True):
        size = math.prod(feed.shape[1:])
        names += [spec.name] if size == 1 else [f"{spec.name}[{at}]" for at in range(size)]
    return names
