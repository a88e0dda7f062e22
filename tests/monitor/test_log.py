from __future__ import annotations

import logging
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from headrace.times import DAY_US, HOUR_US
from monitor import LOG_SCHEMA, LogWriter, find_prediction, log_dates, log_models, read_log
from tests.monitor.builders import DAY_ONE, DAY_ONE_US, make_ids, make_log


def test_rows_land_in_the_hour_of_their_event_time(tmp_path: Path) -> None:
    times = DAY_ONE_US + np.array([0, HOUR_US - 1, HOUR_US, DAY_US + 5])
    files = LogWriter(tmp_path, "w").write(make_log(times))
    folders = [file.parent.relative_to(tmp_path).as_posix() for file in files]
    assert folders == [
        "model=delay/date=2013-10-01/hour=00",
        "model=delay/date=2013-10-01/hour=01",
        "model=delay/date=2013-10-02/hour=00",
    ]
    assert log_dates(tmp_path, "delay") == [DAY_ONE, date(2013, 10, 2)]
    assert read_log(tmp_path, "delay", [DAY_ONE]).num_rows == 3
    assert read_log(tmp_path, "delay", [date(2013, 10, 3)]).num_rows == 0


def test_everything_written_reads_back_the_same(tmp_path: Path) -> None:
    times = DAY_ONE_US + np.array([7, 5])
    batch = make_log(
        times,
        pmf=[[0.9, 0.1], None],
        plan=[17, None],
        decision=["late", None],
        trace_id=[b"t" * 16] * 2,
    )
    LogWriter(tmp_path).write(batch)
    table = read_log(tmp_path, "delay")
    assert table.schema == LOG_SCHEMA
    expected = sorted(pa.Table.from_batches([batch]).to_pylist(), key=lambda row: row["event_time"])
    assert table.to_pylist() == expected
    columns = ["arm", "event_time"]
    assert read_log(tmp_path, "delay", columns=columns).column_names == columns


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["delay", "../fare", "a/b c"]), st.integers(0, 60 * 24 * 3)),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 5),
)
def test_no_row_is_lost_or_moved_whoever_writes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]], writers: int
) -> None:
    root = tmp_path_factory.mktemp("log")
    times = DAY_ONE_US + np.array([minute * 60_000_000 for _, minute in rows])
    models = [model for model, _ in rows]
    ids = make_ids(times)
    log_writers = [LogWriter(root) for _ in range(writers)]
    for number in range(writers):
        mine = slice(number, None, writers)
        if models[mine]:
            batch = make_log(times[mine], model=models[mine], prediction_id=ids[mine])
            log_writers[number].write(batch)
    assert sum(writer.rows_written for writer in log_writers) == len(rows)
    assert log_models(root) == sorted(set(models))
    for model in set(models):
        expected = sorted(
            (time, key) for time, key, name in zip(times, ids, models, strict=True) if name == model
        )
        found = read_log(root, model)
        assert found["event_time"].cast(pa.int64()).to_pylist() == [time for time, _ in expected]
        assert found["prediction_id"].to_pylist() == [key for _, key in expected]


def test_a_model_name_cannot_leave_the_log(tmp_path: Path) -> None:
    root = tmp_path / "log"
    names = ["../../etc", "..", "/abs", "a\\b", "date=1"]
    LogWriter(root).write(make_log(np.full(5, DAY_ONE_US), model=names))
    assert log_models(root) == sorted(names)
    assert {path.parent for path in root.iterdir()} == {root}
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    for bad in ("", "x" * 300, "é" * 80):
        with pytest.raises(InvalidArgumentError, match="model name"):
            read_log(root, bad)


