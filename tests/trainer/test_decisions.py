"""From an output to a class, by every rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.errors import FailedPreconditionError
from trainer.decisions import check_output, decide
from trainer.manifest import Decision

NAN = np.nan
YES = Decision(["no", "yes"], threshold=0.5)
BEST = Decision(["a", "b", "c"], rule="argmax")
BANDS = Decision(["pass", "look", "hold"], rule="bands", thresholds=[0.3, 0.7])
SURE = Decision(["a", "b"], rule="confident", thresholds=[0.6, 0.9], otherwise="?")


@pytest.mark.parametrize(
    ("decision", "output", "found"),
    [
        (YES, [[0.2], [0.5], [NAN], [0.9]], ["no", "yes", "", "yes"]),
        (YES, [[0.8, 0.2], [0.4, 0.6]], ["no", "yes"]),
        (BEST, [[0.1, 0.7, 0.2], [NAN, 1, 0], [0.4, 0.4, 0.2]], ["b", "", "a"]),
        (BANDS, [[0.0], [0.299], [0.3], [0.7], [1.0], [NAN]],
         ["pass", "pass", "look", "hold", "hold", ""]),
        (BANDS, [[0.5, 0.5]], ["look"]),
        (SURE, [[0.59, 0.41], [0.61, 0.39], [0.11, 0.89], [0.1, 0.9], [NAN, 1]],
         ["?", "a", "?", "b", ""]),
        (YES, np.empty((0, 1)), []),
        (SURE, np.empty((0, 2)), []),
    ],
)  # fmt: skip
def test_decisions(decision, output, found):
    assert decide(decision, np.asarray(output, np.float64)) == found


@given(arrays(np.float32, st.tuples(st.integers(0, 20), st.just(3)), elements=st.floats(width=32)))
def test_confidence_of_nothing_is_argmax(output):
    sure = Decision(["a", "b", "c"], rule="confident", thresholds=[-1e308] * 3, otherwise="?")
    finite = np.where(np.isinf(output), np.float32(0), output)
    assert decide(sure, finite) == decide(BEST, finite)


@given(arrays(np.float32, st.tuples(st.integers(0, 20), st.just(1)), elements=st.floats(width=32)))
def test_one_bound_is_a_threshold(output):
    bands = Decision(["no", "yes"], rule="bands", thresholds=[0.5])
    assert decide(bands, output) == decide(YES, output)


@pytest.mark.parametrize(
    ("decision", "shape", "dtype"),
    [(YES, (4, 3), "f4"), (BEST, (4, 2), "f4"), (BANDS, (4, 3), "f4"), (SURE, (4,), "f4"),
     (YES, (4, 1), "U3"), (YES, (), "f4"), (BEST, (4, 3, 2), "f4"), (BANDS, (0, 0), "f4")],
)  # fmt: skip
def test_an_output_that_tells_no_such_classes_is_refused(decision, shape, dtype):
    with pytest.raises(FailedPreconditionError, match="does not fit"):
        check_output(decision, np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("decision", "shape"),
    [(YES, (4,)), (YES, (4, 1)), (YES, (4, 2)), (BEST, (0, 3)), (BANDS, (1, 1, 1)), (SURE, (1, 2))],
)
def test_one_that_does_is_not(decision, shape):
    check_output(decision, np.zeros(shape, np.float32))
