"""Training sets: the cases of `torture` against the oracle, and large ones as small ones."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import FeatureBatch
from features.offline import OfflineStore, get_historical_features, write_historical_features
from features.offline.buckets import BUCKETS, bucket_numbers, parts_of
from features.offline.spine import Spine
from features.offline.training_set import historical_batches
from features.sources import Entity
from headrace.errors import InvalidArgumentError, NotFoundError
from tests.features.offline import torture
from tests.features.offline.torture import LOCATIONS, Event, Row

SLOW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def in_parts(
    spine: pa.Table | Path, service, store: OfflineStore, folder: Path, chunk_rows: int, memory: int
) -> tuple[pa.Table, FeatureBatch]:  # type: ignore[no-untyped-def]
    whole = Spine(spine, chunk_rows)
    found = list(historical_batches(whole, service, store, folder, memory_bytes=memory))
    if not found:
        return whole.schema.empty_table(), service.start(0).finish({})
    assert all(chunk.num_rows == chunk_rows for chunk, _ in found[:-1])
    words = np.concatenate([batch.words for _, batch in found])
    status = np.concatenate([batch.status for _, batch in found])
    return pa.concat_tables([c for c, _ in found]), FeatureBatch(service, words, status)


@pytest.mark.parametrize("kind", LOCATIONS)
@SLOW
@given(events=torture.events(), rows=torture.rows)
def test_every_cell_is_the_oracle_s_wherever_history_lies(
    kind: str, events: list[Event], rows: list[Row]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        service = torture.service(torture.write(root, events, kind))
        store = OfflineStore(root / "own", root)
        batch = get_historical_features(torture.spine(rows), service, store)
    found = torture.cells(batch)
    assert len(found) == len(rows)
    for row, cells in zip(rows, found, strict=True):
        # Their text, as NaN is not equal to itself.
        assert list(map(repr, cells)) == list(map(repr, torture.wanted(events, row)))


@SLOW
@given(
    events=torture.events(),
    rows=torture.rows,
    key=st.sampled_from(["int32", "int64", "string"]),
    chunk_rows=st.sampled_from([1, 3, 8, 64]),
    memory=st.sampled_from([1, 2000, 20_000, 1 << 30]),
)
def test_in_parts_it_is_the_same_to_the_bit(
    events: list[Event], rows: list[Row], key: str, chunk_rows: int, memory: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torture.write(root, events, "own")
        service = torture.service(None)
        store = OfflineStore(root / "own")
        spine = torture.spine(rows, key)
        whole = get_historical_features(torture.spine(rows), service, store)
        (root / "parts").mkdir()
        chunks, parts = in_parts(spine, service, store, root / "parts", chunk_rows, memory)
    assert chunks.equals(spine)
    assert np.array_equal(parts.words, whole.words)
    assert np.array_equal(parts.status, whole.status)


IDS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))


@given(ids=st.lists(st.tuples(IDS, st.text(max_size=5)), max_size=20))
def test_an_id_falls_into_one_bucket_however_it_was_typed(ids: list[tuple[int, str]]) -> None:
    entity = Entity("pair", ["a", "b"])
    a = pa.array([one for one, _ in ids], pa.int64())
    # With an offset into its buffers, and in several chunks.
    b = pa.chunked_array([pa.array(["x", *(two for _, two in ids)]).slice(1), pa.array([], "str")])
    numbers = bucket_numbers(entity, pa.table({"a": a, "b": b}), "test")
    as_text = pa.table({"a": a.cast(pa.string()), "b": b.cast(pa.large_string())})
    assert np.array_equal(numbers, bucket_numbers(entity, as_text, "test"))
    assert [number == BUCKETS for number in numbers] == [one is None for one, _ in ids]


def test_buckets_spread_and_keys_do_not_run_together() -> None:
    entity = Entity("pair", ["a", "b"])
    table = pa.table({"a": np.arange(100_000), "b": np.arange(100_000) % 7})
    counts = np.bincount(bucket_numbers(entity, table, "test"), minlength=BUCKETS + 1)
    assert counts[BUCKETS] == 0
    assert counts[:BUCKETS].min() > 600
    assert counts[:BUCKETS].max() < 1000


@given(costs=st.lists(st.integers(0, 9), min_size=1, max_size=20), most=st.integers(1, 20))
def test_parts_cover_all_buckets_and_fit(costs: list[int], most: int) -> None:
    parts = parts_of(costs, most)
    assert [n for first, end in parts for n in range(first, end)] == list(range(len(costs)))
    for first, end in parts:
        assert sum(costs[first:end]) <= most or end - first == 1


@pytest.fixture
def world(tmp_path: Path) -> tuple[OfflineStore, list[Row]]:
    values = {"shop": 1, "user": "3", "number": 2**53 + 1, "real": float("nan"), "flag": True}
    events = [Event(0, 0, 0, values | {"word": "ü"})]
    torture.write(tmp_path, events, "own")
    return OfflineStore(tmp_path / "own"), [
        Row(1, "3", 1, 2),
        Row(1, None, 1, 2),
        Row(9, "3", 1, 0),
    ]


def test_a_file_holds_the_spine_and_the_features_with_their_types(
    world: tuple[OfflineStore, list[Row]], tmp_path: Path
) -> None:
    store, rows = world
    spine = torture.spine(rows)
    pq.write_table(spine, tmp_path / "spine.parquet", row_group_size=2)
    out = tmp_path / "out.parquet"
    written = write_historical_features(
        tmp_path / "spine.parquet", torture.service(None), store, out, statuses=True
    )
    found = pq.read_table(out)
    assert written == found.num_rows == 3
    assert found.select(spine.column_names).equals(spine)
    assert found["known:number"].to_pylist() == [2**53 + 1, None, None]
    assert found["known:number:status"].to_pylist() == ["present", "not_found", "not_found"]
    assert np.isnan(found["known:real"][0].as_py())
    assert found["known:real"].null_count == 2
    assert found["ever:flag"].to_pylist() == [True, True, None]
    assert found["ever:flag"].type == pa.bool_()
    assert found["sums:count_2min"].to_pylist() == [1, None, 0]
    assert list(tmp_path.glob(".*")) == list(tmp_path.glob("*.partial")) == []
    frame = get_historical_features(spine, torture.service(None), store).to_pandas()
    assert frame["known:number"].tolist()[0] == 2**53 + 1
    assert frame["known:number"].isna().tolist() == [False, True, True]


def test_an_empty_spine_makes_an_empty_file_with_all_columns(
    world: tuple[OfflineStore, list[Row]], tmp_path: Path
) -> None:
    store, _ = world
    out = tmp_path / "out.parquet"
    assert write_historical_features(torture.spine([]), torture.service(None), store, out) == 0
    found = pq.read_table(out)
    assert found.num_rows == 0
    assert {"label", "known:number", "computed:letters"} <= set(found.column_names)


def test_a_folder_of_files_is_one_spine(
    world: tuple[OfflineStore, list[Row]], tmp_path: Path
) -> None:
    store, rows = world
    spine = torture.spine(rows)
    folder = tmp_path / "spine"
    folder.mkdir()
    pq.write_table(spine[:1], folder / "a.parquet")
    pq.write_table(spine[1:], folder / "b.parquet")
    out = tmp_path / "out.parquet"
    write_historical_features(folder, torture.service(None), store, out)
    assert pq.read_table(out)["label"].to_pylist() == [0, 1, 2]
    pq.write_table(spine.rename_columns([*spine.column_names[:-1], "z"]), folder / "c.parquet")
    with pytest.raises(InvalidArgumentError, match=r"c\.parquet' has another schema"):
        write_historical_features(folder, torture.service(None), store, out)


def test_what_is_wrong_is_named_and_leaves_no_file(
    world: tuple[OfflineStore, list[Row]], tmp_path: Path
) -> None:
    store, rows = world
    spine, service, out = torture.spine(rows), torture.service(None), tmp_path / "out.parquet"
    clash = spine.append_column("known:number", spine["number"])
    with pytest.raises(InvalidArgumentError, match="'known:number' is called like a feature"):
        write_historical_features(clash, service, store, out)
    for column in ("event_time", "shop", "asked"):
        with pytest.raises(InvalidArgumentError, match=f"spine: column '{column}' is missing"):
            write_historical_features(spine.drop_columns([column]), service, store, out)
    with pytest.raises(NotFoundError, match="source 'facts' has no history"):
        write_historical_features(spine, service, OfflineStore(tmp_path / "no"), out)
    with pytest.raises(NotFoundError, match=r"there is no spine 'x\.parquet'"):
        write_historical_features(tmp_path / "x.parquet", service, store, out)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_progress_is_told_to_the_end(world: tuple[OfflineStore, list[Row]], tmp_path: Path) -> None:
    store, rows = world
    told: list[float] = []
    write_historical_features(
        torture.spine(rows), torture.service(None), store, tmp_path / "out",
        progress=lambda _, share: told.append(share),
    )  # fmt: skip
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.slow
def test_memory_is_what_was_said(tmp_path: Path) -> None:
    arguments = ("2000000", "1000000", "32")
    command = [sys.executable, "-m", "tests.features.offline.large_join", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    # In memory it is 600.
    assert int(done.stdout) < 300
