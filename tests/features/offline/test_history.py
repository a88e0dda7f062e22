"""Training sets: against the plain oracle, against DuckDB, and blind to the future."""

from __future__ import annotations

import random
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from features import CompiledService, FeatureBatch, FeatureStatus, definitions_from_source
from features.offline import OfflineStore, get_historical_features
from features.row import RowCodec, last_known, merge_pile
from features.types import Column
from features.windows.engine import WindowEngine
from features.windows.events import event_words
from headrace.errors import InvalidArgumentError, NotFoundError
from tests.features import oracle
from tests.features.oracle import MINUTE_US, Event
from tests.support.rides import HOUR_US, NOON_US, SOURCE

DEFINITIONS = definitions_from_source(SOURCE)
CITIES = ["Łódź", "York", "1", ""]


def service() -> CompiledService:
    return DEFINITIONS.service(next(iter(DEFINITIONS.services)))


def moment(rng: random.Random) -> int:
    """A time of a busy day: whole minutes often, so that events meet queries and hops."""
    time_us = NOON_US + rng.randrange(-12 * HOUR_US, 12 * HOUR_US)
    return time_us // MINUTE_US * MINUTE_US if rng.random() < 0.6 else time_us


def ride_events(rng: random.Random, count: int) -> list[Event]:
    events = []
    for sequence in range(count):
        time_us = moment(rng)
        late_us = rng.choice([0, 0, 0, MINUTE_US, rng.randrange(3 * HOUR_US), -MINUTE_US, -HOUR_US])
        values = {
            "driver_id": rng.choice([1, 2, 23, None]),
            "city": rng.choice(CITIES),
            "minutes": rng.choice([None, rng.randrange(-5, 90)]),
            "fare": rng.choice([None, rng.randrange(400) / 8]),
            "night": rng.choice([None, True, False]),
        }
        events.append(Event(time_us, time_us + late_us, sequence, values))
    return events


def shift_events(rng: random.Random, count: int) -> list[Event]:
    events = []
    for sequence in range(count):
        time_us = moment(rng) - rng.choice([0, 20 * HOUR_US])
        values = {
            "driver_id": rng.choice([1, 2, 23]),
            "vehicle": rng.choice(["van", "ü", None]),
            "seats": rng.choice([None, 4, 8]),
            "rating": rng.choice([None, 4.5, 3.25]),
            "began": time_us,
        }
        late_us = rng.choice([0, 0, MINUTE_US, HOUR_US])
        events.append(Event(time_us, time_us + late_us, sequence, values))
    return events


def arrow(events: list[Event], names: list[str]) -> pa.Table:
    columns: dict[str, object] = {n: pa.array([e.values[n] for e in events]) for n in names}
    columns["event_time"] = pa.array([e.event_time_us for e in events], type=pa.int64())
    columns["created_time"] = pa.array([e.created_time_us for e in events], type=pa.int64())
    return pa.table(columns)


def fill(root: Path, rides: list[Event], shifts: list[Event]) -> OfflineStore:
    store = OfflineStore(root)
    store.append("rides", arrow(rides, ["driver_id", "city", "minutes", "fare", "night"]))
    store.append("shifts", arrow(shifts, ["driver_id", "vehicle", "seats", "rating", "began"]))
    people = {"driver_id": [1, 2], "licensed": [0, 86_400_000_000], "event_time": [0, 0]}
    store.append("people", pa.table(people))
    return store


def spine_rows(rng: random.Random, count: int) -> list[dict[str, object]]:
    return [
        {
            "driver_id": rng.choice(["1", "2", "23", "404", None]),
            "city": rng.choice(CITIES),
            "distance": rng.choice([0.0, 2.5, None]),
            "event_time": moment(rng),
        }
        for _ in range(count)
    ]