def test_a_batch_without_a_place_is_refused(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path)
    with pytest.raises(InvalidArgumentError, match="schema"):
        writer.write(pa.RecordBatch.from_pydict({"model": ["delay"]}))
    with pytest.raises(InvalidArgumentError, match="partition"):
        writer.write(make_log(np.array([DAY_ONE_US]), model=[None]))
    assert writer.write(make_log(np.zeros(0, np.int64))) == []
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_is_found_in_its_hour_with_all_attempts(tmp_path: Path) -> None:
    times = DAY_ONE_US + np.arange(3 * 24) * HOUR_US + 1234
    ids = make_ids(times)
    LogWriter(tmp_path).write(make_log(times, prediction_id=ids))
    again = make_log(times[5:6], prediction_id=ids[5:6], attempt=[1], arm=["b"])
    LogWriter(tmp_path).write(again)
    # Damage in any other hour does not matter: only the id's hour is read.
    for file in tmp_path.glob("model=*/date=*/hour=*/*.parquet"):
        if file.parent.name != "hour=05" or file.parent.parent.name != "date=2013-10-01":
            file.write_bytes(b"damaged")
    found = find_prediction(tmp_path, ids[5])
    assert found["attempt"].to_pylist() == [0, 1]
    assert found["arm"].to_pylist() == ["a", "b"]
    assert find_prediction(tmp_path, make_ids(times, worker=9)[5]).num_rows == 0
    assert find_prediction(tmp_path / "none", ids[5]).num_rows == 0
    with pytest.raises(InvalidArgumentError, match="16 bytes"):
        find_prediction(tmp_path, b"short")


def test_folders_that_are_no_date_are_passed_over(tmp_path: Path) -> None:
    LogWriter(tmp_path).write(make_log(np.array([DAY_ONE_US])))
    for odd in ("2026-13-45", "", "20131001", "backup"):
        (tmp_path / "model=delay" / f"date={odd}").mkdir()
    assert log_dates(tmp_path, "delay") == [DAY_ONE]
    assert read_log(tmp_path, "delay").num_rows == 1


def test_a_damaged_file_is_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = LogWriter(tmp_path).write(make_log(DAY_ONE_US + np.array([0, HOUR_US])))
    first.write_bytes(first.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert read_log(tmp_path, "delay").num_rows == 1
    assert first.name in caplog.text
    assert second.exists()


def test_a_file_of_an_older_schema_reads_as_nulls(tmp_path: Path) -> None:
    (file,) = LogWriter(tmp_path).write(make_log(np.array([DAY_ONE_US]), plan=[17]))
    pq.write_table(pq.ParquetFile(file).read().drop_columns(["trace_id", "plan"]), file)
    table = read_log(tmp_path, "delay")
    assert table.schema == LOG_SCHEMA
    assert table["plan"].to_pylist() == [None]
    assert table["model"].to_pylist() == ["delay"]


def test_disk_trouble_is_counted_and_the_next_batch_is_tried(tmp_path: Path) -> None:
    root = tmp_path / "log"
    root.write_text("a file where the folder should be")
    writer = LogWriter(root)
    assert writer.write(make_log(DAY_ONE_US + np.array([0, 1, HOUR_US]))) == []
    assert (writer.rows_dropped, writer.rows_written) == (3, 0)
    assert writer.last_error is not None
    assert str(tmp_path) not in writer.last_error
    root.unlink()
    assert len(writer.write(make_log(np.array([DAY_ONE_US])))) == 1
    assert (writer.rows_dropped, writer.rows_written) == (3, 1)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from monitor import LogWriter
from tests.monitor.builders import DAY_ONE_US, make_log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root = Path(sys.argv[1])
writer = LogWriter(root)
small = make_log(np.array([DAY_ONE_US]))
noise = [np.random.default_rng(i).bytes(60_000) for i in range(20)]
large = make_log(np.full(20, DAY_ONE_US), features=noise)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
writer.write(small); writer.write(large); writer.write(small)
print(writer.rows_written, writer.rows_dropped, writer.last_error)
"""


def test_a_write_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    written, dropped, error = done.stdout.split(maxsplit=2)
    assert (written, dropped) == ("2", "20")
    assert "OSError" in error
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == 2
    assert read_log(tmp_path, "delay").num_rows == 2
