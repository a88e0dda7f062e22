"""Measures the rate of false incidents of the whole rule when nothing drifts.

`python -m tests.monitor.alarm_rate` prints the table that monitor/drift.py holds.
"""

from __future__ import annotations

import sys

import numpy as np

from monitor.drift import BASE_DAYS, RECENT_DAYS, window_shift
from monitor.incidents import Episode

QUARTER_DAYS = 90
LEAD_IN_DAYS = BASE_DAYS + RECENT_DAYS - 1
THRESHOLDS = np.arange(2.0, 7.01, 0.5)


def quiet_days(seed: int, quarters: int, correlation: float) -> np.ndarray:
    """Stationary AR(1) days, float64 [lead-in + 90, quarters], of unit variance."""
    noise = np.random.default_rng(seed).standard_normal((LEAD_IN_DAYS + QUARTER_DAYS, quarters))
    days = noise.copy()
    for day in range(1, len(days)):
        days[day] = correlation * days[day - 1] + np.sqrt(1 - correlation**2) * noise[day]
    return days


def statistics(days: np.ndarray) -> np.ndarray:
    """The shift's |t| on each day of the quarter: float64 [90, quarters]."""
    ordinals = np.arange(len(days))
    shifts = [window_shift(days, ordinals, last) for last in range(LEAD_IN_DAYS, len(days))]
    return np.array([np.abs(shift.statistic) for shift in shifts if shift is not None])


def incidents(strengths: np.ndarray) -> np.ndarray:
    """Number of incidents opened in each quarter, for |t| / threshold of [90, quarters]."""
    counts = np.zeros(strengths.shape[1], int)
    for quarter in np.flatnonzero((strengths >= 1).any(axis=0)):
        episode = Episode()
        counts[quarter] = sum(episode.step(s) == "opened" for s in strengths[:, quarter])
    return counts


def main(quarters: int = 40_000) -> None:
    for correlation in (0.3, 0.5):
        size = [statistics(quiet_days(s, 1000, correlation)) for s in range(quarters // 1000)]
        found = np.concatenate(size, axis=1)
        rates = [incidents(found / threshold).mean() for threshold in THRESHOLDS]
        sys.stdout.write(f"{correlation}: {[round(float(r), 6) for r in rates]}\n")


if __name__ == "__main__":
    main()
