from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.times import DAY_US
from monitor import (
    SHADOW,
    DayProfile,
    build_profile,
    day_profile,
    decode_days,
    encode_days,
    merge_days,
    profile_from_table,
    score_days,
)
from tests.monitor.builders import (
    DAY_ONE,
    DAY_ONE_US,
    World,
    decode,
    make_ids,
    make_log,
    make_profile,
)

PROFILE = make_profile()


def as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def equal(first: DayProfile, second: DayProfile) -> bool:
    return encode_days([first]) == encode_days([second])


def scored(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    times, matrix, predictions, labels = World(seed, rows).day(0)
    matrix[: rows // 7, 1] = np.nan
    labels[: rows // 5] = np.nan
    return times, matrix, predictions.astype(np.float32), labels


def test_the_log_and_the_matrix_give_the_same_day() -> None:
    times, matrix, predictions, labels = scored()
    log = make_log(
        times,
        features=[row.tobytes() for row in matrix],
        outputs=[[score, 9.0] for score in predictions.tolist()],
    )
    from_log = day_profile(DAY_ONE, as_table(log), labels, PROFILE, decode)
    (from_matrix,) = score_days(PROFILE, times, matrix, predictions, labels, ["a"] * len(times))
    assert equal(from_log, from_matrix)


def test_a_day_holds_what_numpy_and_scikit_learn_say() -> None:
    times, matrix, predictions, labels = scored()
    (day,) = score_days(PROFILE, times, matrix, predictions, labels)
    known = ~np.isnan(labels)
    totals = day.totals
    assert (day.rows, totals.joined) == (300, known.sum())
    assert totals.prediction_mean == pytest.approx(predictions.astype(float).mean())
    assert totals.observed_share == pytest.approx(labels[known].mean())
    error = (labels - predictions)[known].mean()
    assert totals.calibration_error == pytest.approx(error)
    expected_auc = sklearn.metrics.roc_auc_score(labels[known], predictions[known])
    assert totals.auc == pytest.approx(expected_auc)
    expected_loss = sklearn.metrics.log_loss(labels[known], predictions[known].astype(float))
    assert totals.log_loss == pytest.approx(expected_loss)
    np.testing.assert_allclose(day.means, np.nanmean(matrix.astype(float), axis=0))
    np.testing.assert_allclose(day.null_shares, np.isnan(matrix).mean(axis=0))
    for i, edges in enumerate(PROFILE.edges):
        column = matrix[:, i].astype(float)
        finite = column[~np.isnan(column)]
        expected = np.diff([0, *(np.count_nonzero(finite <= edge) for edge in edges), len(finite)])
        np.testing.assert_array_equal(day.histograms[i, : len(edges) + 1], expected)
    np.testing.assert_allclose(day.prediction_by_bin.sum(axis=1), predictions.sum(), rtol=1e-5)
    assert sum(b.rows for b in totals.calibration) == known.sum()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=30, max_size=60), st.integers(0, 5))
def test_merged_parts_are_the_whole(parts: list[int], seed: int) -> None:
    rows = len(parts)
    times, matrix, predictions, labels = scored(rows, seed)
    part = np.array(parts)
    arms = np.where(part % 2 == 0, "a", "b")
    pieces = [
        score_days(PROFILE, times[m], matrix[m], predictions[m], labels[m], arms[m].tolist())[0]
        for m in (part == number for number in sorted(set(parts)))
    ]
    merged = merge_days(pieces)
    (whole,) = score_days(PROFILE, times, matrix, predictions, labels, arms.tolist())
    for name in ("histograms", "prediction_by_bin", "sums", "finite", "prediction_histogram"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name))
    assert set(merged.arms) == set(whole.arms)
    for mine, theirs in [(merged.totals, whole.totals), *((merged.arms[a], whole.arms[a]) for a in whole.arms)]:  # fmt: skip # noqa: E501
        assert (mine.rows, mine.joined) == (theirs.rows, theirs.joined)
        assert mine.prediction_sum == pytest.approx(theirs.prediction_sum)
        assert mine.log_loss_sum == pytest.approx(theirs.log_loss_sum)
        np.testing.assert_allclose(mine.scores, theirs.scores)
        if len(pieces) > 1 and mine.exact_auc is None and theirs.auc is not None:
            joined = theirs.scores[:, 1]
            positives = theirs.scores[:, 3]
            shared = (positives * (joined - positives)).sum()
            pairs = positives.sum() * (joined - positives).sum()
            assert mine.auc == pytest.approx(theirs.auc, abs=0.5 * shared / pairs + 1e-9)


def test_days_of_other_bins_do_not_merge() -> None:
    times, matrix, predictions, labels = scored()
    (day,) = score_days(PROFILE, times, matrix, predictions, labels)
    (other,) = score_days(make_profile(9), times, matrix, predictions, labels)
    with pytest.raises(InvalidArgumentError, match="do not merge"):
        merge_days([day, other])


