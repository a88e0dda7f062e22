"""Drift of daily values: the last 7 days against the 28 days before them.

The unit is the day. Rows of one day share its weather, so 6,000 rows of a week are worth seven
observations, and a test on rows would page for every storm. For a daily value x (the log-odds of
the day's mean prediction; the day's standardised calibration error) the statistic is

    t = (mean of recent − mean of base) / (s_base · √v(ρ)),

where s_base is the standard deviation of the base days and v(ρ) the variance of that difference of
means for days of unit variance whose correlation decays as ρ^lag (AR(1); positions in the calendar,
so gaps and the seam between the windows count right). ρ is the base's lag-1 correlation, corrected
for its small-sample bias (1 + 3r)/n and shrunk halfway to 0.3: 28 days say little about it.

What t must reach is *derived from the alarm budget*: `alarm_threshold` inverts the rate of false
incidents of the whole rule (opening, hysteresis and all) under a null of AR(1) days of a stated
correlation, measured by simulation (tests/monitor/alarm_rate.py makes the table anew). The null's
correlation is a little above what quiet days show: 0.5 for the prediction mean (measured 0.49: the
weather persists), 0.3 for the calibration error (measured 0.09: errors of a model that sees the
weather hardly persist). Student's heavier tails for small samples are in the simulation.

Chosen by measurement. On scored days of September to December 2013 (LightGBM with history), each
method at its own threshold for 0.25 false incidents per 90 days and signal: the largest value in
October and November (quiet) and up to 14 December (drift), as a share of that threshold, and the
first day over it:

    method                         prediction mean         calibration error
    7 days against 28 (this one)   0.53 → 1.20, 10 Dec     0.76 → 1.30, 10 Dec
    CUSUM, k = ½, trailing base    0.39 → 1.15, 14 Dec     0.50 → 1.23, 10 Dec
    CUSUM, k = 1, trailing base    0.30 → 1.35, 11 Dec     0.45 → 1.43, 10 Dec
    EWMA, λ = 0.2, trailing base   0.62 → 1.16, 10 Dec     0.65 → 1.31, 10 Dec

CUSUM with k = 1 separates best, but its threshold leans on the tails: with Student(5) days instead
of normal ones it must rise by 15 to 40 % to keep the budget (then 1.17 and 1.15), the window's by
8 to 9 % (1.11 and 1.20). The window is as quick, and says *what* to compare when people ask what
moved, so it is the one used. At that threshold a lasting move of 2 / 3 / 4 standard deviations of
a day is found within 7 days in 48 / 87 / 99 % of cases (prediction mean) and 69 / 97 / 100 %
(calibration error). Resampling the quiet days in blocks of 4 to 10 days gives 0.05 to
0.10 incidents per 90 days and signal, within the 0.25. Detectors with a guaranteed run length
under any dependence (e-detectors: Shin, Ramdas & Rinaldo 2023) need a known mean under the null,
which a trailing baseline does not give.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RECENT_DAYS = 7
BASE_DAYS = 28
# With fewer days than this the statistic is not computed: 3 in 4 of what it was calibrated on.
RECENT_DAYS_MIN = 6
BASE_DAYS_MIN = 21

# False incidents of one signal in 90 quiet days, by the correlation of its days, for each threshold
# of |t|; 40,000 simulated quarters each (tests/monitor/alarm_rate.py).
_THRESHOLDS = np.arange(2.0, 7.01, 0.5)
_FALSE_INCIDENTS = {
    0.3: (1.68, 0.896, 0.396, 0.162, 0.0619, 0.0231, 0.0088, 0.0031, 0.0011, 0.0003, 0.0001),
    0.5: (1.99, 1.31, 0.719, 0.359, 0.173, 0.0808, 0.0377, 0.0172, 0.0079, 0.0035, 0.0017),
}
PREDICTION_CORRELATION = 0.5
CALIBRATION_CORRELATION = 0.3

_PRIOR_CORRELATION = 0.3
_CORRELATION_MAX = 0.7
_CORRELATIONS = np.linspace(0.0, _CORRELATION_MAX, 29)


def alarm_threshold(false_incidents_per_90_days: float, correlation: float) -> float:
    """Return the |t| at which one signal raises that many false incidents in 90 quiet days.

    `correlation` is PREDICTION_CORRELATION or CALIBRATION_CORRELATION. The logarithm of the rate is
    interpolated between the table's thresholds, and held to the range of the table (2 to 7).
    """
    log_rates: np.ndarray = np.log(_FALSE_INCIDENTS[correlation])
    wanted = np.log(false_incidents_per_90_days)
    return float(np.interp(-wanted, -log_rates, _THRESHOLDS))


class Shift(NamedTuple):
    """The move of S daily series between base and recent days: float64 [S] each."""

    recent: np.ndarray  # mean of the recent days
    baseline: np.ndarray  # mean of the base days
    statistic: np.ndarray  # t; ±inf when a base without any spread is left

    @property
    def change(self) -> np.ndarray:
        """Recent minus baseline."""
        change: np.ndarray = self.recent - self.baseline
        return change


def window_shift(values: np.ndarray, ordinals: np.ndarray, last: int) -> Shift | None:
    """Return the shift at the day `last`, or None when too few days are there.

    `values` is float64 [D, S], a row per day at hand, `ordinals` int64 [D] ascending day numbers.
    Recent are the 7 calendar days up to `last`, base the 28 before those. NaN in a series' base or
    recent days makes its statistic NaN.
    """
    age = last - ordinals
    recent = (age >= 0) & (age < RECENT_DAYS)
    base = (age >= RECENT_DAYS) & (age < RECENT_DAYS + BASE_DAYS)
    if recent.sum() < RECENT_DAYS_MIN or base.sum() < BASE_DAYS_MIN:
        return None
    base_values, base_days = values[base], ordinals[base]
    baseline = base_values.mean(axis=0)
    centred = base_values - baseline
    squares = (centred**2).sum(axis=0)
    # Fewer base days make their spread less certain; this factor (1.15 at 21 days)
    # holds the rate of false incidents there (tests/monitor/test_drift.py).
    variance = squares / (len(centred) - 1) * np.sqrt(BASE_DAYS / len(centred))
    inflation = np.interp(
        _correlation(centred, squares, base_days),
        _CORRELATIONS,
        _difference_variances(base_days, ordinals[recent]),
    )
    recent_mean = values[recent].mean(axis=0)
    change = recent_mean - baseline
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(change == 0, 0.0, change / np.sqrt(variance * inflation))
    return Shift(recent_mean, baseline, statistic)


def _correlation(centred: np.ndarray, squares: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Return the shrunken lag-1 correlation of each series, over pairs of consecutive days."""
    size = len(days)
    follows = np.diff(days) == 1
    products = (centred[1:] * centred[:-1])[follows].sum(axis=0)
    raw = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    corrected = raw + (1 + 3 * raw) / size
    shrunk = (size * corrected + BASE_DAYS * _PRIOR_CORRELATION) / (size + BASE_DAYS)
    clipped: np.ndarray = np.clip(shrunk, 0.0, _CORRELATION_MAX)
    return clipped


def _difference_variances(base: np.ndarray, recent: np.ndarray) -> np.ndarray:
    """Return v(ρ) on the grid of correlations: the variance of mean(recent) − mean(base)."""
    days = np.concatenate([base, recent])
    weights = np.concatenate(
        [np.full(len(base), -1 / len(base)), np.full(len(recent), 1 / len(recent))]
    )
    lags = np.abs(days[:, None] - days[None, :])
    pairs = np.bincount(lags.ravel(), (weights[:, None] * weights[None, :]).ravel())
    powers = _CORRELATIONS[:, None] ** np.arange(len(pairs))[None, :]
    variances: np.ndarray = powers @ pairs
    return variances
