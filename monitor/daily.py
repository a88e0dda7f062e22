"""A day of one model, small enough to keep and mergeable by addition.

Days are UTC dates of event time. Only answered predictions count (status 0, last attempt, not
shadow); each row weighs 1 / sampling_probability, so that a day whose sampling changed stays right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import reduce
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import InvalidArgumentError
from headrace.times import DAY_US, utc_date
from monitor.profile import Profile
from monitor.schema import SHADOW
from monitor.totals import Totals, totals

_ARM = pa.schema([("arm", pa.string())])

# The columns of the log that a day needs.
DAY_COLUMNS = [
    "prediction_id", "attempt", "event_time", "arm", "flags", "sampling_probability", "features",
    "outputs", "status",
]  # fmt: skip

Decode = Callable[[Any], np.ndarray]
"""Packed rows (binary, no nulls) → float32 [rows, F] in the profile's order, NaN = null."""


class DayProfile(msgspec.Struct):
    """One UTC date of one model on the bins of a reference profile; or several, merged.

    F features and B + 1 columns as in the profile. Weighted counts are float64.
    """

    date: date  # the last one, when merged
    profile: str  # digest of the reference profile whose edges these are
    totals: Totals
    arms: dict[str, Totals]  # shadow arms too, which `totals` leaves out
    invalid: int  # answered rows whose output is no probability
    invalid_truth: int  # rows whose truth is neither 0 nor 1; they count as without truth
    feature_weight: float  # of rows that have features
    feature_weight_squares: float
    histograms: np.ndarray  # [F, B + 1], the last column nulls
    prediction_by_bin: np.ndarray  # [F, B + 1]: the predictions that fell in each bin, summed
    sums: np.ndarray  # [F] of finite values
    finite: np.ndarray  # [F] how many (weighted) those are
    prediction_histogram: np.ndarray  # [bins] on the profile's prediction edges

    @property
    def rows(self) -> int:
        """Predictions counted."""
        return self.totals.rows

    @property
    def feature_rows(self) -> float:
        """The effective number of rows behind the histograms (Kish)."""
        squares = self.feature_weight_squares
        return self.feature_weight**2 / squares if squares else 0.0

    @property
    def null_shares(self) -> np.ndarray:
        """Float64 [F]: the share of nulls, NaN without rows."""
        return _ratio(self.histograms[:, -1], np.full(len(self.sums), self.feature_weight))

    @property
    def means(self) -> np.ndarray:
        """Float64 [F]: means of the finite values, NaN without any."""
        return _ratio(self.sums, self.finite)

    @property
    def rank_means(self) -> np.ndarray:
        """Float64 [F]: the mean mid-bin position in [0, 1] of what is not null.

        A mean that a single wild value cannot move: bin i of B counts (i + ½) / B.
        """
        bins = self.histograms.shape[1] - 1
        middles = (np.arange(bins) + 0.5) / max(bins, 1)
        known = self.histograms[:, :-1]
        return _ratio(known @ middles, known.sum(axis=1))

    def __add__(self, other: DayProfile) -> DayProfile:
        """Return both merged. Raises InvalidArgumentError when their bins differ."""
        if self.profile != other.profile:
            raise InvalidArgumentError(
                "days of different reference profiles do not merge",
                where=str(other.date),
                expected=self.profile,
                got=other.profile,
            )
        arms = {
            name: reduce(Totals.__add__, [d.arms[name] for d in (self, other) if name in d.arms])
            for name in sorted({*self.arms, *other.arms})
        }
        added = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__struct_fields__
            if name not in {"date", "profile", "arms"}
        }
        return DayProfile(date=max(self.date, other.date), profile=self.profile, arms=arms, **added)


