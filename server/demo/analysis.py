"""What the log, the truth and the offline rows say about the replay. Arrays in, findings out.

Every array here is in the spine's order: element i belongs to decision i.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.times import DAY_US, utc_date
from monitor.calibration import auc
from server.demo.findings import ArmResult, CalibrationBin, Consistency, DayPoint

SHADOW = 1
# A week with fewer flights of either outcome has an AUC that says nothing.
_WEEK_OUTCOMES_MIN = 20
_WEEK_ROWS_SHARE_MIN = 0.5
_CALIBRATION_BINS = 10
_DIFFERING_ROWS_MAX = 2_000


@dataclass(frozen=True)
class Logged:
    """The log's rows of the decisions. A decision without a row has output NaN and row None."""

    outputs: np.ndarray
    arms: np.ndarray
    versions: np.ndarray
    plans: np.ndarray
    propensities: np.ndarray
    rows: list[bytes | None]
    missing: int
    repeated: int
    foreign: int


def align(log: pa.Table, prediction_ids: np.ndarray) -> Logged:
    """Put the log (shadow rows left out) into the order of `prediction_ids` (V16).

    `missing` decisions have no row, `repeated` rows answer a decision again, `foreign` rows answer
    none.
    """
    flags = log.column("flags").to_numpy().astype(np.int64)
    log = log.filter(pa.array((flags & SHADOW) == 0))
    ids: Any = log.column("prediction_id").to_pylist()
    logged_ids = np.frombuffer(b"".join(ids), "S16")
    asked = prediction_ids.view("S16")
    order = np.argsort(asked, kind="stable")
    if len(asked):
        at = order[np.minimum(np.searchsorted(asked, logged_ids, sorter=order), len(asked) - 1)]
        known = asked[at] == logged_ids
    else:
        at, known = np.zeros(len(logged_ids), np.int64), np.zeros(len(logged_ids), bool)
    place = np.full(len(asked), -1, np.int64)
    place[at[known][::-1]] = np.flatnonzero(known)[::-1]
    has = place >= 0
    taken = log.take(place[has])
    packed: Any = taken.column("features").to_pylist()
    rows: list[bytes | None] = [None] * len(asked)
    for index, row in zip(np.flatnonzero(has).tolist(), packed, strict=True):
        rows[index] = row
    outputs: Any = taken.column("outputs").to_pylist()
    first_outputs = np.array([values[0] for values in outputs], np.float32)
    plans = taken.column("plan").to_numpy(zero_copy_only=False)
    return Logged(
        outputs=_spread(has, first_outputs, np.nan),
        arms=_spread(has, np.array(taken.column("arm").to_pylist(), object), ""),
        versions=_spread(has, np.array(taken.column("version").to_pylist(), object), ""),
        plans=_spread(has, np.nan_to_num(plans).astype(np.uint64), 0),
        propensities=_spread(has, taken.column("propensity").to_numpy(), np.nan),
        rows=rows,
        missing=int((~has).sum()),
        repeated=int(known.sum() - has.sum()),
        foreign=int((~known).sum()),
    )


def _spread(has: np.ndarray, values: np.ndarray, filler: object) -> np.ndarray:
    result = np.full(len(has), filler, values.dtype)
    result[has] = values
    return result


def equal_rows(logged: Sequence[bytes | None], offline: Sequence[bytes]) -> np.ndarray:
    """Return which logged packed rows equal the offline ones, byte for byte; bool [N]."""
    return np.array([a == b for a, b in zip(logged, offline, strict=True)], bool)


