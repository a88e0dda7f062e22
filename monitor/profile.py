"""The reference profile of a version (`profile.arrow` in its bundle): what training looked like.

Per feature: fixed decile edges, the histogram on them with nulls as a bin of their own, mean and
standard deviation. For the predictions: the same, and calibration. Edges are fixed once here, so
that every later histogram is comparable and merges by addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.digest import digest_json
from headrace.errors import InvalidArgumentError

FORMAT = "1"
_COLUMNS: list[tuple[str, Any]] = [
    ("kind", pa.string()),  # "feature" or "prediction"
    ("name", pa.string()),
    ("rows", pa.int64()),
    ("nulls", pa.int64()),
    ("mean", pa.float64()),  # of what is not null; null when nothing is
    ("std", pa.float64()),
    ("edges", pa.list_(pa.float64())),  # ascending; bin i holds edges[i−1] < x ≤ edges[i]
    ("counts", pa.list_(pa.int64())),  # len(edges) + 1; the outer bins are open
    ("label_sums", pa.list_(pa.float64())),  # prediction row only; null without labels
    ("prediction_sums", pa.list_(pa.float64())),
]
_SCHEMA = pa.schema(_COLUMNS, metadata={b"headrace.profile": FORMAT.encode()})
_QUANTILES = np.arange(1, 10) / 10
PREDICTION = "prediction"


@dataclass(frozen=True, eq=False)
class Profile:
    """A profile ready for use. F features; B bins, padded to the feature with the most."""

    columns: list[str]
    rows: int
    edges: list[np.ndarray]  # F of float64 [bins − 1]
    counts: np.ndarray  # float64 [F, B + 1]; the last column holds nulls
    bins: np.ndarray  # int64 [F]: how many of the B bins are the feature's own
    means: np.ndarray  # float64 [F], NaN where everything was null
    stds: np.ndarray  # float64 [F]
    prediction_mean: float
    prediction_edges: np.ndarray
    prediction_counts: np.ndarray
    observed_share: float | None  # None without labels
    digest: str

    @property
    def width(self) -> int:
        """B + 1: the columns of a histogram of these features."""
        return int(self.counts.shape[1])


def build_profile(
    matrix: np.ndarray,
    columns: list[str],
    predictions: np.ndarray,
    labels: np.ndarray | None = None,
) -> pa.Table:
    """Return the reference profile of training data as a table.

    `matrix` is float32 [N, F] with NaN for null, in the order of `columns`; `predictions` are
    probabilities [N]; `labels` 0/1 [N] or None. Raises InvalidArgumentError for shapes that do not
    fit, repeated columns, no rows, or predictions outside [0, 1].
    """
    _check(matrix, columns, predictions, labels)
    rows = [_describe("feature", name, matrix[:, i]) for i, name in enumerate(columns)]
    prediction = _describe(PREDICTION, PREDICTION, predictions)
    if labels is not None:
        edges = np.asarray(prediction["edges"], np.float64)
        bins = np.searchsorted(edges, predictions.astype(np.float64), side="left")
        size = len(edges) + 1
        prediction["label_sums"] = np.bincount(bins, labels, size).tolist()
        prediction["prediction_sums"] = np.bincount(bins, predictions, size).tolist()
    return pa.Table.from_pylist([*rows, prediction], schema=_SCHEMA)


def write_profile(table: pa.Table, path: Path) -> None:
    """Write a profile as an Arrow IPC file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_profile(path: Path) -> Profile:
    """Read `profile.arrow`. Raises InvalidArgumentError when it is none."""
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError("not an Arrow file", where=path.name) from error
    return profile_from_table(table)


def profile_from_table(table: pa.Table) -> Profile:
    """Return the profile held by `table`. Raises InvalidArgumentError for another kind of table."""
    found = (table.schema.metadata or {}).get(b"headrace.profile", b"none").decode()
    if found != FORMAT or not table.schema.equals(_SCHEMA):
        raise InvalidArgumentError(
            "not a reference profile", where="profile", expected=f"format {FORMAT}", got=found
        )
    rows = table.to_pylist()
    features = [row for row in rows if row["kind"] == "feature"]
    predictions = [row for row in rows if row["kind"] == PREDICTION]
    if len(predictions) != 1:
        raise InvalidArgumentError(
            "profile without its prediction row", where="profile", expected=1, got=len(predictions)
        )
    prediction = predictions[0]
    bins = np.array([len(row["counts"]) for row in features], np.int64)
    counts = np.zeros((len(features), int(bins.max(initial=1)) + 1))
    for i, row in enumerate(features):
        counts[i, : bins[i]] = row["counts"]
        counts[i, -1] = row["nulls"]
    labels = prediction["label_sums"]
    return Profile(
        columns=[row["name"] for row in features],
        rows=prediction["rows"],
        edges=[np.array(row["edges"], np.float64) for row in features],
        counts=counts,
        bins=bins,
        means=np.array([row["mean"] for row in features], np.float64),
        stds=np.array([row["std"] for row in features], np.float64),
        prediction_mean=prediction["mean"],
        prediction_edges=np.array(prediction["edges"], np.float64),
        prediction_counts=np.array(prediction["counts"], np.float64),
        observed_share=None if labels is None else sum(labels) / prediction["rows"],
        digest=digest_json(rows),
    )


def fixed_edges(values: np.ndarray) -> np.ndarray:
    """Return the ascending edges that bin `values` (finite float64) and all that is to come.

    Deciles, without repeats. A value at an end of the range that holds a tenth or more of all gets
    a bin of its own, so that a constant that changes, and a value beyond the range, are seen.
    """
    if len(values) == 0:
        return np.zeros(0)
    edges = np.unique(np.quantile(values, _QUANTILES, method="inverted_cdf"))
    if edges[0] == values.min():
        edges = np.concatenate([[np.nextafter(edges[0], -np.inf)], edges])
    return edges


def _describe(kind: str, name: str, column: np.ndarray) -> dict[str, object]:
    values = column.astype(np.float64)
    known = values[~np.isnan(values)]
    finite = known[np.isfinite(known)]
    edges = fixed_edges(finite)
    bins = np.searchsorted(edges, known, side="left")
    return {
        "kind": kind,
        "name": name,
        "rows": len(values),
        "nulls": len(values) - len(known),
        "mean": float(finite.mean()) if len(finite) else None,
        "std": float(finite.std()) if len(finite) else None,
        "edges": edges.tolist(),
        "counts": np.bincount(bins, minlength=len(edges) + 1).tolist(),
    }


def _check(
    matrix: np.ndarray, columns: list[str], predictions: np.ndarray, labels: np.ndarray | None
) -> None:
    if matrix.ndim != 2 or matrix.shape[1] != len(columns) or len(matrix) == 0:
        raise InvalidArgumentError(
            "matrix does not fit its columns",
            where="profile",
            expected=f"[N ≥ 1, {len(columns)}]",
            got=list(matrix.shape),
        )
    if len(set(columns)) != len(columns):
        raise InvalidArgumentError("repeated columns", where="profile")
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values is not None and values.shape != (len(matrix),):
            raise InvalidArgumentError(
                f"{name} do not fit the matrix",
                where="profile",
                expected=[len(matrix)],
                got=list(values.shape),
            )
    if not ((predictions >= 0) & (predictions <= 1)).all():
        raise InvalidArgumentError(
            "predictions are not probabilities", where="profile", expected="values in [0, 1]"
        )