def day_profile(
    day: date, log: pa.Table, truth: np.ndarray, profile: Profile, decode: Decode
) -> DayProfile:
    """Return the profile of the log rows of one day.

    `log` holds at least DAY_COLUMNS; `truth` is float64 [log rows], NaN where unknown. Raises
    InvalidArgumentError when `decode` gives another shape than the reference profile's.
    """
    answered = _answered(log)
    log, truth = log.take(answered), truth[answered]
    strange = ~np.isnan(truth) & (truth != 0) & (truth != 1)
    truth = np.where(strange, np.nan, truth)
    predictions, sane = _first_outputs(log["outputs"])
    shadow = (_column(log, "flags", 0) & SHADOW) != 0
    weights = 1.0 / _column(log, "sampling_probability", 1.0).astype(np.float64)
    arms = _column(log.select(["arm"]).cast(_ARM), "arm", "")
    live = sane & ~shadow
    has_features = live & log["features"].is_valid().to_numpy()
    packed = log["features"].filter(has_features).combine_chunks()
    matrix = decode(packed) if len(packed) else np.empty((0, len(profile.columns)), np.float32)
    if matrix.shape != (len(packed), len(profile.columns)):
        raise InvalidArgumentError(
            "decoded features do not fit the reference profile",
            where=str(day),
            expected=[len(packed), len(profile.columns)],
            got=list(matrix.shape),
        )
    result = _profile_rows(day, profile, matrix, predictions[has_features], weights[has_features])
    result.invalid = int((~sane & ~shadow).sum())
    result.invalid_truth = int((strange & ~shadow).sum())
    result.totals = totals(predictions[live], truth[live], weights[live])
    result.prediction_histogram = _prediction_histogram(profile, predictions[live], weights[live])
    result.arms = _by_arm(arms[sane], predictions[sane], truth[sane], weights[sane])
    return result


def score_days(
    profile: Profile,
    event_time_us: np.ndarray,
    matrix: np.ndarray | None,
    predictions: np.ndarray,
    labels: np.ndarray | None,
    arms: Sequence[str] | None = None,
) -> list[DayProfile]:
    """Return one DayProfile per UTC date of rows scored offline, to seed a baseline.

    `event_time_us` int64 [N], `matrix` float32 [N, F] (NaN = null) or None, `predictions` [N] in
    [0, 1], `labels` float [N] (NaN = unknown) or None, `arms` a name a row.
    """
    rows = len(predictions)
    truth = np.full(rows, np.nan) if labels is None else np.asarray(labels, np.float64)
    features = np.full((0, len(profile.columns)), np.nan, np.float32) if matrix is None else matrix
    names = np.full(rows, "", object) if arms is None else np.asarray(arms, object)
    scores, weights = predictions.astype(np.float64), np.ones(rows)
    ordinals = np.floor_divide(event_time_us, DAY_US)
    days = []
    for ordinal in np.unique(ordinals):
        of_day = ordinals == ordinal
        at = of_day if matrix is not None else slice(0, 0)
        day = utc_date(int(ordinal) * DAY_US)
        result = _profile_rows(day, profile, features[at], scores[at], weights[at])
        result.totals = totals(scores[of_day], truth[of_day], weights[of_day])
        result.prediction_histogram = _prediction_histogram(
            profile, scores[of_day], weights[of_day]
        )
        result.arms = _by_arm(names[of_day], scores[of_day], truth[of_day], weights[of_day])
        days.append(result)
    return days


def merge_days(days: Sequence[DayProfile]) -> DayProfile:
    """Return the days as one. `days` is not empty."""
    return reduce(DayProfile.__add__, days)


def encode_days(days: Sequence[DayProfile]) -> bytes:
    """Return `days` as bytes (msgpack; arrays as shape and little-endian float64)."""
    return _ENCODER.encode(list(days))


def decode_days(data: bytes) -> list[DayProfile]:
    """Return what `encode_days` wrote. Raises InvalidArgumentError for anything else."""
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError("not encoded day profiles", where="days") from error


