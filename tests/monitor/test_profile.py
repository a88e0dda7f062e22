from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from monitor import build_profile, profile_from_table, read_profile, write_profile
from monitor.profile import fixed_edges

VALUES = st.lists(
    st.one_of(st.floats(width=32), st.sampled_from([0.0, 1.0, 2.0])), min_size=1, max_size=80
)


@given(VALUES)
def test_every_value_is_in_one_bin_and_nulls_are_their_own(values: list[float]) -> None:
    column = np.array(values, np.float32)
    scores = np.full(len(column), 0.5)
    profile = profile_from_table(build_profile(column[:, None], ["x"], scores))
    assert profile.counts.sum() == len(column) == profile.rows
    assert profile.counts[0, -1] == np.isnan(column).sum()
    edges = profile.edges[0]
    assert (np.diff(edges) > 0).all()
    known = column[~np.isnan(column)].astype(float)
    for number in range(int(profile.bins[0])):
        low = edges[number - 1] if number else -np.inf
        high = edges[number] if number < len(edges) else np.inf
        inside = (known > low if number else True) & (known <= high)
        expected = np.broadcast_to(inside, known.shape).sum()
        assert profile.counts[0, number] == expected


def test_continuous_values_fall_in_tenths() -> None:
    edges = fixed_edges(np.random.default_rng(0).standard_normal(10_000))
    assert len(edges) == 9
    counts = np.histogram(
        np.random.default_rng(0).standard_normal(10_000), [-np.inf, *edges, np.inf]
    )[0]
    assert np.abs(counts - 1000).max() <= 1


@pytest.mark.parametrize("other", [4.0, 5.0 - 1e-6, 5.0 + 1e-6, 6.0])
def test_a_constant_that_changes_is_seen(other: float) -> None:
    edges = fixed_edges(np.full(50, 5.0))
    assert np.searchsorted(edges, 5.0, "left") != np.searchsorted(edges, other, "left")


def test_flags_have_a_bin_for_each_value() -> None:
    edges = fixed_edges(np.array([0.0] * 70 + [1.0] * 30))
    assert len({int(np.searchsorted(edges, v, "left")) for v in (-1.0, 0.0, 1.0, 2.0)}) == 4


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((500, 3)).astype(np.float32)
    matrix[:100, 1] = np.nan
    matrix[:, 2] = np.nan
    scores, labels = rng.random(500), (rng.random(500) < 0.3).astype(float)
    table = build_profile(matrix, ["a", "b", "c"], scores, labels)
    write_profile(table, tmp_path / "profile.arrow")
    profile = read_profile(tmp_path / "profile.arrow")
    assert profile.digest == profile_from_table(table).digest
    assert profile.columns == ["a", "b", "c"]
    assert profile.counts[:, -1].tolist() == [0, 100, 500]
    np.testing.assert_allclose(profile.means[:2], np.nanmean(matrix[:, :2].astype(float), axis=0))
    assert np.isnan(profile.means[2])
    assert profile.prediction_mean == pytest.approx(scores.mean())
    assert profile.observed_share == pytest.approx(labels.mean())
    without = profile_from_table(build_profile(matrix, ["a", "b", "c"], scores))
    assert without.observed_share is None
    assert without.digest != profile.digest


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"columns": ["a"]}, r"\[N ≥ 1, 1\]"),
        ({"columns": ["a", "a"]}, "repeated"),
        ({"matrix": np.zeros((0, 2), np.float32)}, "matrix"),
        ({"predictions": np.zeros(3)}, "predictions"),
        ({"predictions": np.array([0.1, 0.2, 1.5, 0.3])}, "probabilities"),
        ({"predictions": np.array([0.1, 0.2, np.nan, 0.3])}, "probabilities"),
        ({"labels": np.zeros(5)}, "labels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], why: str) -> None:
    given_: dict[str, object] = {
        "matrix": np.zeros((4, 2), np.float32),
        "columns": ["a", "b"],
        "predictions": np.full(4, 0.5),
        "labels": None,
    }
    with pytest.raises(InvalidArgumentError, match=why):
        build_profile(**{**given_, **change})  # type: ignore[arg-type]


def test_another_file_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.arrow"
    path.write_bytes(b"not arrow")
    with pytest.raises(InvalidArgumentError, match=r"profile\.arrow"):
        read_profile(path)
    with pytest.raises(InvalidArgumentError, match="format 1"):
        profile_from_table(pa.table({"a": [1]}))
    table = build_profile(np.zeros((2, 1), np.float32), ["a"], np.zeros(2))
    with pytest.raises(InvalidArgumentError, match="prediction row"):
        profile_from_table(table.slice(0, 1))
