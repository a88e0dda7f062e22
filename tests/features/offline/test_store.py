"""The offline store: append, read back, number, refuse."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from features.offline import OfflineStore
from headrace.errors import InternalError, InvalidArgumentError, NotFoundError


@pytest.fixture
def store(tmp_path: Path) -> OfflineStore:
    return OfflineStore(tmp_path / "offline")


def test_rows_come_back_in_order_with_times_and_numbers(store: OfflineStore) -> None:
    assert store.append("trips", pa.table({"taxi": ["a", "b"], "event_time": [2, 1]})) == 2
    late = pa.table({"taxi": ["c", "d"], "event_time": [3, 4], "created_time": [9, None]})
    assert store.append("trips", late) == 4
    assert store.read("trips").to_pydict() == {
        "taxi": ["a", "b", "c", "d"],
        "event_time": [2, 1, 3, 4],
        "created_time": [2, 1, 9, 4],
        "sequence": [0, 1, 2, 3],
    }
    assert store.read("trips", columns=[]).column_names == [
        "event_time",
        "created_time",
        "sequence",
    ]
    assert store.sources() == ["trips"]


def test_timestamps_become_utc_microseconds(store: OfflineStore) -> None:
    noon = datetime(2013, 7, 1, 12, tzinfo=UTC)
    for unit, zone in (("ns", "UTC"), ("ms", "America/New_York"), ("s", "+02:00")):
        times = pa.array([noon], type=pa.timestamp(unit, zone))
        store.append("trips", pa.table({"event_time": times}))
    assert set(store.read("trips")["event_time"].to_pylist()) == {1372680000000000}


def test_types_may_widen_and_dictionaries_are_decoded(store: OfflineStore) -> None:
    one = pa.table({"n": pa.array([1], type=pa.int32()), "event_time": [0]})
    two = pa.table({"n": pa.array([None], type=pa.int64()), "event_time": [0]})
    store.append("trips", one)
    store.append("trips", two)
    assert store.read("trips")["n"].to_pylist() == [1, None]
    names = pa.array(["x"]).dictionary_encode()
    store.append("named", pa.table({"name": names, "event_time": [0]}))
    assert store.read("named")["name"].to_pylist() == ["x"]


def test_an_empty_table_makes_a_history_once(store: OfflineStore) -> None:
    empty = pa.table(
        {"n": pa.array([], type=pa.int64()), "event_time": pa.array([], type=pa.int64())}
    )
    assert store.append("trips", empty) == 0
    assert store.append("trips", empty) == 0
    assert store.append("trips", pa.table({"n": [5], "event_time": [1]})) == 1
    assert store.append("trips", empty) == 1
    assert store.read("trips")["sequence"].to_pylist() == [0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": [1]}, "column 'event_time' is missing"),
        ({"event_tme": [1]}, "did you mean 'event_tme'"),
        ({"event_time": [1.5]}, "'event_time' has a wrong type.*timestamp.*double"),
        ({"event_time": [1, None]}, "'event_time' holds a null"),
        (
            {"event_time": pa.array([1], type=pa.timestamp("us"))},
            "'event_time' has times without a time zone",
        ),
        ({"event_time": [1], "sequence": [1]}, "'sequence' is given by the store"),
        ({"event_time": pa.array([2**63], type=pa.uint64())}, "a value that does not fit"),
    ],
)
def test_a_bad_table_is_refused_and_leaves_nothing(
    store: OfflineStore, columns: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        store.append("trips", pa.table(columns))
    assert store.sources() == []


@pytest.mark.parametrize("name", ["../trips", "a/b", "", "a b"])
def test_a_source_cannot_leave_its_folder(store: OfflineStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="name of a source is not usable"):
        store.append(name, pa.table({"event_time": [1]}))
    with pytest.raises(InvalidArgumentError, match="name of a source is not usable"):
        store.read(name)


def test_a_missing_source_or_column_is_named(store: OfflineStore) -> None:
    with pytest.raises(NotFoundError, match="source 'trips' has no history"):
        store.read("trips")
    store.append("trips", pa.table({"taxi": ["a"], "event_time": [1]}))
    with pytest.raises(InvalidArgumentError, match="'tax' is missing; did you mean 'taxi'"):
        store.read("trips", columns=["tax"])


def test_a_file_that_was_cut_is_named(store: OfflineStore) -> None:
    store.append("trips", pa.table({"taxi": ["a"], "event_time": [1]}))
    (file,) = (store.root / "trips").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InternalError, match=r"source 'trips'.*cannot be read") as caught:
        store.read("trips")
    assert str(store.root) not in str(caught.value)


def test_half_a_file_under_another_name_is_not_read(store: OfflineStore) -> None:
    store.append("trips", pa.table({"taxi": ["a"], "event_time": [1]}))
    (store.root / "trips" / f"{1:020d}-5.partial").write_bytes(b"PAR1")
    assert store.read("trips").num_rows == 1
    assert store.append("trips", pa.table({"taxi": ["b"], "event_time": [1]})) == 2
