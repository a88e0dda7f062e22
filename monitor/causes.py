"""What moved: features ranked by how much of the prediction's move goes with theirs.

A moved feature is a lead, never a page: features are judged like the signals, at the level of days,
by the mean position on the reference's bins (which one wild value cannot move) and the null share.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import msgspec
import numpy as np

from monitor.daily import DayProfile, merge_days
from monitor.distance import PSI_EFFECT, psi
from monitor.drift import (
    BASE_DAYS,
    PREDICTION_CORRELATION,
    RECENT_DAYS,
    alarm_threshold,
    window_shift,
)
from monitor.profile import PREDICTION, Profile

# Drift tickets of all features of a model together in 90 quiet days.
_FALSE_TICKETS_PER_90_DAYS = 1.0
# Named as a cause only beyond this |t|: within it a feature is where it usually is.
_NAMED_STATISTIC = 2.0
_NAMED_MAX = 10


class MovedFeature(msgspec.Struct, frozen=True):
    """A feature in the last 7 days against the 28 before (means are None when all was null)."""

    feature: str
    baseline_mean: float | None
    recent_mean: float | None
    baseline_null_share: float
    recent_null_share: float
    psi: float
    statistic: float  # day-level t of the position or the null share, whichever moved more
    # The move of the mean prediction if only this feature's histogram had moved, each bin keeping
    # its mean prediction. Features overlap, so these do not add up.
    explains: float


class SliceFinding(msgspec.Struct, frozen=True):
    """One slice of the traffic in the last 7 days against the 28 before."""

    by: str
    value: str
    rows: int
    prediction_mean: float | None
    baseline_prediction_mean: float | None
    calibration_error: float | None
    baseline_calibration_error: float | None


class FeatureDistance(msgspec.Struct, frozen=True):
    """Skew of one feature against the reference profile; flagged = beyond chance and large."""

    feature: str
    psi: float
    critical: float
    flagged: bool


def skew(profile: Profile, recent: DayProfile) -> list[FeatureDistance]:
    """Return the distance of serving from training for the prediction and every feature.

    Sorted by PSI, the largest first. Empty without rows that have features.
    """
    if recent.feature_rows <= 0:
        return []
    found = psi(
        profile.counts, recent.histograms, profile.bins, float(profile.rows), recent.feature_rows
    )
    # The prediction is never null: its null bin is empty on both sides.
    reference, current = (
        np.append(counts, 0.0)[None, :]
        for counts in (profile.prediction_counts, recent.prediction_histogram)
    )
    bins = np.array([len(profile.prediction_counts)])
    of_prediction = psi(reference, current, bins, float(profile.rows), float(recent.rows))
    names = [*profile.columns, PREDICTION]
    values = np.concatenate([found.psi, of_prediction.psi])
    critical = np.concatenate([found.critical, of_prediction.critical])
    flagged = np.concatenate([found.flagged, of_prediction.flagged])
    order = np.argsort(-values, kind="stable")
    return [
        FeatureDistance(names[i], float(values[i]), float(critical[i]), bool(flagged[i]))
        for i in order
    ]


def split_windows(
    days: Sequence[DayProfile], last: date
) -> tuple[list[DayProfile], list[DayProfile]]:
    """Return the recent 7 and the base 28 calendar days at `last`, of those at hand."""
    recent, base = [], []
    for day in days:
        age = (last - day.date).days
        if 0 <= age < RECENT_DAYS:
            recent.append(day)
        elif RECENT_DAYS <= age < RECENT_DAYS + BASE_DAYS:
            base.append(day)
    return recent, base


def moved_features(profile: Profile, days: Sequence[DayProfile], last: date) -> list[MovedFeature]:
    """Return every feature's move at the day `last`, in the profile's order.

    Empty when too few days with features are at hand.
    """
    recent, base = split_windows([day for day in days if day.feature_weight > 0], last)
    used = [*base, *recent]
    values = np.array([np.concatenate([d.rank_means, d.null_shares]) for d in used])
    ordinals = np.array([d.date.toordinal() for d in used], np.int64)
    shift = window_shift(values, ordinals, last.toordinal()) if used else None
    if shift is None or not profile.columns:
        return []
    before, after = merge_days(base), merge_days(recent)
    distances = psi(
        before.histograms, after.histograms, profile.bins, before.feature_rows, after.feature_rows
    )
    by_position, by_nulls = np.split(np.nan_to_num(shift.statistic, posinf=99.0, neginf=-99.0), 2)
    statistic = np.where(np.abs(by_position) >= np.abs(by_nulls), by_position, by_nulls)
    explains = _explained_move(before, after)
    columns = zip(
        profile.columns, before.means, after.means, before.null_shares, after.null_shares,
        distances.psi, statistic, explains, strict=True,
    )  # fmt: skip
    return [
        MovedFeature(name, _or_none(m0), _or_none(m1), *(float(v) for v in rest))
        for name, m0, m1, *rest in columns
    ]


def ranked_causes(moves: Sequence[MovedFeature], change: float | None) -> list[MovedFeature]:
    """Return the features to name in an incident, the likeliest lead first.

    `change` is the move of the mean prediction, or None when that is not what led: then by PSI.
    """
    beyond = [move for move in moves if abs(move.statistic) >= _NAMED_STATISTIC]
    if change is None:
        key = sorted(beyond, key=lambda move: -move.psi)
    else:
        sign = 1.0 if change >= 0 else -1.0
        key = sorted(beyond, key=lambda move: -move.explains * sign)
    return key[:_NAMED_MAX]


def drift_tickets(moves: Sequence[MovedFeature]) -> list[MovedFeature]:
    """Return the features whose drift alone deserves a ticket, the largest PSI first."""
    if not moves:
        return []
    # Two series a feature (position and nulls) share the tickets evenly.
    rate = _FALSE_TICKETS_PER_90_DAYS / (2 * len(moves))
    threshold = alarm_threshold(rate, PREDICTION_CORRELATION)
    found = [m for m in moves if abs(m.statistic) >= threshold and m.psi >= PSI_EFFECT]
    return sorted(found, key=lambda move: -move.psi)


def slices_by_arm(days: Sequence[DayProfile], last: date) -> list[SliceFinding]:
    """Return what each arm shows in the recent window; a single unnamed arm is no slice."""
    recent, base = split_windows(days, last)
    if not recent or not base:
        return []
    after, before = merge_days(recent).arms, merge_days(base).arms
    if set(after) <= {""}:
        return []
    findings = []
    for arm, now in after.items():
        then = before.get(arm)
        findings.append(
            SliceFinding(
                by="arm",
                value=arm,
                rows=now.rows,
                prediction_mean=now.prediction_mean,
                baseline_prediction_mean=then.prediction_mean if then else None,
                calibration_error=now.calibration_error,
                baseline_calibration_error=then.calibration_error if then else None,
            )
        )
    return findings


def _explained_move(before: DayProfile, after: DayProfile) -> np.ndarray:
    """Return float64 [F]: Σ over bins of (share after − share before) · mean prediction before."""
    counts = before.histograms
    means = np.divide(before.prediction_by_bin, counts, out=np.zeros_like(counts), where=counts > 0)
    new = np.divide(
        after.prediction_by_bin, after.histograms, out=np.zeros_like(counts),
        where=after.histograms > 0,
    )  # fmt: skip
    means = np.where(counts > 0, means, new)  # a bin that was empty: as it is now
    shares = after.histograms / after.feature_weight - counts / before.feature_weight
    explained: np.ndarray = (shares * means).sum(axis=1)
    return explained


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
