from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from monitor import TRUTH_SCHEMA, Truth, TruthLog, join_truth, read_truth
from tests.monitor.builders import DAY_ONE_US, make_ids, make_log

IDS = make_ids(DAY_ONE_US + np.arange(6))


def truth(key: int = 0, value: float = 1.0, created: int = 10, name: str = "late") -> Truth:
    return Truth(IDS[key], name, value, DAY_ONE_US, DAY_ONE_US + created, "tower")


def as_table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def write(root: Path, *batches: list[Truth]) -> None:
    log = TruthLog(root)
    for batch in batches:
        assert log.append(batch) == len(batch)
    log.close()


def test_what_was_acknowledged_is_read_back_whole(tmp_path: Path) -> None:
    by_entity = Truth(None, "late", 0.0, 5, 6, "", b"N123")
    write(tmp_path, [truth(0), truth(1, 0.0)], [], [by_entity])
    write(tmp_path, [truth(2)])  # another start, another segment
    found = read_truth(tmp_path)
    assert found.history.schema == TRUTH_SCHEMA
    assert found.history["prediction_id"].to_pylist() == [IDS[0], IDS[1], None, IDS[2]]
    assert found.history["entity_key"].to_pylist() == [None, None, b"N123", None]
    assert found.history["value"].to_pylist() == [1.0, 0.0, 0.0, 1.0]
    assert found.history["source"].to_pylist() == ["tower", "tower", "", "tower"]
    assert found.latest.equals(found.history)
    assert (found.duplicates, found.conflicts, found.damaged_bytes) == (0, 0, 0)
    assert read_truth(tmp_path / "none").history.num_rows == 0


KEYS = st.tuples(
    st.integers(0, 3), st.sampled_from(["late", "cost"]), st.sampled_from([0.0, 1.0]),
    st.integers(0, 4),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(KEYS, max_size=6), max_size=5))
def test_the_last_created_wins_and_repeats_are_counted(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, str, float, int]]]
) -> None:
    root = tmp_path_factory.mktemp("wal")
    write(root, *([truth(k, v, c, n) for k, n, v, c in batch] for batch in batches))
    # The oracle: a plain dict, record by record.
    best: dict[tuple[int, str], tuple[int, float]] = {}
    duplicates = conflicts = 0
    for key, name, value, created in [row for batch in batches for row in batch]:
        known = best.get((key, name))
        if known is not None:
            duplicates += known[1] == value
            conflicts += known[1] != value
        if known is None or created >= known[0]:
            best[key, name] = (created, value)
    found = read_truth(root)
    rows = found.latest.to_pylist()
    assert {(IDS.index(r["prediction_id"]), r["name"]): r["value"] for r in rows} == {
        key: value for key, (_, value) in best.items()
    }
    assert len(rows) == len(best)
    assert found.history.num_rows == sum(map(len, batches))
    assert (found.duplicates, found.conflicts) == (duplicates, conflicts)


