"""Sampled Shapley values of any model: features are swapped in, one by one, in random orders.

The game: a feature that is not in the coalition has the value of a background row. Each order is
walked from the background row to the explained one and, antithetically, back (Mitchell, Cooper,
Frank and Holmes, "Sampling Permutations for Shapley Value Estimation", 2022): the steps of a walk
add up to the whole difference, so the attributions and the base always do, and only their split
among the features is an estimate. Its standard error comes from how much the orders differ.

Without IO and without a clock: the model and the time are handed in. The orders follow from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
# Runs the model on rows, one array an input; returns float64 [rows, outputs].
Score = Callable[[list[Array]], Floats]

MODEL_ROWS: Final = 2048  # for one explained row; more only where two orders need more
PAIRS_MIN: Final = 2  # an error needs two orders from one background row
FEATURES_MAX: Final = 1024
OUTPUTS_MAX: Final = 64
BACKGROUND_MAX: Final = 8
RUN_ROWS: Final = 1024  # of the model, at once


@dataclass(frozen=True)
class Estimate:
    """Attributions and their standard errors float64 [features, outputs], base [outputs]."""

    values: Floats
    errors: Floats
    base: Floats


def pairs_of(features: int, background: int) -> tuple[int, int]:
    """Return how many orders are walked, there and back, and how many background rows they use.

    Each of these is used equally often, twice at least.
    """
    pairs = max(MODEL_ROWS // (2 * max(features, 1)), PAIRS_MIN)
    used = min(background, pairs // PAIRS_MIN)
    return pairs - pairs % used, used


def model_rows_of(features: int, background: int) -> int:
    """Return how many rows the model runs to explain one."""
    return pairs_of(features, background)[0] * 2 * max(features, 1)


def estimate(
    score: Score, row: Sequence[Array], background: Sequence[Array], seed: int,
    is_late: Callable[[], bool],
) -> Estimate | None:  # fmt: skip
    """Explain one row: one array an input, without the rows' dimension; `background` has them with
    it. Features are all numbers of all inputs, in order. None when it became late.

    Raises InvalidArgumentError for too many features or outputs, and what `score` raises.
    """
    sizes = [array.size for array in row]
    features = sum(sizes)
    if not 0 < features <= FEATURES_MAX:
        raise InvalidArgumentError(
            "not a number of features that can be explained by sampling",
            expected=f"1 to {FEATURES_MAX}",
            got=features,
        )
    pairs, used = pairs_of(features, len(background[0]))
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(features), (pairs, 1)), axis=1)
    at_once = max(RUN_ROWS // (2 * features), 1)
    parts: list[Floats] = []
    starts: list[Floats] = []
    for first in range(0, pairs, at_once):
        if is_late():
            return None
        part = orders[first : first + at_once]
        rows = [at % used for at in range(first, first + len(part))]
        walked = score(_rows(row, [each[rows] for each in background], sizes, _masks(part)))
        if walked.shape[1] > OUTPUTS_MAX:
            raise InvalidArgumentError(
                "the model has too many outputs to explain",
                expected=f"at most {OUTPUTS_MAX}",
                got=walked.shape[1],
            )
        walked = walked.reshape(len(part), 2 * features, -1)
        parts.append(_steps(walked, part))
        starts.append(walked[:, 0])
    steps = np.concatenate(parts)
    return Estimate(steps.mean(axis=0), _errors(steps, used), np.concatenate(starts).mean(axis=0))


def _errors(steps: Floats, used: int) -> Floats:
    """Return standard errors of the mean: background rows are no accident, orders are."""
    times = len(steps) // used
    by_row = steps.reshape(times, used, *steps.shape[1:]).var(axis=0, ddof=1)
    errors: Floats = np.sqrt(by_row.sum(axis=0) / times) / used
    return errors


def _masks(orders: Array) -> npt.NDArray[np.bool_]:
    """Return which features have the explained row's value, [orders, 2 · features, features].

    Of each order: none, the first, the first two … all, then the last, the last two … all but one.
    """
    features = orders.shape[1]
    rank = np.argsort(orders, axis=1)[:, None, :]
    known = np.arange(features + 1)[None, :, None]
    there = rank < known
    back = rank >= features - known[:, 1:features]
    return np.concatenate([there, back], axis=1)


def _rows(
    row: Sequence[Array],
    background: Sequence[Array],
    sizes: Sequence[int],
    masks: npt.NDArray[np.bool_],
) -> list[Array]:
    """Return the model's inputs for all masks; background row i belongs to order i."""
    inputs = []
    at = 0
    for array, behind, size in zip(row, background, sizes, strict=True):
        mask = masks[:, :, at : at + size]
        swapped = np.where(mask, array.reshape(1, 1, -1), behind.reshape(len(behind), 1, -1))
        inputs.append(np.ascontiguousarray(swapped).reshape(-1, *array.shape))
        at += size
    return inputs


def _steps(walked: Floats, orders: Array) -> Floats:
    """Return what each feature added, the mean of there and back, [orders, features, outputs]."""
    features = orders.shape[1]
    there = np.diff(walked[:, : features + 1], axis=1)
    ends = [walked[:, :1], walked[:, features + 1 :], walked[:, features : features + 1]]
    back = np.diff(np.concatenate(ends, axis=1), axis=1)
    mean = (there + back[:, ::-1]) / 2
    steps = np.empty_like(mean)
    np.put_along_axis(steps, orders[:, :, None], mean, axis=1)
    return steps
