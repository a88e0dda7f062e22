"""The features benchmark's parts beside Feast: joins, ingestion, ticks and lookups."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import harness
from benchmarks.common import model
from benchmarks.common.processes import cores
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import (
    bench,
    facts,
    ingest_part,
    join_part,
    joined,
    lookup_part,
    per_key_part,
    released,
    stream,
    world,
)
from benchmarks.features_parts.bench import Bench
from features import definitions_from_source
from features.offline import OfflineStore
from server.pb import headrace_pb2 as pb
from tests.support.rides import compile_windows

SMALL = dataclasses.replace(
    bench.QUICK, runs=2, run_s=0.05, open_runs=1, open_run_s=0.2, spine_rows=400, view_rows=100,
    ingest_runs=1, ingest_events=600,
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(harness, "peer_python", lambda peer: None)
    monkeypatch.setattr(bench, "QUICK", SMALL)
    with bench.prepared(True, cores(), tmp_path) as prepared:
        yield prepared


# Joins


def by_hand(root: Path, kind: str, spine: dict[str, list[int]]) -> list[list[float]]:
    """Every feature of every row of the spine, one row at a time."""
    store = OfflineStore(root / kind)
    rows = {view: store.read(view).to_pylist() for view in joined.VIEWS}
    out = []
    for user, t_us in zip(spine[joined.KEY], spine["event_time"], strict=True):
        found: list[float] = []
        for view in joined.VIEWS:
            known = [
                row
                for row in rows[view]
                if row[joined.KEY] == user and max(row["event_time"], row["created_time"]) <= t_us
            ]
            last = max(known, key=lambda row: row["event_time"], default=None)
            fresh = last is not None and t_us - last["event_time"] <= joined.TTL_US
            found += [last[f] if last is not None and fresh else np.nan for f in joined.FIELDS]
        out.append(found)
    return out


@pytest.mark.parametrize("kind", [joined.PLAIN, joined.LAGGING])
def test_our_side_joins_as_by_hand(tmp_path: Path, kind: str) -> None:
    joined.write(tmp_path, 60, 40)
    side = harness.Side(sys.executable, join_part.MODULES[join_part.OURS], "x", str(tmp_path))
    said = side.ask(kind, str(tmp_path / "found.npy"))
    side.close()
    assert said["cpu_s"] > 0
    spine = pq.read_table(tmp_path / "spine.parquet").to_pydict()
    wanted = np.array(by_hand(tmp_path, kind, spine))
    assert np.array_equal(np.load(tmp_path / "found.npy"), wanted, equal_nan=True)
    assert 0 < np.isnan(wanted).mean() < 1


def test_created_times_change_what_is_joined(tmp_path: Path) -> None:
    joined.write(tmp_path, 10, 200)
    plain, lagging = (
        OfflineStore(tmp_path / kind).read(joined.VIEWS[0])
        for kind in (joined.PLAIN, joined.LAGGING)
    )
    assert plain["event_time"].equals(lagging["event_time"])
    assert plain["created_time"].equals(plain["event_time"])
    lag_us = np.subtract(lagging["created_time"], lagging["event_time"])
    assert 0 <= lag_us.min() < lag_us.max() < joined.LAG_US


class Told:
    """A side that writes what it is told to find."""

    def __init__(self, found: list[list[float]]) -> None:
        self._found = found

    def ask(self, _kind: str, file: str) -> dict[str, float]:
        np.save(file, np.array(self._found))
        return {"cpu_s": 1.0}


def test_a_peer_that_joins_otherwise_is_missing(run: Bench, tmp_path: Path) -> None:
    ours = [[1.0, np.nan], [2.0, 3.0]]
    sides = {
        join_part.OURS: Told(ours),
        "DuckDB": Told([[1.0, np.nan], [2.0, 3.5]]),
        "Polars": Told(ours),
    }
    assert join_part._agreeing(run, sides, tmp_path) == {"DuckDB"}  # type: ignore[arg-type]
    assert any("DuckDB joins otherwise" in note for note in run.notes)
    with pytest.raises(InvalidRun, match="nothing to compare"):
        join_part._agreeing(run, {join_part.OURS: Told([[np.nan]])}, tmp_path)  # type: ignore[dict-item]


def test_joins_without_peers_are_still_measured(run: Bench) -> None:
    figures = list(join_part.measure(run))
    assert [(each.peer, each.peer_runs) for each in figures] == [("DuckDB", None), ("Polars", None)]
    assert all(len(each.runs) == 2 for each in figures)
    assert any("cannot install" in note for note in run.notes)


# Ingestion


def test_every_sum_of_the_stream_is_exact() -> None:
    columns = stream.events(2_000)
    for name in ("amount", "items", "score"):
        assert np.array_equal(columns[name], np.round(columns[name]))
    assert len(definitions_from_source(stream.DEFINITIONS).service(stream.SERVICE).columns) == 10
    batches = list(stream.batches(columns, 300))
    assert [len(batch) for batch in batches] == [300] * 6 + [200]
    assert np.array_equal(
        np.concatenate([batch.event_times_us for batch in batches]), columns["event_time"]
    )


@pytest.mark.slow
def test_what_is_ingested_is_held_against_its_history(run: Bench, tmp_path: Path) -> None:
    compile_windows()
    figures = list(ingest_part.measure(run))
    assert [(each.limit, each.higher_is_better) for each in figures] == [
        (ingest_part.EVENTS_S_MIN, True),
        (ingest_part.EVENTS_CPU_S_MIN, True),
    ]
    assert all(len(each.runs) == 1 for each in figures)
    # Rows that lack an event, or have one that history lacks, are found.
    store = world.Store(run.store_cpu, tmp_path / "other", world.DURABLE)
    side = run.side(sys.executable, ingest_part.MODULE, "ingester", "")
    try:
        columns = stream.events(400)
        last = asyncio.run(ingest_part.pushed(store.url, columns))
        assert side.ask(store.url, 1, last)["events"] == 400
        ingest_part.check(store.url, columns, tmp_path / "same", last)
        changed = columns | {"amount": columns["amount"] + 1.0}
        with pytest.raises(InvalidRun, match="differ"):
            ingest_part.check(store.url, changed, tmp_path / "changed", last)
    finally:
        store.stop()


# Ticks


def test_redis_benchmark_is_read_and_its_silence_is_invalid() -> None:
    said = '"test","rps","avg_latency_ms"\n"MGET a b","12345.67","0.05"\n'
    assert per_key_part.read_csv("WARNING: no config\n" + said) == 12345.67
    for text in ("", "Could not connect to Valkey", '"test","rps"\n', '"test","rps"\n"MGET","x"\n'):
        with pytest.raises(InvalidRun, match="redis-benchmark says"):
            per_key_part.read_csv(text)


def test_copies_have_names_of_one_length() -> None:
    names = {per_key_part.name_of(place, 30) for place in range(300)}
    assert len(names) == 300
    assert {len(name) for name in names} == {30}


@pytest.mark.slow
def test_ticks_are_read_both_ways(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_key_part.shutil, "which", lambda tool: None)
    monkeypatch.setattr(per_key_part, "TICKS", (4,))
    figures = list(per_key_part.measure(run))
    assert [each.peer_runs for each in figures] == [None, None]
    assert all(min(each.runs) > 0 for each in figures)
    assert any("redis-tools" in note for note in run.notes)
    assert run.checked


# Lookups


def test_answers_of_both_kinds_end_with_what_is_compared() -> None:
    predict, infer = lookup_part.kinds()
    assert len(predict.messages) == len(infer.messages) == lookup_part.BODIES
    value = np.float32(0.625)
    reply = pb.PredictReply(
        model=released.MODEL, prediction_ids=[b"i" * 16], versions=["v"], arms=["a"],
        outputs=[value], output_width=1, plan=1,
    ).SerializeToString()  # fmt: skip
    assert predict.value(reply) == value
    assert reply[-predict.compared_bytes :][:4] == value.tobytes()
    # Both ask for the same rows.
    row = np.frombuffer(infer.messages[3][-4 * facts.WIDTHS[0] :], np.float32)
    (user,) = facts.calls_of(lookup_part.BODIES, 1)[3]
    assert facts.wrong(row.astype(np.float64)[None], [user], facts.WIDTHS[0])  # rounded
    rounded = facts.values_of(facts.WIDTHS[0])[user - facts.FIRST_ID].astype(np.float32)
    assert np.array_equal(row, rounded)


@pytest.mark.slow
def test_lookups_are_measured_and_checked(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_part, "PEAK_RUN_S", 0.2)
    figures = list(lookup_part.measure(run))
    assert [each.limit for each in figures] == [None, None, 0.4, None, None, None, 0.7, None]
    checked = run.checked
    assert checked > 4 * lookup_part.BODIES
    monkeypatch.setattr(released, "scored", lambda onnx, rows: np.zeros((len(rows), 1)))
    with pytest.raises(InvalidRun, match="fails its first calls"):
        lookup_part._check(run, run.ours(), lookup_part.kinds()[0])
    assert model.GRPC_PATH != lookup_part.PREDICT_PATH
