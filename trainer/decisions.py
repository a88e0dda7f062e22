"""The last step of a version: from its output to one of its classes (CONTRACTS §6)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import FailedPreconditionError
from trainer.manifest import Decision

Array = npt.NDArray[Any]


def decide(decision: Decision, output: Array) -> list[str]:
    """Return one class a row of `output` [rows, width], checked by `check_output` before.

    A row whose score is NaN gets none (the empty text).
    """
    if decision.rule is None:
        threshold = 0.5 if decision.threshold is None else decision.threshold
        no, yes = decision.classes
        return [
            yes if score >= threshold else no if score == score else ""  # noqa: PLR0124 - NaN
            for score in output[:, -1].astype(np.float64).tolist()
        ]
    if decision.rule == "bands":
        scores = output[:, -1].astype(np.float64)
        found = np.searchsorted(np.array(decision.thresholds), scores, side="right")
        return _named(decision.classes, found, np.isnan(scores))
    best = np.argmax(output, axis=1)
    names = decision.classes
    if decision.rule == "confident":
        scores = output[np.arange(len(output)), best].astype(np.float64)
        best = np.where(scores >= np.array(decision.thresholds)[best], best, len(names))
        names = [*names, str(decision.otherwise)]
    return _named(names, best, np.any(np.isnan(output), axis=1))


def check_output(decision: Decision, output: Array) -> None:
    """Raise FailedPreconditionError unless these classes can be told by such an output."""
    by_column = decision.rule in {"argmax", "confident"}
    widths = {len(decision.classes)} if by_column else {1, 2}
    width = math.prod(output.shape[1:]) if output.ndim else 0
    if output.dtype.kind not in "fiu" or width not in widths:
        raise FailedPreconditionError(
            "the decision does not fit the model's output",
            expected=" or ".join(f"{width} columns" for width in sorted(widths)),
            got=f"{output.dtype} {list(output.shape)}",
        )


def _named(names: list[str], found: Array, unknown: Array) -> list[str]:
    named: list[str] = np.where(unknown, "", np.array(names, object)[found]).tolist()
    return named
