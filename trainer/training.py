"""LightGBM, trained so that the same rows give the same bytes, and tuned on rows it never saw."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Before OpenMP loads: its threads spin while they wait, and beside other busy processes that takes
# training from seconds to minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import lightgbm as lgb
import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer.trees import LEAF_GRID, to_single_precision

Matrix = NDArray[np.float32]
Labels = NDArray[np.bool_]
Progress = Callable[[str, float], None]
"""What is being done, and the share of it that is done (0 to 1)."""

Parameters = dict[str, float]

# `deterministic` alone is not enough: without a forced layout LightGBM times both and takes the
# faster.
_FIXED: dict[str, Any] = {
    "objective": "binary",
    "metric": "binary_logloss",
    "deterministic": True,
    "force_row_wise": True,
    "bagging_freq": 1,
    "max_bin": 63,
    "verbose": -1,
}
SEARCH: tuple[Parameters, ...] = (
    {
        "num_leaves": 31,
        "learning_rate": 0.1,
        "min_data_in_leaf": 200,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.8,
    },
    {
        "num_leaves": 31,
        "learning_rate": 0.1,
        "min_data_in_leaf": 1000,
        "feature_fraction": 0.3,
        "bagging_fraction": 0.6,
    },
)
"""A small honest search: two settings, each stopped early by the log loss on the tuning rows."""

ROUNDS_MAX = 600
PATIENCE_ROUNDS = 20


@dataclass(frozen=True)
class Rows:
    """`matrix` float32 [N, F] (null = NaN), `labels` bool [N]."""

    matrix: Matrix
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


class Trial(msgspec.Struct, frozen=True):
    """One setting of the search: its best round, and the log loss on the tuning rows there."""

    parameters: Parameters
    rounds: int
    log_loss: float


@dataclass(frozen=True)
class Model:
    """A trained booster. `text`, in single precision, ships; `unrounded` is what LightGBM made."""

    text: str
    unrounded: str
    parameters: Parameters
    rounds: int
    trials: list[Trial]


def tune(
    train: Rows,
    tuning: Rows,
    *,
    seed: int,
    threads: int,
    progress: Progress,
    search: Sequence[Parameters] = SEARCH,
) -> Model:
    """Train with each setting and return the model with the least log loss on the tuning rows."""
    data = lgb.Dataset(train.matrix, train.labels, params=_settings({}, seed, threads))
    valid = lgb.Dataset(tuning.matrix, tuning.labels, reference=data)
    trials: list[Trial] = []
    best = ""
    for number, parameters in enumerate(search):
        name = f"tune {number + 1}/{len(search)}"
        booster = lgb.train(
            _settings(parameters, seed, threads),
            data,
            ROUNDS_MAX,
            valid_sets=[valid],
            callbacks=[
                lgb.early_stopping(PATIENCE_ROUNDS, verbose=False),
                _report(progress, name, number, len(search)),
            ],
        )
        loss = float(booster.best_score["valid_0"]["binary_logloss"])
        if not trials or loss < min(trial.log_loss for trial in trials):
            best = booster.model_to_string(num_iteration=booster.best_iteration)
        trials.append(Trial(parameters, booster.best_iteration, loss))
    winner = min(trials, key=lambda trial: trial.log_loss)
    return Model(to_single_precision(best), best, winner.parameters, winner.rounds, trials)


def train(
    rows: Rows,
    parameters: Parameters,
    rounds: int,
    *,
    seed: int,
    threads: int,
    progress: Progress,
) -> Model:
    """Train with parameters and rounds that were found before."""
    settings = _settings(parameters, seed, threads)
    data = lgb.Dataset(rows.matrix, rows.labels, params=settings)
    booster = lgb.train(settings, data, rounds, callbacks=[_report(progress, "train", 0, 1)])
    text = booster.model_to_string()
    return Model(to_single_precision(text), text, parameters, rounds, [])


def predictor(text: str, threads: int) -> Callable[[Matrix], NDArray[np.float64]]:
    """Return a model text as a function: float32 [N, F] → probability float64 [N]."""
    booster = lgb.Booster(model_str=text)

    def predict(matrix: Matrix) -> NDArray[np.float64]:
        if not len(matrix):
            return np.empty(0)
        return np.asarray(booster.predict(matrix, num_threads=threads), dtype=np.float64)

    return predict


def choose_threshold(labels: Labels, probabilities: NDArray[np.floating]) -> float:
    """Return the probability from which a row counts as positive: the greatest F1 on these rows.

    It lies half a step of the leaves' grid from every sum of leaves, so that no answer can be so
    near to it that float32 and float64 would decide differently.
    """
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order])
    # Cutting between equal predictions is no cut.
    last = np.append(np.diff(probabilities[order]) != 0, [True])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + labels.sum())
    best = float(probabilities[order][np.argmax(np.where(last, f1, -1))])
    score = np.log(best / (1 - best))
    return float(1 / (1 + np.exp(-(np.floor(score / LEAF_GRID) - 0.5) * LEAF_GRID)))


def _settings(parameters: Parameters, seed: int, threads: int) -> dict[str, Any]:
    return {**_FIXED, **parameters, "seed": seed, "num_threads": threads}


def _report(
    progress: Progress, name: str, number: int, of: int
) -> Callable[[lgb.callback.CallbackEnv], None]:
    def report(env: lgb.callback.CallbackEnv) -> None:
        done = (env.iteration + 1) / env.end_iteration
        progress(name, (number + done) / of)

    return report
