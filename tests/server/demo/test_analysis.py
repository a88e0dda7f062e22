from __future__ import annotations

import struct
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from headrace.times import DAY_US
from server.demo import analysis
from server.demo.analysis import Share

A, B = "sha256:a", "sha256:b"
TITLES = {A: ("Champion", "live"), B: ("Challenger", "canary")}


def ids(numbers: list[int]) -> np.ndarray:
    # The low bytes come first: ids that end in zero bytes must still be told apart.
    return np.frombuffer(b"".join(n.to_bytes(16, "little") for n in numbers), "V16")


def log(rows: list[dict[str, Any]]) -> pa.Table:
    def column(name: str, default: Any, kind: pa.DataType) -> pa.Array:
        return pa.array([row.get(name, default) for row in rows], kind)

    return pa.table(
        {
            "prediction_id": pa.array(
                [row["id"].to_bytes(16, "little") for row in rows], pa.binary(16)
            ),
            "flags": column("flags", 0, pa.uint16()),
            "version": column("version", A, pa.string()).dictionary_encode(),
            "arm": column("arm", "a", pa.string()).dictionary_encode(),
            "plan": column("plan", 1, pa.uint64()),
            "propensity": column("propensity", 1.0, pa.float64()),
            "features": column("features", b"row", pa.binary()),
            "outputs": column("outputs", [0.5], pa.list_(pa.float32())),
        }
    )


@given(st.permutations(list(range(9))), st.sets(st.integers(0, 8)), st.integers(0, 3))
def test_the_log_comes_into_the_order_of_the_decisions(
    order: list[int], lost: set[int], strangers: int
) -> None:
    rows = [{"id": n, "outputs": [n / 16]} for n in order if n not in lost]
    rows += [{"id": 100 + n} for n in range(strangers)]
    logged = analysis.align(log(rows), ids(list(range(9))))
    expected = [np.nan if n in lost else n / 16 for n in range(9)]
    np.testing.assert_array_equal(logged.outputs, np.array(expected, np.float32))
    assert [row is None for row in logged.rows] == [n in lost for n in range(9)]
    assert (logged.missing, logged.repeated, logged.foreign) == (len(lost), 0, strangers)


def test_shadow_rows_do_not_count_and_repeats_do() -> None:
    rows = [
        {"id": 1, "flags": analysis.SHADOW, "outputs": [0.9]},
        {"id": 1, "outputs": [0.25]},
        {"id": 1, "outputs": [0.75]},
    ]
    logged = analysis.align(log(rows), ids([1]))
    assert logged.outputs.tolist() == [0.25]
    assert (logged.missing, logged.repeated, logged.foreign) == (0, 1, 0)


def test_a_log_of_nobody_and_a_question_without_a_log() -> None:
    logged = analysis.align(log([]), ids([1, 2]))
    assert logged.missing == 2
    logged = analysis.align(log([{"id": 1}]), ids([]))
    assert logged.foreign == 1