def test_a_log_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path) -> None:
    write(tmp_path / "whole", [truth(0)], [truth(1), truth(2)])
    (segment,) = (tmp_path / "whole").glob("truth-*.log")
    data = segment.read_bytes()
    head = len(b"HRTRUTH1")
    size = (len(data) - head) // 3
    assert len(data) == head + 3 * size
    for cut in range(len(data)):
        root = tmp_path / f"cut-{cut}"
        root.mkdir()
        (root / segment.name).write_bytes(data[:cut])
        whole = max(0, (cut - head) // size)
        torn = cut - (head + whole * size) if cut >= head else cut
        assert read_truth(root).damaged_bytes == torn
        log = TruthLog(root)
        assert log.cut_bytes == torn
        log.append([truth(3)])
        log.close()
        found = read_truth(root)
        assert found.history["prediction_id"].to_pylist() == [*IDS[:whole], IDS[3]]
        assert found.damaged_bytes == 0


def test_what_is_cut_off_is_kept_aside(tmp_path: Path) -> None:
    write(tmp_path, [truth(0)], [truth(1)], [truth(2)])
    (segment,) = tmp_path.glob("truth-*.log")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1  # damage inside the second record
    segment.write_bytes(data)
    TruthLog(tmp_path).close()
    assert read_truth(tmp_path).history.num_rows == 1
    (aside,) = tmp_path.glob("*.cut-*")
    assert segment.read_bytes() + aside.read_bytes() == data


def test_one_writer_a_folder(tmp_path: Path) -> None:
    first = TruthLog(tmp_path)
    with pytest.raises(FailedPreconditionError, match="in use"):
        TruthLog(tmp_path)
    first.close()
    first.close()
    TruthLog(tmp_path).close()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Truth(b"short", "late", 1.0, 0, 0), "16 bytes"),
        (Truth(None, "late", 1.0, 0, 0), "either"),
        (Truth(IDS[0], "late", 1.0, 0, 0, "", b"N1"), "either"),
        (Truth(IDS[0], "", 1.0, 0, 0), "name"),
        (Truth(IDS[0], "late", float("nan"), 0, 0), "finite"),
        (Truth(IDS[0], "late", float("inf"), 0, 0), "finite"),
        (Truth(IDS[0], "late", 1.0, 2**63, 0), "microseconds"),
        (Truth(IDS[0], "x" * 100_000, 1.0, 0, 0), "at most"),
        (Truth(IDS[0], 5, 1.0, 0, 0), "wrong type"),  # type: ignore[arg-type]
        (Truth(IDS[0], "late", np.float64(1), 0, 0), "wrong type"),
    ],
)
def test_a_bad_record_is_named_and_nothing_of_its_call_is_written(
    tmp_path: Path, bad: Truth, why: str
) -> None:
    log = TruthLog(tmp_path)
    with pytest.raises(InvalidArgumentError, match=f"record 1.*{why}"):
        log.append([truth(0), bad])
    log.append([truth(1)])
    log.close()
    assert read_truth(tmp_path).history["prediction_id"].to_pylist() == [IDS[1]]


def test_segments_roll_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.truth._SEGMENT_BYTES_MAX", 400)
    write(tmp_path, *([truth(n % 6, created=n)] for n in range(20)))
    assert len(list(tmp_path.glob("truth-*.log"))) > 3
    assert read_truth(tmp_path).history["created_time"].cast("int64").to_pylist() == [
        DAY_ONE_US + n for n in range(20)
    ]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from headrace.errors import UnavailableError
from monitor import TruthLog
from tests.monitor.test_truth import truth
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = TruthLog(Path(sys.argv[1]))
log.append([truth(0)])
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit_bytes in (150, 4):  # inside a record, then inside a new segment's first bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, unlimited))
    try:
        log.append([truth(1), truth(2)])
    except UnavailableError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
log.append([truth(3)])
log.close()
"""


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """A real refusal by the kernel: the file size limit, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("could not be made durable") == 2
    found = read_truth(tmp_path)
    assert found.history["prediction_id"].to_pylist() == [IDS[0], IDS[3]]
    assert found.damaged_bytes == 0
    assert len(list(tmp_path.glob("truth-*.log"))) == 2  # no empty segments are left behind


def test_truth_joins_by_prediction_id(tmp_path: Path) -> None:
    write(tmp_path, [truth(0, 1.0), truth(2, 0.0), truth(0, 0.0, created=20)])
    log = read_truth(tmp_path)
    rows = make_log(DAY_ONE_US + np.arange(4), prediction_id=[*IDS[:3], IDS[2]])
    joined = join_truth(as_table(rows), log.latest)
    np.testing.assert_array_equal(joined, [0.0, np.nan, 0.0, 0.0])
    assert len(join_truth(as_table(rows.slice(0, 0)), log.latest)) == 0
    nothing = join_truth(as_table(rows), log.latest.slice(0, 0))
    assert np.isnan(nothing).all()


def test_truth_of_several_names_needs_one(tmp_path: Path) -> None:
    write(tmp_path, [truth(0), truth(0, 35.0, name="minutes"), truth(5, 1.0, name="elsewhere")])
    latest = read_truth(tmp_path).latest
    rows = as_table(make_log(np.array([DAY_ONE_US]), prediction_id=[IDS[0]]))
    with pytest.raises(InvalidArgumentError, match="late, minutes"):
        join_truth(rows, latest)
    assert join_truth(rows, latest, "minutes").tolist() == [35.0]
    assert np.isnan(join_truth(rows, latest, "unknown")).all()