def spine_table(rows: list[dict[str, object]]) -> pa.Table:
    types = {"driver_id": pa.string(), "city": pa.string(), "distance": pa.float64()}
    types["event_time"] = pa.int64()
    return pa.table({n: pa.array([row[n] for row in rows], type=t) for n, t in types.items()})


World = tuple[list[Event], list[Event], OfflineStore]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = random.Random(20130315)
    rides, shifts = ride_events(rng, 700), shift_events(rng, 120)
    return rides, shifts, fill(tmp_path_factory.mktemp("offline"), rides, shifts)


def same_entity(event: Event, row: dict[str, object], keys: list[str]) -> bool:
    return all(
        event.values[k] is not None and row[k] is not None and str(event.values[k]) == row[k]
        for k in keys
    )


def cell(batch: FeatureBatch, row: int, name: str) -> tuple[int, int]:
    i = batch.service.column_index(name)
    return int(batch.status[row, i]), int(batch.words[row, i])


def test_every_window_and_value_is_the_oracle_s(world: World) -> None:
    rides, shifts, store = world
    rows = spine_rows(random.Random(1), 250)
    batch = get_historical_features(spine_table(rows), service(), store)
    assert len(batch) == len(rows)
    checked = 0
    for view in DEFINITIONS.stored_views.values():
        if view.source.name == "people":
            continue
        events = rides if view.source.name == "rides" else shifts
        for i, row in enumerate(rows):
            keys = view.entity.join_keys
            mine = [e for e in events if same_entity(e, row, keys)]
            for name, wanted in wanted_cells(view, mine, row, keys).items():
                if f"{view.name}:{name}" in batch.service.columns:
                    assert cell(batch, i, f"{view.name}:{name}") == wanted, (view.name, name, row)
                    checked += 1
    assert checked > 250 * 10


def wanted_cells(view, mine, row, keys):  # type: ignore[no-untyped-def]
    names = list(view.feature_dtypes)
    if any(row[k] is None for k in keys):
        return dict.fromkeys(names, (FeatureStatus.NOT_FOUND, 0))
    t_us = row["event_time"]
    if hasattr(view, "aggregations"):
        values = oracle.windows(view, mine, t_us)
    else:
        last = oracle.last_known(mine, t_us, view.ttl_us)
        if not isinstance(last, Event):
            absent = {"not_found": FeatureStatus.NOT_FOUND, "expired": FeatureStatus.EXPIRED}[last]
            return dict.fromkeys(names, (absent, 0))
        values = [last.values[name] for name in names]
    return {
        name: (FeatureStatus.NULL, 0)
        if value is None
        else (FeatureStatus.PRESENT, 0 if isinstance(value, str) else oracle.word(value))
        for name, value in zip(names, values, strict=True)
    }


def test_integer_windows_are_those_of_duckdb(world: World) -> None:
    _, _, store = world
    rows = [r for r in spine_rows(random.Random(2), 200) if r["driver_id"] is not None]
    spine = spine_table(rows)
    batch = get_historical_features(spine, service(), store)
    events = store.read("rides")  # noqa: F841 - DuckDB finds it by its name
    numbered = spine.append_column("row", pa.array(range(len(rows))))  # noqa: F841
    for window, hop in (("1h", 1), ("6h", 5)):
        length_us = int(window[:-1]) * HOUR_US
        hop_us = hop * MINUTE_US
        found = duckdb.sql(f"""
            SELECT count(minutes), sum(minutes)::BIGINT, avg(minutes), min(minutes), max(minutes)
            FROM numbered s LEFT JOIN events e
              ON e.driver_id::VARCHAR = s.driver_id
             AND e.event_time >= (s.event_time - {length_us}) // {hop_us} * {hop_us}
             AND e.event_time < s.event_time AND e.created_time <= s.event_time
             AND e.event_time <= e.created_time + {5 * MINUTE_US}
            GROUP BY s.row ORDER BY s.row
        """).fetchall()
        for i, (count, total, mean, low, high) in enumerate(found):
            wanted = {"count": count, "sum": total, "mean": mean, "min": low, "max": high}
            for function, value in wanted.items():
                status, word = cell(batch, i, f"driver_rides:minutes_{function}_{window}")
                assert status == (FeatureStatus.NULL if value is None else FeatureStatus.PRESENT)
                assert value is None or word == oracle.word(value)