def pack(values: list[float | None], schema: int = 7) -> bytes:
    """A packed row, written by hand from the contract."""
    bits = sum(1 << i for i, v in enumerate(values) if v is None)
    words = [0 if v is None else struct.unpack("<q", struct.pack("<d", v))[0] for v in values]
    nulls = bits.to_bytes(-(-len(values) // 64) * 8, "little")
    return struct.pack("<II", schema, len(values)) + nulls + struct.pack(f"<{len(values)}q", *words)


def test_one_bit_of_one_feature_is_found_and_named() -> None:
    columns = ["a", "b", "c"]
    good = [pack([1.0, 2.0, None]), pack([0.0, -0.0, 5.0])]
    same = analysis.consistency(good, good, columns)
    assert (same.rows, same.equal_rows, same.differing) == (2, 2, [])
    other = [pack([1.0, 2.0, 0.0]), pack([0.0, 0.0, np.nextafter(5.0, 6.0)])]
    found = analysis.consistency(other, good, columns)
    assert found.equal_rows == 0
    assert found.differing == [("c", 2), ("b", 1)]


def test_rows_of_another_shape_schema_or_nowhere_are_not_equal() -> None:
    offline = [pack([1.0])] * 3
    found = analysis.consistency([b"short", pack([1.0], schema=8), None], offline, ["a"])
    assert found.equal_rows == 0
    assert dict(found.differing) == {"(the row's layout)": 1, "(the row's schema)": 1}


def arrays(rows: int, seed: int) -> tuple[analysis.Logged, np.ndarray, np.ndarray, np.ndarray]:
    """(logged, truth, times, offline scores) of three weeks with a canary in the last two."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 21 * DAY_US, rows))
    scores = rng.random(rows, np.float32)
    truth = (rng.random(rows) < scores).astype(np.float64)
    late = times > 7 * DAY_US
    versions = np.where(late & (rng.random(rows) < 0.2), B, A).astype(object)
    plans = np.where(late, 2, 1).astype(np.uint64)
    logged = analysis.Logged(
        scores, np.where(versions == A, "a", "b").astype(object), versions, plans,
        np.ones(rows), [b""] * rows, 0, 0, 0,
    )  # fmt: skip
    return logged, truth, times, scores


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_arms_are_judged_over_what_they_answered(seed: int) -> None:
    logged, truth, times, scores = arrays(2_000, seed)
    equal = np.ones(2_000, bool)
    offline = {A: scores, B: scores}
    arms = analysis.arm_results(logged, truth, equal, offline, truth > 0.5, times, TITLES)
    assert [arm.title for arm in arms] == ["Champion", "Challenger"]
    for arm, version in zip(arms, (A, B), strict=True):
        mine = logged.versions == version
        assert arm.rows == arm.equal_rows == mine.sum()
        expected = roc_auc_score(truth[mine], scores[mine])
        assert arm.auc_online == pytest.approx(expected, abs=1e-12)
        assert arm.auc_offline == pytest.approx(expected, abs=1e-12)
        assert arm.late_share == pytest.approx(truth[mine].mean())
        assert sum(b.rows for b in arm.calibration) == arm.rows
        predicted = [b.predicted for b in arm.calibration]
        assert predicted == sorted(predicted)
    assert len(arms[0].weekly_auc) == 3
    assert len(arms[1].weekly_auc) == 2
    assert arms[0].weekly_auc[0][0] == date(1970, 1, 1)


def test_unknown_truth_is_left_out_online() -> None:
    logged, truth, times, scores = arrays(500, 1)
    truth[::2] = np.nan
    labels = np.nan_to_num(truth, nan=1.0) > 0.5
    arms = analysis.arm_results(
        logged, truth, np.ones(500, bool), {A: scores, B: scores}, labels, times, TITLES
    )
    mine = (logged.versions == A) & ~np.isnan(truth)
    assert arms[0].auc_online == pytest.approx(roc_auc_score(truth[mine], scores[mine]))


def test_days_hold_their_own_rows_and_the_plan_in_force() -> None:
    logged, truth, times, _ = arrays(3_000, 3)
    planned = np.where(logged.plans == 2, 0.2, np.nan)
    days = analysis.day_points(logged, truth, times, B, planned)
    assert [d.day for d in days] == [date(1970, 1, 1 + n) for n in range(21)]
    assert sum(d.rows for d in days) == 3_000
    assert [d.canary_planned for d in days[:7]] == [None] * 7
    assert all(d.canary_planned == pytest.approx(0.2) for d in days[8:])
    assert sum(d.canary_rows for d in days) == (logged.versions == B).sum()
    first = times < DAY_US
    assert days[0].late_share == pytest.approx(truth[first].mean())


def test_shares_are_counted_under_their_own_plan() -> None:
    logged, _, _, _ = arrays(5_000, 4)
    found = analysis.shares(logged, {1: {A: 1.0}, 2: {A: 0.8, B: 0.2}, 9: {A: 1.0}}, TITLES)
    assert [(s.title, s.weight) for s in found] == [
        ("Champion", 1.0), ("Champion", 0.8), ("Challenger", 0.2),
    ]  # fmt: skip
    assert found[0].rows == found[0].of == (logged.plans == 1).sum()
    assert found[1].rows + found[2].rows == found[1].of
    assert abs(found[2].deviations) < 4


def test_deviations_are_those_of_a_binomial_draw() -> None:
    assert Share("x", 100, 1_000, 0.1).deviations == 0
    assert Share("x", 100 + 2 * 90**0.5, 1_000, 0.1).deviations == pytest.approx(2)  # type: ignore[arg-type]
    assert Share("x", 10, 10, 1.0).deviations == 0
    assert Share("x", 9, 10, 1.0).deviations == float("inf")
