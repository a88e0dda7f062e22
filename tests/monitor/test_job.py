from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics

from headrace.errors import InvalidArgumentError
from monitor import (
    DayProfile,
    IncidentStore,
    LogWriter,
    MonitorResult,
    Truth,
    TruthLog,
    last_result,
    read_log,
    read_truth,
    run,
)
from tests.monitor.builders import DAY_ONE, DAY_ONE_US, World, decode, make_log, make_profile

PROFILE = make_profile()


def day(ordinal: int) -> date:
    return DAY_ONE + timedelta(days=ordinal)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DayProfile]]:
    """28 baseline days before the log, 14 quiet logged days, then 10 with a moved world."""
    world = World(seed=3)
    data_dir = tmp_path_factory.mktemp("data")
    baseline = world.baseline(PROFILE, range(-30, 0))
    world.serve(data_dir, range(14))
    world.serve(data_dir, range(14, 24), shift=1.5, surprise=1.0)
    return data_dir, baseline


def run_to(history: tuple[Path, list[DayProfile]], last: int) -> MonitorResult:
    data_dir, baseline = history
    return run(data_dir, "delay", PROFILE, decode, day(last), baseline)


def test_a_moved_world_is_found_once_and_named(history: tuple[Path, list[DayProfile]]) -> None:
    result = run_to(history, 23)
    assert len(result.days) == 24
    assert (result.rows, result.joined) == (24 * 200, 24 * 200)
    (incident,) = result.incidents
    assert day(14) < incident.opened <= day(21)
    assert set(incident.led_by) == {"prediction_mean", "calibration"}
    assert incident.severity == "high"
    assert incident.moved[0].feature == "delays:mean_1h"
    assert {found.value for found in incident.slices} == {"a", "b"}
    assert "delays:mean_1h" in incident.summary
    assert any("mean prediction rose" in sentence for sentence in incident.findings)
    assert any("delays:mean_1h moved" in sentence for sentence in incident.findings)
    last = result.days[-1]
    assert last.skew[0].flagged
    assert "delays:mean_1h" in {ticket.feature for ticket in last.tickets}
    assert IncidentStore(history[0] / "monitor").list("delay") == result.incidents
    assert last_result(history[0], "delay") == result


def test_quiet_days_raise_nothing(history: tuple[Path, list[DayProfile]]) -> None:
    result = run_to(history, 13)
    assert len(result.days) == 14
    assert result.incidents == []
    assert all({s.name for s in report.signals} for report in result.days)
    # The truth of the last day is not mature yet.
    assert [signal.name for signal in result.days[-1].signals] == ["prediction_mean"]


def test_a_day_report_is_what_the_rows_say(history: tuple[Path, list[DayProfile]]) -> None:
    data_dir, _ = history
    report = run_to(history, 13).days[3]
    rows = read_log(data_dir / "log", "delay", [day(3)]).to_pylist()
    truth = {
        r["prediction_id"]: r["value"] for r in read_truth(data_dir / "wal").latest.to_pylist()
    }
    scores = np.array([row["outputs"][0] for row in rows])
    labels = np.array([truth[row["prediction_id"]] for row in rows])
    arms = np.array([row["arm"] for row in rows])
    assert report.rows == report.joined == len(rows)
    assert report.prediction_mean == pytest.approx(scores.mean())
    assert report.observed_share == pytest.approx(labels.mean())
    assert report.auc == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    assert report.log_loss == pytest.approx(sklearn.metrics.log_loss(labels, scores))
    assert [arm.arm for arm in report.arms] == ["a", "b"]
    of_b = report.arms[1]
    assert of_b.rows == (arms == "b").sum()
    assert of_b.prediction_mean == pytest.approx(scores[arms == "b"].mean())


