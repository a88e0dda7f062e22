"""Writes the files and answers beside it: run where scikit-learn and skops are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED

import numpy as np
import skops.io
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.server.backends.sklearn.estimators import CASES, fitted, rows

HERE = Path(__file__).parent
CHOSEN = (
    "logistic", "logistic_three", "ridge", "pipeline", "forest", "forest_three", "extra_trees",
    "regression_forest", "boosting", "boosting_three", "histogram", "histogram_counts",
)  # fmt: skip


def answer(model: Any, matrix: Any) -> Any:
    if hasattr(model, "predict_proba"):
        shares = model.predict_proba(matrix)
        return shares[:, 1:] if shares.shape[1] == 2 else shares
    return model.predict(matrix).reshape(len(matrix), -1)


def main() -> None:
    found = {}
    for name in CHOSEN:
        model, matrix = fitted(name), rows(40, 2, missing=CASES[name].missing)
        data = skops.io.dumps(model, compression=ZIP_DEFLATED, compresslevel=9)
        (HERE / f"{name}.skops").write_bytes(data)
        listed = [[None if np.isnan(v) else float(v) for v in row] for row in matrix]
        answers = answer(model, matrix.astype(np.float64)).tolist()
        found[name] = {"rows": listed, "answers": answers}
    (HERE / "answers.json").write_text(json.dumps(found, separators=(",", ":")))
    other = make_pipeline(StandardScaler(), StandardScaler()).fit(rows(40, 2, missing=False))
    data = skops.io.dumps(other, compression=ZIP_DEFLATED)
    (HERE / "no_predictor.skops").write_bytes(data)


if __name__ == "__main__":
    main()
