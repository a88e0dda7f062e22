"""Small LightGBM boosters with everything that an export can get wrong."""

from __future__ import annotations

import functools

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

FEATURES = 8
NEVER_NAN, WHOLE, FLAG, LARGE, TINY = 3, 4, 5, 6, 7


def rows(count: int, seed: int) -> NDArray[np.float32]:
    """float32 [count, 8]: normal with NaNs, and columns without NaN, of integers, bools, times."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, FEATURES)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    matrix[:, NEVER_NAN] = rng.normal(size=count)
    matrix[:, WHOLE] = rng.integers(-3, 4, count)
    matrix[:, FLAG] = rng.random(count) < 0.3
    matrix[:, LARGE] = 1.38e9 + rng.integers(0, 3_000_000, count)
    # Around what LightGBM takes for zero.
    matrix[:, TINY] = rng.choice(np.float32([-1, -2e-35, -1e-36, 0, 1e-36, 2e-35, 1]), count)
    return matrix


def labels(matrix: NDArray[np.float32], seed: int) -> NDArray[np.bool_]:
    """What `rows` decide, with noise."""
    noise = np.random.default_rng(seed).normal(size=len(matrix))
    score = np.nan_to_num(matrix[:, 0]) + matrix[:, NEVER_NAN] * matrix[:, WHOLE]
    late = (matrix[:, LARGE] > 1.3815e9) + np.isnan(matrix[:, 1]) + np.sign(matrix[:, TINY])
    return score + late + noise > 1


@functools.cache
def booster_text(trees: int = 40, leaves: int = 31, **parameters: object) -> str:
    """The model text of a booster trained on 6000 of these rows."""
    matrix = rows(6000, seed=1)
    settings = {
        "objective": "binary",
        "num_leaves": leaves,
        "verbose": -1,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "seed": 7,
    }
    data = lgb.Dataset(matrix, labels(matrix, seed=2))
    return lgb.train(settings | parameters, data, trees).model_to_string()
