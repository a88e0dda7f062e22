"""How far two histograms on the same fixed bins are apart: PSI, with the noise it has by itself.

PSI = Σ (q − p) ln(q / p). Without any drift it is not 0 but about (1/n + 1/m)·χ²(B−1) (Yurdakul
2018), so a fixed 0.1 fires on noise at small n and never at large. Both are reported: the critical
value says whether it can be noise, the effect threshold whether it matters; only both flag.
The critical value takes rows for independent. It suits skew against training data; drift between
windows of clustered days is judged at the level of days (`monitor.drift`).
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# The convention of credit scoring for a major change. It is an effect size, not a test.
PSI_EFFECT = 0.25
# One false «cannot be noise» in a thousand features, before the effect threshold.
CONFIDENCE = 0.999
# Added to every bin, so that an empty bin gives a large value instead of infinity.
_PSEUDO_COUNT = 0.5


class Distances(NamedTuple):
    """PSI per feature, float64 [F], and the value it stays below by chance."""

    psi: np.ndarray
    critical: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """Bool [F]: beyond chance, and large enough to matter."""
        return (self.psi >= self.critical) & (self.psi >= PSI_EFFECT)


def psi(
    reference: np.ndarray,
    current: np.ndarray,
    bins: np.ndarray,
    rows_reference: float,
    rows_current: float,
) -> Distances:
    """Return the PSI of `current` against `reference`, a histogram a row: float64 [F, B + 1].

    The last column counts nulls, a bin like any other; `bins` [F] says how many of the other B
    columns are the feature's own. `rows_…` are the (effective) rows behind each histogram. With no
    rows on a side everything is NaN and nothing is flagged.
    """
    own = np.arange(reference.shape[1])[None, :] < bins[:, None]
    own[:, -1] = True
    p, q = (_shares(counts, own) for counts in (reference, current))
    terms = np.where(own, (q - p) * np.log(q / p), 0.0)
    if rows_reference <= 0 or rows_current <= 0:
        nothing = np.full(len(reference), np.nan)
        return Distances(nothing, nothing)
    # A bin that is empty on both sides adds nothing, not even noise.
    freedom = ((reference + current > 0) & own).sum(axis=1) - 1
    scale = 1 / rows_reference + 1 / rows_current
    critical = scale * np.array([chi_square_quantile(CONFIDENCE, int(df)) for df in freedom])
    return Distances(terms.sum(axis=1), critical)


def _shares(counts: np.ndarray, own: np.ndarray) -> np.ndarray:
    smoothed = np.where(own, counts + _PSEUDO_COUNT, 1.0)
    total = np.where(own, smoothed, 0.0).sum(axis=1, keepdims=True)
    shares: np.ndarray = np.where(own, smoothed / total, 1.0)
    return shares


@functools.cache
def chi_square_quantile(probability: float, freedom: int) -> float:
    """Return x with P(χ²(freedom) ≤ x) = probability, 0 for freedom 0; relative error < 1e-9.

    Bisection on the series of the regularised lower incomplete gamma function (Abramowitz & Stegun
    6.5.29): scipy is not part of the base install.
    """
    if freedom <= 0:
        return 0.0
    z = NormalDist().inv_cdf(probability)
    high = 2.0 * (freedom + z * z + 10)
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        if _lower_gamma(freedom / 2, middle / 2) < probability:
            low = middle
        else:
            high = middle
    return high


def _lower_gamma(a: float, x: float) -> float:
    if x <= 0:
        return 0.0
    term = total = 1 / a
    n = a
    while term > total * 1e-17:
        n += 1
        term *= x / n
        total += term
    return total * math.exp(a * math.log(x) - x - math.lgamma(a))