def test_days_survive_their_encoding() -> None:
    times, matrix, predictions, labels = scored()
    days = score_days(PROFILE, times + np.arange(300) * DAY_US // 100, matrix, predictions, labels)
    assert [day.date for day in days] == [DAY_ONE + timedelta(days=n) for n in range(len(days))]
    assert len(days) > 3
    again = decode_days(encode_days(days))
    assert all(equal(a, b) for a, b in zip(days, again, strict=True))
    assert equal(merge_days(again), merge_days(days))
    with pytest.raises(InvalidArgumentError, match="not encoded"):
        decode_days(b"\x93nonsense")


def test_seeds_may_come_without_features_or_truth() -> None:
    times, _, predictions, _ = scored()
    (day,) = score_days(PROFILE, times, None, predictions, None)
    assert (day.rows, day.totals.joined, day.feature_rows) == (300, 0, 0.0)
    assert day.totals.observed_share is None
    assert day.totals.calibration_error is None
    assert day.totals.log_loss is None
    assert day.totals.auc is None
    assert np.isnan(day.means).all()
    assert np.isnan(day.null_shares).all()


def test_only_live_answers_count_and_each_once() -> None:
    times = DAY_ONE_US + np.arange(7)
    ids = make_ids(times)
    ids[2] = ids[1]  # row 2 retries row 1
    ids[4] = ids[3]  # row 4 is the shadow of row 3
    log = make_log(
        times,
        prediction_id=ids,
        attempt=[0, 0, 1, 0, 0, 0, 0],
        outputs=[[0.1], [0.2], [0.3], [0.4], [0.9], None, [1.5]],
        flags=[0, 0, 0, 0, SHADOW, 0, 0],
        arm=["a", "a", "a", "b", "c", "a", None],
        status=[0, 0, 0, 0, 0, 14, 0],
    )
    labels = np.array([1.0, 0.0, 0.0, 7.0, 1.0, 1.0, 1.0])
    day = day_profile(DAY_ONE, as_table(log), labels, PROFILE, decode)
    assert day.rows == 3  # 0.1, 0.3 (the retry), 0.4; not the shadow, the failure, the 1.5
    assert day.totals.prediction_mean == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    assert (day.invalid, day.invalid_truth) == (1, 1)
    assert day.totals.joined == 2
    assert {arm: totals.rows for arm, totals in day.arms.items()} == {"a": 2, "b": 1, "c": 1}


def test_rows_logged_by_sampling_weigh_more() -> None:
    times = DAY_ONE_US + np.arange(100)
    log = make_log(
        times,
        outputs=[[0.1]] * 80 + [[0.5]] * 20,
        sampling_probability=np.array([1.0] * 80 + [0.25] * 20, np.float32),
    )
    day = day_profile(DAY_ONE, as_table(log), np.full(100, np.nan), PROFILE, decode)
    assert day.rows == 100
    assert day.totals.prediction_mean == pytest.approx(0.3)
    assert day.feature_rows == pytest.approx(160**2 / (80 + 20 * 16))


def test_rows_without_features_and_odd_shapes() -> None:
    times = DAY_ONE_US + np.arange(3)
    row = np.array([1.0, np.inf], np.float32).tobytes()
    log = as_table(make_log(times, features=[None, row, None], outputs=[[], [0.5], [0.25]]))
    nothing = np.full(3, np.nan)
    day = day_profile(DAY_ONE, log, nothing, PROFILE, decode)
    assert (day.rows, day.invalid, day.feature_rows) == (2, 1, 1.0)
    assert day.histograms.sum() == 2
    assert day.means[0] == 1.0
    assert np.isnan(day.means[1])  # infinite values are in the outer bin, not in the mean
    with pytest.raises(InvalidArgumentError, match="do not fit the reference profile"):
        day_profile(DAY_ONE, log, nothing, PROFILE, lambda packed: np.zeros((len(packed), 5)))
    empty = day_profile(DAY_ONE, log.slice(0, 0), nothing[:0], PROFILE, decode)
    assert empty.rows == 0
    assert empty.totals.prediction_mean is None
    assert equal(merge_days([empty, day]), day)


def test_a_day_of_900_rows_and_110_features_is_quick() -> None:
    rng = np.random.default_rng(0)
    columns = [f"view:f{n}" for n in range(110)]
    matrix = rng.standard_normal((900, 110)).astype(np.float32)
    scores = rng.random(900).astype(np.float32)
    profile = profile_from_table(build_profile(matrix, columns, scores))
    log = as_table(
        make_log(
            DAY_ONE_US + np.arange(900),
            features=[row.tobytes() for row in matrix],
            outputs=[[s] for s in scores.tolist()],
        )
    )
    labels = (rng.random(900) < scores).astype(float)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        day_profile(DAY_ONE, log, labels, profile, decode)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.060