def test_a_run_in_steps_is_the_run_at_once(
    history: tuple[Path, list[DayProfile]], tmp_path: Path
) -> None:
    data_dir, baseline = history
    for name in ("log", "wal"):
        (tmp_path / name).symlink_to(data_dir / name)
    for last in range(0, 24, 5):
        run(tmp_path, "delay", PROFILE, decode, day(last), baseline)
    stepped = run(tmp_path, "delay", PROFILE, decode, day(23), baseline)
    assert msgspec.json.encode(stepped) == msgspec.json.encode(run_to(history, 23))


def test_kept_days_are_used_until_log_or_truth_change(tmp_path: Path) -> None:
    world = World(seed=5, rows=50)
    world.serve(tmp_path, range(4), with_truth=False)
    decoded: list[int] = []

    def counting(packed: pa.Array) -> np.ndarray:
        decoded.append(len(packed))
        return decode(packed)

    def run_again() -> MonitorResult:
        decoded.clear()
        return run(tmp_path, "delay", PROFILE, counting, day(3))

    assert run_again().joined == 0
    assert decoded == [50] * 4
    run_again()
    assert decoded == []
    # Truth that comes late: its day, and only its day, is computed again.
    ids = read_log(tmp_path / "log", "delay", [day(1)])["prediction_id"].to_pylist()
    truth = TruthLog(tmp_path / "wal")
    truth.append([Truth(key, "late", 1.0, 0, 1) for key in ids])
    assert run_again().joined == 50
    assert decoded == [50]
    truth.append([Truth(ids[0], "late", 0.0, 0, 2)])  # a correction
    assert run_again().days[1].observed_share == pytest.approx(49 / 50)
    assert decoded == [50]
    truth.close()
    # Log rows that come late.
    LogWriter(tmp_path / "log").write(make_log(np.array([DAY_ONE_US + 5])))
    assert run_again().days[0].rows == 51
    assert decoded == [51]
    kept = sorted((tmp_path / "monitor").rglob("*.msgpack"))
    assert len(kept) == 4
    kept[2].write_bytes(b"damaged")
    assert run_again().days[2].rows == 50
    assert decoded == [50]
    # Another profile: other bins, all again.
    other = make_profile(8)
    decoded.clear()
    run(tmp_path, "delay", other, counting, day(3))
    assert decoded == [51, 50, 50, 50]


def test_baseline_days_of_another_profile_are_refused(tmp_path: Path) -> None:
    foreign = World().baseline(make_profile(8), range(2))
    with pytest.raises(InvalidArgumentError, match="another reference profile"):
        run(tmp_path, "delay", PROFILE, decode, DAY_ONE, foreign)


def test_a_misspelt_truth_is_counted_and_the_rest_is_joined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    World(rows=40).serve(tmp_path, range(1))
    ids = read_log(tmp_path / "log", "delay")["prediction_id"].to_pylist()
    truth = TruthLog(tmp_path / "wal")
    truth.append([Truth(ids[0], "lates", 1.0, 0, 1), Truth(bytes(16), "cost", 9.0, 0, 1)])
    truth.close()
    for names in ((), ("nothing", "late")):
        found = run(tmp_path, "delay", PROFILE, decode, DAY_ONE, truth_names=names)
        assert (found.joined, found.truth_other_names) == (40, {"lates": 1})
        assert "'late' is joined, left out: {'lates': 1}" in caplog.text
        caplog.clear()
    # What the model predicts goes before what is frequent.
    named = run(tmp_path, "delay", PROFILE, decode, DAY_ONE, truth_names=("lates", "late"))
    assert (named.joined, named.truth_other_names) == (1, {"late": 40})


def test_a_model_without_a_log_has_nothing_to_say(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    result = run(
        tmp_path, "delay", PROFILE, decode, DAY_ONE, progress=lambda *now: told.append(now)
    )
    assert (result.days, result.incidents, result.rows) == ([], [], 0)
    assert told[-1][1] == 1.0
    assert last_result(tmp_path, "fare") is None
