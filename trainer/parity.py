"""The gate between LightGBM and ONNX: no model is registered whose export answers differently.

Random rows hide what goes wrong: a threshold rounded the wrong way only shows on a value that lies
on it. So the gate asks at every split threshold and one float32 step to either side, with a row
that reaches that split, besides the whole test set, the values no data holds, and several batch
sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailedPreconditionError
from trainer.trees import Forest, Tree, round_down

Matrix = NDArray[np.float32]
Predict = Callable[[Matrix], NDArray[np.floating]]
"""float32 [N, F] → probability [N]."""

DELTA_MAX = 1e-5
BATCH_SIZES = (1, 3, 7, 1000)
SPECIAL_VALUES = (np.nan, np.inf, -np.inf, -0.0, 0.0)
_CHUNK_ROWS = 16_384
_BASE_ROWS_MAX = 4096
_BASES_PER_SPECIAL = 4


class Check(msgspec.Struct, frozen=True):
    """ONNX against a booster on one set of rows: labels that flipped, greatest distance."""

    rows: int
    label_flips: int
    delta_max: float


class ParityReport(msgspec.Struct, frozen=True):
    """What the gate saw, per set of rows.

    `shipped` compares with the booster in single precision, which is the model: threshold and
    metrics are this booster's. `unrounded` compares with what LightGBM made: there a row within the
    rounding of the leaves may change sides of the decision, but none may move far.
    """

    shipped: dict[str, Check]
    unrounded: dict[str, Check]
    splits: int
    batch_sizes: list[int]
    batch_bits_differ: int
    empty_batch_rows: int


@dataclass(frozen=True)
class Predictors:
    """The three that are compared, and the decision: late where probability ≥ threshold."""

    onnx: Predict
    booster: Predict
    unrounded: Predict
    threshold: float


def check_parity(predictors: Predictors, forest: Forest, test: Matrix) -> ParityReport:
    """Compare ONNX with the boosters on `test` (float32 [N, F]) and on the rows made from it.

    Raises FailedPreconditionError with the first check that failed, its counts and its distance.
    """
    base = test[:: max(1, len(test) // _BASE_ROWS_MAX)]
    sets = {
        "test set": _chunks(test),
        "split thresholds ± 1 ulp": split_rows(forest, base),
        "NaN, ±inf, ±0": special_rows(base),
    }
    compared = {name: _compare(predictors, rows) for name, rows in sets.items()}
    report = ParityReport(
        shipped={name: shipped for name, (shipped, _) in compared.items()},
        unrounded={name: unrounded for name, (_, unrounded) in compared.items()},
        splits=sum(len(tree.feature) for tree in forest.trees),
        batch_sizes=list(BATCH_SIZES),
        batch_bits_differ=_batch_bits_differ(predictors.onnx, base[: 3 * max(BATCH_SIZES)]),
        empty_batch_rows=len(predictors.onnx(test[:0])),
    )
    _require(report)
    return report


def _require(report: ParityReport) -> None:
    for name, check in report.shipped.items():
        _require_near(name, check, flips_max=0)
    for name, check in report.unrounded.items():
        _require_near(f"{name} (before rounding)", check, flips_max=check.rows)
    if report.batch_bits_differ or report.empty_batch_rows:
        raise FailedPreconditionError(
            "ONNX answers depend on the size of the batch",
            where="parity gate",
            expected="the same bits for every batch size, and none for an empty batch",
            got=f"{report.batch_bits_differ} answers differ, {report.empty_batch_rows} for no rows",
            mend="a logged row could not be replayed; do not register it",
        )


def _require_near(name: str, check: Check, flips_max: int) -> None:
    # A NaN distance fails here too: it is not ≤ anything.
    if check.label_flips > flips_max or not check.delta_max <= DELTA_MAX:
        raise FailedPreconditionError(
            f"ONNX and LightGBM disagree on {name}",
            where="parity gate",
            expected=f"no label flips and |Δ| ≤ {DELTA_MAX:g}",
            got=f"{check.label_flips} flips, |Δ| ≤ {check.delta_max:.3g} on {check.rows} rows",
            mend="the export is wrong; do not register it",
        )


def _compare(predictors: Predictors, chunks: Iterator[Matrix]) -> tuple[Check, Check]:
    """Return the checks against the shipped booster and against the unrounded one."""
    rows = 0
    flips, delta_max = [0, 0], [0.0, 0.0]
    for chunk in chunks:
        rows += len(chunk)
        ours = predictors.onnx(chunk).astype(np.float64)
        for at, other in enumerate((predictors.booster, predictors.unrounded)):
            theirs = other(chunk).astype(np.float64)
            flipped = (ours >= predictors.threshold) != (theirs >= predictors.threshold)
            flips[at] += int(np.count_nonzero(flipped))
            # np.max, unlike max, keeps a NaN.
            delta = np.max(np.abs(ours - theirs), initial=0.0)
            delta_max[at] = float(np.max([delta_max[at], delta]))
    return Check(rows, flips[0], delta_max[0]), Check(rows, flips[1], delta_max[1])


def split_rows(forest: Forest, base: Matrix) -> Iterator[Matrix]:
    """Yield rows with the feature of each split at t, t + 1 ulp and t − 1 ulp, tree by tree.

    Each starts from a row of `base` (float32 [N, F]) that reaches the split, where there is one.
    """
    for tree in forest.trees:
        if not len(tree.feature):
            continue
        t = round_down(tree.threshold)
        with np.errstate(over="ignore"):  # the step after the greatest float32 is infinity
            above, below = (np.nextafter(t, np.float32(end)) for end in (np.inf, -np.inf))
        points = np.stack([t, above, below])
        rows = np.repeat(base[_rows_that_reach(tree, base)], 3, axis=0)
        rows[np.arange(len(rows)), np.repeat(tree.feature, 3)] = points.T.ravel()
        yield rows


def special_rows(base: Matrix) -> Iterator[Matrix]:
    """Yield rows with each feature in turn, and all at once, NaN, ±inf and ±0."""
    width = base.shape[1]
    for value in SPECIAL_VALUES:
        for row in base[:: max(1, len(base) // _BASES_PER_SPECIAL)][:_BASES_PER_SPECIAL]:
            rows = np.repeat(row[None], width + 1, axis=0)
            rows[np.arange(width), np.arange(width)] = value
            rows[width] = value
            yield rows


def _rows_that_reach(tree: Tree, base: Matrix) -> NDArray[np.int64]:
    """Return for each inner node the index of a row that comes through it; 0 where none does."""
    reached = np.zeros(len(tree.feature), np.int64)
    rows = np.arange(len(base))
    node = np.zeros(len(base), np.int64)
    while len(rows):
        reached[node] = rows
        values = base[rows, tree.feature[node]]
        left = np.where(np.isnan(values), tree.nan_left[node], values <= tree.threshold[node])
        node = np.where(left, tree.left[node], tree.right[node]).astype(np.int64)
        inner = node >= 0
        rows, node = rows[inner], node[inner]
    return reached


def _batch_bits_differ(onnx: Predict, rows: Matrix) -> int:
    """Return how many answers have other bits when the same rows come in other batches."""
    whole = onnx(rows).astype(np.float32).view(np.int32)
    differ = 0
    for size in BATCH_SIZES:
        parts = [onnx(rows[at : at + size]) for at in range(0, len(rows), size)]
        bits = np.concatenate(parts).astype(np.float32).view(np.int32)
        differ += int(np.count_nonzero(bits != whole))
    return differ


def _chunks(rows: Matrix) -> Iterator[Matrix]:
    for at in range(0, len(rows), _CHUNK_ROWS):
        yield rows[at : at + _CHUNK_ROWS]
