"""The features benchmark's own logic: what is asked for, how answers are read, who is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import harness
from benchmarks.common import servers
from benchmarks.common.processes import cores
from benchmarks.features_parts import (
    bench,
    bytes_part,
    calls,
    facts,
    history_ours,
    history_part,
    history_peer,
    inprocess_part,
    ours,
    trips,
    wire_part,
    world,
)
from benchmarks.features_parts.calls import Shape
from features import definitions_from_source
from features.offline import OfflineStore, get_historical_features
from server.pb import headrace_pb2 as pb

SHAPE = Shape(width=50, rows=3, bodies=4)


def test_answers_are_held_against_what_was_written() -> None:
    entities = SHAPE.calls[0]
    values = facts.values_of(50)[np.array(entities) - facts.FIRST_ID]
    assert facts.wrong(values, entities, 50) is None
    assert "values instead of" in str(facts.wrong(values[:2], entities, 50))
    assert "at (0, 0)" in str(facts.wrong(values[::-1], entities, 50))
    values[1, 7] = np.nextafter(values[1, 7], 0)
    assert "at (1, 7)" in str(facts.wrong(values, entities, 50))


def test_calls_are_of_ids_that_are_as_long_and_the_services_hold_the_facts() -> None:
    assert SHAPE.calls == facts.calls_of(4, 3)
    assert all(len(set(entities)) == 3 for entities in SHAPE.calls)
    assert {len(str(each)) for each in facts.ids()} == {4}
    definitions = definitions_from_source(world.source())
    for width in facts.WIDTHS:
        columns = definitions.service(facts.service_of(width)).columns
        assert columns == [f"{facts.view_of(width)}:{name}" for name in facts.names_of(width)]
        batches = world.batches(width, 1)
        assert sum(map(len, batches)) == facts.ENTITIES
        ids = np.concatenate([batch.columns[facts.key_of(width)].values for batch in batches])
        assert ids.tolist() == list(facts.ids())


def test_our_answers_are_read_in_all_forms() -> None:
    values = np.arange(150.0).reshape(3, 50)
    names = [f"{facts.view_of(50)}:{name}" for name in facts.names_of(50)]
    columns = [
        pb.Column(name=name, doubles=pb.DoubleValues(v=column))
        for name, column in zip(names, values.T, strict=True)
    ]
    reply = pb.GetFeaturesReply(features=columns, status=bytes(150))
    form = calls.OurGrpc(SHAPE, packed=False)
    assert form.values(reply.SerializeToString()).tolist() == values.tolist()
    reply.status = bytes([1]) + bytes(149)
    with pytest.raises(ValueError, match="not present"):
        form.values(reply.SerializeToString())
    reply = pb.GetFeaturesReply(packed=values.tobytes(), status=bytes(150))
    form = calls.OurGrpc(SHAPE, packed=True)
    assert form.values(reply.SerializeToString()).tolist() == values.tolist()
    document = {
        "features": dict(zip(names, values.T.tolist(), strict=True)),
        "status": {name: ["present"] * 3 for name in names},
    }
    rest = calls.OurRest(SHAPE)
    assert rest.values(json.dumps(document).encode()).tolist() == values.tolist()
    document["status"][names[4]] = ["present", "null", "present"]
    with pytest.raises(ValueError, match="not present"):
        rest.values(json.dumps(document).encode())


def test_the_ends_of_answers_are_compared_bit_by_bit() -> None:
    replies = [bytes(range(11)), bytes(range(1, 12))]
    ends = calls.endings(replies)
    assert ends.dtype == np.float32
    assert [each.tobytes() for each in ends] == [reply[-8:] for reply in replies]


def test_the_view_of_trips_has_the_features_in_their_order() -> None:
    service = definitions_from_source(trips.definitions()).service("travelled")
    assert service.columns == [f"travel:{name}" for name in trips.feature_names()]
    assert len(trips.AGGREGATES) == 10


@pytest.mark.parametrize("form", history_peer.FORMS)
def test_every_form_of_sql_finds_the_history_that_ours_does(form: str, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    history_ours.write(tmp_path, trips.trips(2_000, 20), trips.spine(400, 20))
    service = definitions_from_source(trips.definitions()).service("travelled")
    spine = pq.read_table(tmp_path / "spine.parquet")
    batch = get_historical_features(spine, service, OfflineStore(tmp_path))
    own = ours.values(batch, history_ours.NAMES)
    assert 0 < np.isnan(own).mean() < 0.5
    found = tmp_path / "found.npy"
    table = history_peer.opened(tmp_path).sql(history_peer.sql(form)).to_arrow_table()
    history_peer.write(table, str(found))
    assert history_part.differing(own, np.load(found)) is None
    every = history_peer.opened(tmp_path).sql(history_peer.sql(form, 4)).to_arrow_table()
    assert every.num_rows == (spine["user_id"].to_numpy() % 4 == 0).sum()


def test_a_history_that_differs_is_told_where() -> None:
    own = np.full((2, 30), np.nan)
    assert history_part.differing(own, own.copy()) is None
    other = own.copy()
    other[1, 3] = 5.0
    assert "amount_count_1h of row 1 is nan, theirs 5.0" in str(history_part.differing(own, other))
    assert "values, theirs" in str(history_part.differing(own, other[:1]))


@pytest.mark.slow
def test_ours_is_measured_where_every_peer_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "peer_python", lambda peer: None)
    monkeypatch.setattr(wire_part, "CONCURRENCY", 2)
    effort = bench.Effort(1, 0.5, 1, 0.1, 1, 2_500, 100, 100, 1, 1_000)
    monkeypatch.setattr(bench, "QUICK", effort)
    parts = (wire_part, inprocess_part, bytes_part, history_part)
    with bench.prepared(True, cores(), tmp_path) as run:
        figures = [figure for part in parts for figure in part.measure(run)]
    assert len(figures) == len(wire_part.TARGETS) + len(inprocess_part.TARGETS) + 2 + 3
    assert all(figure.value > 0 and figure.peer_value is None for figure in figures)
    assert all(figure.met is None for figure in figures if figure.limit is None)
    assert sum("pip cannot install" in note for note in run.notes) == 2
    assert run.checked > SHAPE.bodies
    assert servers.OURS == history_part.OURS
