"""Histograms of durations: NumPy's is the oracle."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.execution.histogram import BOUNDS_NS, Histogram

DURATIONS = st.one_of(st.integers(0, 1 << 40), st.sampled_from(BOUNDS_NS))


@given(st.lists(st.tuples(DURATIONS, st.integers(1, 300)), max_size=50))
def test_as_numpy_counts(observed: list[tuple[int, int]]) -> None:
    histogram = Histogram()
    for duration_ns, times in observed:
        histogram.observe(duration_ns, times)
    durations, counts = ([each[place] for each in observed] for place in (0, 1))
    every = np.repeat(np.array(durations, np.int64), np.array(counts, np.int64))
    expected = [(bound / 1e9, int((every <= bound).sum())) for bound in BOUNDS_NS]
    assert list(histogram.cumulative()) == [*expected, (float("inf"), len(every))]
    assert histogram.total_ns == sum(duration * times for duration, times in observed)