def _profile_rows(
    day: date, profile: Profile, matrix: np.ndarray, predictions: np.ndarray, weights: np.ndarray
) -> DayProfile:
    """Return a DayProfile that holds the features of these rows, and no totals yet."""
    shape = profile.counts.shape
    histograms, by_bin = np.zeros(shape), np.zeros(shape)
    nulls = np.isnan(matrix)
    finite = np.isfinite(matrix)
    weighted = predictions * weights
    size = shape[1]
    for i, edges in enumerate(profile.edges):
        bins = np.searchsorted(edges, matrix[:, i].astype(np.float64), side="left")
        bins[nulls[:, i]] = size - 1
        histograms[i] = np.bincount(bins, weights, size)
        by_bin[i] = np.bincount(bins, weighted, size)
    values = np.where(finite, matrix, 0.0).astype(np.float64)
    return DayProfile(
        date=day,
        profile=profile.digest,
        totals=totals(np.zeros(0), np.zeros(0), np.zeros(0)),
        arms={},
        invalid=0,
        invalid_truth=0,
        feature_weight=float(weights.sum()),
        feature_weight_squares=float((weights**2).sum()),
        histograms=histograms,
        prediction_by_bin=by_bin,
        sums=weights @ values,
        finite=weights @ finite,
        prediction_histogram=np.zeros(len(profile.prediction_edges) + 1),
    )


def _prediction_histogram(
    profile: Profile, predictions: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    edges = profile.prediction_edges
    return np.bincount(np.searchsorted(edges, predictions, "left"), weights, len(edges) + 1)


def _by_arm(
    arms: np.ndarray, predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> dict[str, Totals]:
    groups = {name: arms == name for name in sorted(set(arms.tolist()))}
    return {name: totals(predictions[g], truth[g], weights[g]) for name, g in groups.items()}


def _answered(log: pa.Table) -> np.ndarray:
    """Return the rows that answered: status 0, and per prediction the last attempt.

    Shadow rows share their prediction's id and stay beside its answer, one for each arm.
    """
    ok = np.flatnonzero(_column(log, "status", 0) == 0)
    if not _column(log, "attempt", 0)[ok].any():
        return ok  # no retries: the common day
    best: dict[tuple[Any, ...], tuple[int, int]] = {}
    of_rows = log.take(ok).select(["prediction_id", "flags", "arm", "attempt"]).to_pylist()
    for row, values in zip(ok.tolist(), of_rows, strict=True):
        shadow = bool((values["flags"] or 0) & SHADOW)
        key = (values["prediction_id"], values["arm"] if shadow else None, shadow)
        best[key] = max(best.get(key, (-1, -1)), (values["attempt"] or 0, row))
    return np.sort(np.array([row for _, row in best.values()], np.int64))


def _column(log: pa.Table, name: str, default: object) -> np.ndarray:
    column: Any = log[name]
    values: np.ndarray = column.fill_null(default).to_numpy()
    return values


def _first_outputs(outputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 [rows] of each row's first output, and bool [rows] where it is in [0, 1]."""
    lists: Any = outputs.combine_chunks()
    lengths: Any = pc.list_value_length(lists)
    has_one = lengths.fill_null(0).to_numpy(zero_copy_only=False) > 0
    starts = lists.offsets.to_numpy()[:-1]
    values = np.full(len(lists), np.nan)
    values[has_one] = lists.values.to_numpy(zero_copy_only=False)[starts[has_one]]
    sane: np.ndarray = (values >= 0) & (values <= 1)
    clean: np.ndarray = np.where(sane, values, 0.0)
    return clean, sane


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    ratio: np.ndarray = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return ratio


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [list(value.shape), value.astype("<f8").tobytes()]
    raise NotImplementedError(type(value))


def _from_plain(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        shape, data = value
        return np.frombuffer(data, "<f8").reshape(shape)
    raise NotImplementedError(kind)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_plain)
_DECODER = msgspec.msgpack.Decoder(list[DayProfile], dec_hook=_from_plain)