def test_the_future_changes_nothing(world: World, tmp_path: Path) -> None:
    rides, shifts, store = world
    spine = spine_table(spine_rows(random.Random(3), 150))
    packed = get_historical_features(spine, service(), store).pack()
    times = spine["event_time"].to_pylist()
    changed = 0
    for number, cut_us in enumerate(sorted(times)[10::35]):
        rng = random.Random(number)
        altered = fill(
            tmp_path / str(number), alter(rides, cut_us, rng), alter(shifts, cut_us, rng)
        )
        again = get_historical_features(spine, service(), altered).pack()
        for t, before, after in zip(times, packed, again, strict=True):
            if t <= cut_us:
                assert after == before
            changed += after != before
    assert changed > 100, "the altered future was seen by nobody: the test proves nothing"


def alter(events: list[Event], cut_us: int, rng: random.Random) -> list[Event]:
    """What was known at the cut stays; the rest is shuffled, doubled or dropped."""
    past = [e for e in events if max(e.event_time_us, e.created_time_us) <= cut_us]
    future = [e for e in events if max(e.event_time_us, e.created_time_us) > cut_us]
    values = [e.values for e in future]
    rng.shuffle(values)
    swapped = [
        Event(e.event_time_us, e.created_time_us, e.sequence, v)
        for e, v in zip(future, values, strict=True)
    ]
    return past + rng.choices(swapped, k=len(swapped))


def test_a_stream_read_at_the_same_times_gives_the_same_bits(world: World) -> None:
    rides, shifts, store = world
    rows = sorted(spine_rows(random.Random(4), 120), key=lambda row: int(str(row["event_time"])))
    packed = get_historical_features(spine_table(rows), service(), store).pack()
    streams = {"rides": by_arrival(rides), "shifts": by_arrival(shifts)}
    people = [Event(0, 0, 0, {"driver_id": 1, "licensed": 0})]
    people.append(Event(0, 0, 1, {"driver_id": 2, "licensed": 86_400_000_000}))
    streams["people"] = people
    states: States = {}
    for row, wanted in zip(rows, packed, strict=True):
        t_us = int(str(row["event_time"]))
        for name, stream in streams.items():
            while stream and stream[0].created_time_us <= t_us:
                push(states, name, stream.pop(0))
        assert read(states, row, t_us).pack() == [wanted]


def by_arrival(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda e: e.arrival)


ENGINES = {
    name: WindowEngine(view)
    for name, view in DEFINITIONS.stored_views.items()
    if hasattr(view, "aggregations")
}


def one_row(names, dtypes, values):  # type: ignore[no-untyped-def]
    table = {}
    for name in names:
        value, numpy = values[name], dtypes[name].numpy
        blank = "" if numpy.kind == "O" else 0
        data = np.array([blank if value is None else value], dtype=numpy)
        table[name] = Column(data, np.array([value is not None]))
    return table


States = dict[tuple[object, ...], bytes]


def push(states: States, source: str, event: Event) -> None:
    times = [np.array([t]) for t in (event.event_time_us, event.created_time_us, event.sequence)]
    for name, view in DEFINITIONS.stored_views.items():
        key = (name, *(str(event.values.get(k)) for k in view.entity.join_keys))
        if view.source.name != source or "None" in key:
            continue
        if name in ENGINES:
            table = one_row(view.columns, view.source.dtypes, event.values)
            words, valid = event_words(view, table, 1)
            (records,), _ = ENGINES[name].records(
                np.zeros(1, dtype=np.int64), 1, times[0], times[1], words, valid
            )
            states[key] = states.get(key, b"") + records
        else:
            table = one_row(view.fields, view.source.dtypes, event.values)
            rows = RowCodec.of_view(view).pack(table, *times)
            states[key], _ = merge_pile(states.get(key), rows)


