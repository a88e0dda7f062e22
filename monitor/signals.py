"""The two things that may page: the prediction's mean and its calibration, day by day.

Both are put on a scale where quiet days spread evenly and nearly normally: the log-odds of the
day's mean prediction, and the day's observed minus predicted share in units of √(p̄(1 − p̄)).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import msgspec
import numpy as np

from headrace.errors import InvalidArgumentError
from monitor.daily import DayProfile
from monitor.drift import (
    BASE_DAYS,
    CALIBRATION_CORRELATION,
    PREDICTION_CORRELATION,
    RECENT_DAYS,
    alarm_threshold,
    window_shift,
)

PREDICTION_MEAN = "prediction_mean"
CALIBRATION = "calibration"

# Smaller moves do not matter, however certain: log-odds (about a fifth more or fewer), and observed
# minus predicted in units of √(p(1−p)) (2 points at p = 0.2).
_EFFECT_MIN = {PREDICTION_MEAN: 0.2, CALIBRATION: 0.05}
_CORRELATION = {
    PREDICTION_MEAN: PREDICTION_CORRELATION,
    CALIBRATION: CALIBRATION_CORRELATION,
}

# A day with fewer rows says more about sampling than about the world: in all, and as a share of the
# median day at hand (the last hours of a replay end on the next UTC date).
_DAY_ROWS_MIN = 30
_DAY_SHARE_MIN = 0.1
# A day whose truth is mostly missing would show the truths that come fast, not the day's.
_JOINED_SHARE_MIN = 0.8
_ODDS_CLIP = 1e-6


class Budget(msgspec.Struct, frozen=True):
    """How many false incidents a model may raise: the setting that the thresholds follow from."""

    false_incidents_per_90_days: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.false_incidents_per_90_days < float("inf"):
            raise InvalidArgumentError(
                "alarm budget out of range",
                where="false_incidents_per_90_days",
                expected="a number above 0",
                got=self.false_incidents_per_90_days,
            )

    def threshold(self, signal: str) -> float:
        """Return the |t| at which `signal` opens an incident; signals share the budget evenly."""
        share = self.false_incidents_per_90_days / len(_CORRELATION)
        return alarm_threshold(share, _CORRELATION[signal])


class Signal(msgspec.Struct, frozen=True):
    """One signal on one day: the last 7 days against the 28 before.

    `value`, `baseline` and `change` are in the unit people read (a mean of daily shares);
    `statistic`, `threshold`, `effect` and `effect_min` are what is decided on.
    """

    name: str
    day: date
    value: float
    baseline: float
    change: float
    statistic: float
    threshold: float
    effect: float
    effect_min: float

    @property
    def strength(self) -> float:
        """1 or more when beyond chance *and* large enough to matter."""
        return min(abs(self.statistic) / self.threshold, abs(self.effect) / self.effect_min)

    @property
    def over(self) -> bool:
        """Whether this signal pages."""
        return self.strength >= 1


class _Series(NamedTuple):
    ordinals: np.ndarray  # int64 [D]
    decided: np.ndarray  # float64 [D], the scale that is decided on
    shown: np.ndarray  # float64 [D], the scale that people read


def signals(
    days: Sequence[DayProfile], last: date, truth_until: date, budget: Budget
) -> list[Signal]:
    """Return the signals at the day `last`; one that has too few days is left out.

    `days` are ascending. Truth later than the day `truth_until` is not mature and not looked at.
    """
    near = [day for day in days if 0 <= (last - day.date).days < RECENT_DAYS + BASE_DAYS]
    if not near:
        return []
    rows_min = max(_DAY_ROWS_MIN, _DAY_SHARE_MIN * float(np.median([day.rows for day in near])))
    found = [_signal(PREDICTION_MEAN, _prediction_series(near, rows_min), last, budget)]
    if last <= truth_until:
        found.append(_signal(CALIBRATION, _calibration_series(near, rows_min), last, budget))
    return [signal for signal in found if signal is not None]


def _signal(name: str, series: _Series, last: date, budget: Budget) -> Signal | None:
    values = np.stack([series.decided, series.shown], axis=1)
    shift = window_shift(values, series.ordinals, last.toordinal())
    if shift is None:
        return None
    return Signal(
        name=name,
        day=last,
        value=float(shift.recent[1]),
        baseline=float(shift.baseline[1]),
        change=float(shift.change[1]),
        statistic=float(shift.statistic[0]),
        threshold=budget.threshold(name),
        effect=float(shift.change[0]),
        effect_min=_EFFECT_MIN[name],
    )


def _prediction_series(days: Sequence[DayProfile], rows_min: float) -> _Series:
    used = [day for day in days if day.rows >= rows_min]
    means = np.array([day.totals.prediction_mean for day in used], np.float64)
    odds = np.clip(means, _ODDS_CLIP, 1 - _ODDS_CLIP)
    return _Series(_ordinals(used), np.log(odds / (1 - odds)), means)


def _calibration_series(days: Sequence[DayProfile], rows_min: float) -> _Series:
    used = [day for day in days if day.totals.joined >= max(rows_min, _JOINED_SHARE_MIN * day.rows)]
    means = np.array([day.totals.joined_prediction_mean for day in used], np.float64)
    errors = np.array([day.totals.calibration_error for day in used], np.float64)
    p = np.clip(means, _ODDS_CLIP, 1 - _ODDS_CLIP)
    return _Series(_ordinals(used), errors / np.sqrt(p * (1 - p)), errors)


def _ordinals(days: Sequence[DayProfile]) -> np.ndarray:
    return np.array([day.date.toordinal() for day in days], np.int64)
