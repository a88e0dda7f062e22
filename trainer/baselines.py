"""What a model must beat: the same rows, with less to know or less to think with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from trainer.training import SEARCH, Matrix, Progress, Rows, predictor, tune


def logistic(
    train: Rows, test: Matrix, columns: Sequence[str], categories: Sequence[str]
) -> NDArray[np.float64]:
    """Return the probabilities [N] that a logistic regression gives the test rows.

    `categories` name the columns that are one-hot encoded; the others are imputed by their median
    and scaled. float32 matrices [N, F] in the order of `columns`.
    """
    coded = [columns.index(name) for name in categories]
    plain = [at for at in range(len(columns)) if at not in coded]
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32), coded),
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), plain),
    )
    model = make_pipeline(encode, LogisticRegression(max_iter=200, tol=1e-3))
    model.fit(train.matrix, train.labels)
    return np.asarray(model.predict_proba(test)[:, 1], dtype=np.float64)


def boosted(
    train: Rows, tuning: Rows, test: Matrix, *, seed: int, threads: int, progress: Progress
) -> NDArray[np.float64]:
    """Return the probabilities [N] of LightGBM on fewer columns, stopped on the tuning rows."""
    model = tune(train, tuning, seed=seed, threads=threads, progress=progress, search=SEARCH[:1])
    return predictor(model.text, threads)(test)