def consistency(
    logged: Sequence[bytes | None],
    offline: Sequence[bytes],
    columns: Sequence[str],
) -> Consistency:
    """Compare packed rows; where some differ, name the features (looking at 2,000 rows at most)."""
    equal = equal_rows(logged, offline)
    counts: dict[str, int] = {}
    different = [i for i in np.flatnonzero(~equal).tolist() if logged[i] is not None]
    for i in different[:_DIFFERING_ROWS_MAX]:
        for name in _differences(logged[i] or b"", offline[i], columns):
            counts[name] = counts.get(name, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Consistency(len(equal), len(columns), int(equal.sum()), ranked)


def _differences(a: bytes, b: bytes, columns: Sequence[str]) -> Iterator[str]:
    """Name the features that differ in two packed rows (header 8 bytes, nulls, 8 bytes each)."""
    features = len(columns)
    start = 8 + -(-features // 64) * 8
    if len(a) != len(b) or len(a) != start + 8 * features:
        yield "(the row's layout)"
        return
    if a[:8] != b[:8]:
        yield "(the row's schema)"
    nulls = np.unpackbits(
        np.frombuffer(a[8:start], np.uint8) ^ np.frombuffer(b[8:start], np.uint8),
        bitorder="little",
    )
    words = np.frombuffer(a[start:], np.int64) != np.frombuffer(b[start:], np.int64)
    for index in np.flatnonzero(words | (nulls[:features] > 0)).tolist():
        yield columns[index]


def arm_results(
    logged: Logged,
    truth: np.ndarray,
    equal: np.ndarray,
    offline_scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    times_us: np.ndarray,
    titles: Mapping[str, tuple[str, str]],
) -> list[ArmResult]:
    """Judge each version over the flights that it answered.

    `truth` is what was joined to the log (float64, NaN unknown), `labels` what the data set says;
    `titles` gives (title, role) by version, in the order to show.
    """
    results = []
    for version, (title, role) in titles.items():
        rows = logged.versions == version
        if not rows.any():
            continue
        known = rows & ~np.isnan(truth)
        scores, outcomes = logged.outputs[rows], truth[rows]
        results.append(
            ArmResult(
                arm=str(logged.arms[rows][0]),
                title=title,
                version=version,
                role=role,
                rows=int(rows.sum()),
                auc_online=_auc(truth[known], logged.outputs[known]),
                auc_offline=_auc(labels[rows].astype(np.float64), offline_scores[version][rows]),
                equal_rows=int(equal[rows].sum()),
                prediction_mean=float(scores.mean(dtype=np.float64)),
                late_share=float(np.nanmean(outcomes)),
                calibration=calibration(scores, outcomes),
                weekly_auc=weekly_auc(times_us[known], truth[known], logged.outputs[known]),
            )
        )
    return results


def _auc(outcomes: np.ndarray, scores: np.ndarray) -> float:
    found = auc(outcomes, scores)
    return float("nan") if found is None else found


def calibration(scores: np.ndarray, outcomes: np.ndarray) -> list[CalibrationBin]:
    """Return ten bins of equal count, by prediction; outcomes that are NaN are left out."""
    known = ~np.isnan(outcomes)
    scores, outcomes = scores[known].astype(np.float64), outcomes[known]
    order = np.argsort(scores, kind="stable")
    return [
        CalibrationBin(float(scores[part].mean()), float(outcomes[part].mean()), len(part))
        for part in np.array_split(order, min(_CALIBRATION_BINS, len(order)) or 1)
        if len(part)
    ]


def weekly_auc(
    times_us: np.ndarray, outcomes: np.ndarray, scores: np.ndarray
) -> list[tuple[date, float]]:
    """Return (first day, AUC) of each seven days since the first decision, thin ones left out."""
    if not len(times_us):
        return []
    first = int(times_us.min()) // DAY_US
    weeks = (times_us // DAY_US - first) // 7
    numbers, counts = np.unique(weeks, return_counts=True)
    # A replay ends within a week: one day's AUC is no point on a line of weeks.
    whole = numbers[counts >= _WEEK_ROWS_SHARE_MIN * np.median(counts)]
    found = []
    for week in whole.tolist():
        part = weeks == week
        late = int(outcomes[part].sum())
        if min(late, int(part.sum()) - late) >= _WEEK_OUTCOMES_MIN:
            day = utc_date(first * DAY_US) + timedelta(days=7 * week)
            found.append((day, _auc(outcomes[part], scores[part])))
    return found


def day_points(
    logged: Logged,
    truth: np.ndarray,
    times_us: np.ndarray,
    canary_version: str | None,
    planned: np.ndarray,
) -> list[DayPoint]:
    """Summarise each UTC day; `planned` is the canary's weight in force, NaN while it had none."""
    days = times_us // DAY_US
    points = []
    for day in np.unique(days).tolist():
        part = days == day
        known = part & ~np.isnan(truth)
        under_canary = part & ~np.isnan(planned)
        points.append(
            DayPoint(
                day=utc_date(day * DAY_US),
                rows=int(part.sum()),
                prediction_mean=float(np.nanmean(logged.outputs[part], dtype=np.float64)),
                late_share=float(truth[known].mean()) if known.any() else None,
                canary_rows=int((logged.versions[part] == canary_version).sum()),
                canary_planned=float(np.nansum(planned[part]) / part.sum())
                if under_canary.any()
                else None,
            )
        )
    return points


@dataclass(frozen=True)
class Share:
    """How often an arm answered under one plan, against how often it should."""

    title: str
    rows: int
    of: int
    weight: float

    @property
    def deviations(self) -> float:
        """The distance from the plan in standard deviations of the draw."""
        deviation = (self.of * self.weight * (1 - self.weight)) ** 0.5
        gap = self.rows - self.of * self.weight
        return gap / deviation if deviation else 0.0 if gap == 0 else float("inf")


def shares(
    logged: Logged, plans: Mapping[int, Mapping[str, float]], titles: Mapping[str, tuple[str, str]]
) -> list[Share]:
    """Return each arm's share under each plan: `plans` maps number → version → weight (sum 1)."""
    found = []
    for number, weights in plans.items():
        under = logged.plans == number
        total = int(under.sum())
        found += [
            Share(titles[version][0], int((logged.versions[under] == version).sum()), total, weight)
            for version, weight in weights.items()
            if total
        ]
    return found