def read(states: States, row: dict[str, object], t_us: int) -> FeatureBatch:
    assembly = service().start(1)
    for one in service().views:
        key = (one.view.name, *(str(row[k]) for k in one.view.entity.join_keys))
        if "None" in key:
            continue
        if one.view.name in ENGINES:
            ENGINES[one.view.name].query_into(
                [states.get(key)], np.array([t_us]), assembly.words, assembly.status, one.targets
            )
        else:
            found, status = last_known([states.get(key)], [t_us], one.view.ttl_us)
            assembly.put_rows(one, RowCodec.of_view(one.view).unpack(found), status)
    distance = row["distance"]
    column = Column(np.array([distance or 0.0]), np.array([distance is not None]))
    return assembly.finish(service().check_request({"distance": column}))


def test_duplicate_and_unsorted_rows_keep_their_place(world: World) -> None:
    _, _, store = world
    rows = spine_rows(random.Random(5), 20)
    packed = get_historical_features(spine_table(rows), service(), store).pack()
    order = [3, 3, 19, 0, 7, 3]
    again = get_historical_features(spine_table([rows[i] for i in order]), service(), store)
    assert again.pack() == [packed[i] for i in order]


def test_an_empty_spine_and_an_empty_history_are_fine(world: World, tmp_path: Path) -> None:
    _, _, store = world
    assert len(get_historical_features(spine_table([]), service(), store)) == 0
    rows = [{"driver_id": "1", "city": "York", "distance": 1.0, "event_time": NOON_US}]
    batch = get_historical_features(spine_table(rows), service(), empty_store(tmp_path))
    assert cell(batch, 0, "driver_rides:minutes_count_1h") == (FeatureStatus.PRESENT, 0)
    assert cell(batch, 0, "driver_rides:minutes_sum_1h") == (FeatureStatus.NULL, 0)
    assert cell(batch, 0, "last_shift:seats") == (FeatureStatus.NOT_FOUND, 0)


def empty_store(root: Path) -> OfflineStore:
    store = OfflineStore(root)
    for name, source in DEFINITIONS.sources.items():
        columns = {f: pa.array([], type=pa.null()) for f in source.dtypes}
        store.append(name, pa.table({**columns, "event_time": pa.array([], type=pa.int64())}))
    return store


def test_progress_names_each_view(world: World) -> None:
    _, _, store = world
    told: list[tuple[str, float]] = []
    rows = spine_table(spine_rows(random.Random(6), 3))
    get_historical_features(rows, service(), store, lambda name, share: told.append((name, share)))
    assert [name for name, _ in told] == [*(v.view.name for v in service().views), "on-demand"]
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1.0


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("event_time", "spine: column 'event_time' is missing"),
        ("distance", "spine: column 'distance' is missing"),
        ("driver_id", "spine: column 'driver_id' is missing"),
    ],
)
def test_a_missing_column_of_the_spine_is_named(world: World, column: str, message: str) -> None:
    _, _, store = world
    spine = spine_table(spine_rows(random.Random(7), 3)).drop_columns([column])
    with pytest.raises(InvalidArgumentError, match=message):
        get_historical_features(spine, service(), store)


def test_a_wrong_type_and_a_missing_history_are_named(world: World, tmp_path: Path) -> None:
    _, _, store = world
    spine = spine_table(spine_rows(random.Random(8), 3))
    text = spine.set_column(2, "distance", pa.array(["far"] * 3))
    with pytest.raises(InvalidArgumentError, match=r"'distance' has a wrong type.*float64.*string"):
        get_historical_features(text, service(), store)
    with pytest.raises(NotFoundError, match="source 'rides' has no history"):
        get_historical_features(spine, service(), OfflineStore(tmp_path))
