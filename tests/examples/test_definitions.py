"""The flights' features: against a count by hand, and with the future shuffled."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features import FeatureStatus, load_definitions
from features.offline import OfflineStore, get_historical_features
from headrace.times import HOUR_US, MINUTE_US, from_us, to_us
from trainer import load_project

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
NEW_YORK = ZoneInfo("America/New_York")
# Three weeks around the change of clocks.
FIRST, CUT, LAST = (datetime(2013, 3, day, tzinfo=NEW_YORK) for day in (1, 15, 22))
KEYS = {"plane": "tailnum", "carrier": "carrier", "origin": "origin", "route": "route"}
SOURCES = {"departures": "dep_delay", "landings": "arr_delay"}
WINDOWS_US = {
    "1h": (HOUR_US, MINUTE_US),
    "6h": (6 * HOUR_US, 5 * MINUTE_US),
    "24h": (24 * HOUR_US, HOUR_US),
    "7d": (7 * 24 * HOUR_US, HOUR_US),
}


def between(table: pa.Table, first: datetime, last: datetime) -> pa.Table:
    times = table["event_time"]
    return table.filter(pc.and_(pc.greater_equal(times, to_us(first)), pc.less(times, to_us(last))))


@pytest.fixture(scope="module")
def definitions():
    return load_definitions(FLIGHTS / "definitions.py")


@pytest.fixture(scope="module")
def service(definitions):
    return definitions.service("flight_delay")


@pytest.fixture(scope="module")
def flights():
    return load_project(FLIGHTS).data.load()


@pytest.fixture(scope="module")
def events(flights):
    return {
        name: between(table, FIRST, LAST) if name in {*SOURCES, "weather"} else table
        for name, table in flights.events.items()
    }


@pytest.fixture(scope="module")
def spine(flights):
    return between(flights.spine, datetime(2013, 3, 9, tzinfo=NEW_YORK), CUT)


def joined(root: Path, events, spine, service):
    store = OfflineStore(root)
    for name, table in events.items():
        store.append(name, table)
    return get_historical_features(spine, service, store)


@pytest.fixture(scope="module")
def batch(tmp_path_factory, events, spine, service):
    return joined(tmp_path_factory.mktemp("offline"), events, spine, service)


def test_the_service_without_history_is_part_of_the_one_with(definitions, service):
    plain = definitions.service("flight_schedule_weather")
    assert set(plain.columns) < set(service.columns)
    history = set(service.columns) - set(plain.columns)
    assert {name.partition(":")[0] for name in history} == {
        *(f"{entity}_{source}" for entity in KEYS for source in SOURCES),
        "last_departure",
        "last_leg",
        "turnaround",
    }


def test_every_stream_and_table_has_its_events(definitions, flights):
    assert set(flights.events) == set(definitions.sources) - {"schedule"}


@pytest.mark.parametrize("entity", KEYS)
@pytest.mark.parametrize("source", SOURCES)
def test_windows_are_as_counted_by_hand(batch, events, spine, entity, source):
    """Count, mean and max of what happened in [⌊t − w⌋hop, t), event by event."""
    key, column = KEYS[entity], SOURCES[source]
    history, asked = events[source].to_pandas(), spine.to_pandas()
    by_key = dict(iter(history.groupby(key)))
    found = {
        name: batch.column(f"{entity}_{source}:{column}_{name}")
        for name in (f"{fn}_{w}" for fn in ("count", "mean", "max") for w in WINDOWS_US)
    }
    seen = 0
    for row in range(0, len(asked), 211):
        # A plane that was never seen has an empty window.
        own, t = by_key.get(asked[key][row], history[:0]), asked.event_time[row]
        for window, (length, hop) in WINDOWS_US.items():
            inside = (own.event_time >= (t - length) // hop * hop) & (own.event_time < t)
            delays = own[column][inside]
            seen += len(delays) > 0
            assert found[f"count_{window}"].values[row] == len(delays)
            assert found[f"mean_{window}"].mask[row] == found[f"max_{window}"].mask[row]
            assert found[f"mean_{window}"].mask[row] == (len(delays) > 0)
            if len(delays):
                assert found[f"mean_{window}"].values[row] == pytest.approx(delays.mean())
                assert found[f"max_{window}"].values[row] == delays.max()
    assert seen > 20


def test_an_event_exactly_at_the_decision_is_not_in_its_windows(batch, events, spine):
    """A quarter of the decisions have one: a departure from their origin at that very minute."""
    departures = events["departures"].to_pandas()
    at_once = departures.groupby(["origin", "event_time"]).size()
    asked = spine.to_pandas()
    index = pd.MultiIndex.from_arrays([asked.origin, asked.event_time])
    here = at_once.reindex(index).fillna(0).to_numpy()
    assert (here > 0).mean() > 0.2
    counts = batch.column("origin_departures:dep_delay_count_1h").values
    for row in np.flatnonzero(here)[::301]:
        own = departures[departures.origin == asked.origin[row]]
        t = asked.event_time[row]
        before = ((own.event_time >= t - HOUR_US) & (own.event_time < t)).sum()
        assert counts[row] == before


def test_last_known_legs_and_weather(batch, events, spine):
    """As pandas joins them: the last row at or before the decision."""
    asked = spine.to_pandas()
    for view, source, key, fields, ttl in (
        ("last_leg", "landings", "tailnum", ["dep_delay", "arr_delay"], None),
        ("last_departure", "departures", "tailnum", ["dep_delay"], None),
        ("weather", "weather", "origin", ["temp", "visib", "wind_gust"], pd.Timedelta(hours=3)),
    ):
        history = events[source].to_pandas().dropna(subset=[key])
        expected = pd.merge_asof(
            asked[["event_time", key]],
            history[["event_time", key, *fields]],
            on="event_time",
            by=key,
            tolerance=None if ttl is None else ttl // pd.Timedelta(microseconds=1),
        )
        for field in fields:
            column = batch.column(f"{view}:{field}")
            assert np.array_equal(column.mask, expected[field].notna())
            there = column.mask
            assert there.any()
            assert np.array_equal(column.values[there], expected[field].to_numpy()[there])


def test_on_demand_features_are_what_clocks_and_calendars_say(batch, events, spine):
    asked, landings = spine.to_pandas(), events["landings"].to_pandas()
    built = events["planes"].to_pandas().set_index("tailnum").built
    distance = events["routes"].to_pandas().set_index("route").distance
    landed = pd.merge_asof(
        asked[["event_time", "tailnum"]],
        landings[["event_time", "tailnum", "landed"]],
        on="event_time",
        by="tailnum",
    ).landed
    column = {
        name: batch.column(name)
        for name in batch.service.columns
        if name.startswith(("schedule:", "turnaround:"))
    }
    for row in range(0, len(asked), 97):
        departure = int(asked.scheduled_departure[row])
        local = from_us(departure).astimezone(NEW_YORK)
        assert column["schedule:hour"].values[row] == local.hour
        assert column["schedule:weekday"].values[row] == local.weekday()
        minutes = (asked.scheduled_arrival[row] - departure) / MINUTE_US
        assert column["schedule:duration"].values[row] == minutes
        miles = distance[asked.route[row]]
        bucket = sum(miles >= edge for edge in (500, 1000, 1500, 2500))
        assert column["schedule:distance_bucket"].values[row] == bucket
        year = built.get(asked.tailnum[row])
        age = column["schedule:plane_age"]
        assert age.mask[row] == pd.notna(year)
        if pd.notna(year):
            assert age.values[row] == 2013 - year
        since = column["turnaround:since_landing"]
        assert since.mask[row] == pd.notna(landed[row])
        if pd.notna(landed[row]):
            assert since.values[row] == pytest.approx((departure - landed[row]) / HOUR_US)


def test_shuffling_the_future_changes_nothing(batch, events, spine, service, tmp_path):
    """Delays, planes, carriers, weather of all that was known after the last decision: mixed up."""
    last = int(spine["event_time"].to_numpy().max())
    rng = np.random.default_rng(1)
    shuffled, changed = dict(events), 0
    for name in (*SOURCES, "weather"):
        table = events[name]
        later = np.flatnonzero(table["event_time"].to_numpy() > last)
        order = np.arange(table.num_rows)
        order[later] = rng.permutation(later)
        mixed = table.take(order)
        for time in ("event_time", "created_time"):
            at = table.column_names.index(time)
            mixed = mixed.set_column(at, time, table[time])
        shuffled[name] = mixed
        changed += len(later)
    assert changed > 10_000
    again = joined(tmp_path, shuffled, spine, service)
    assert np.array_equal(again.words, batch.words)
    assert np.array_equal(again.status, batch.status)


def test_without_any_future_nothing_changes_for_the_earlier_half(
    batch, events, spine, service, tmp_path
):
    """Every decision of the first half, with history cut right after the last of them."""
    half = spine.slice(0, spine.num_rows // 2)
    last = int(half["event_time"].to_numpy().max())
    past = {
        name: table.filter(pc.less_equal(table["created_time"], last))
        for name, table in events.items()
    }
    again = joined(tmp_path, past, half, service)
    assert np.array_equal(again.words, batch.words[: half.num_rows])
    assert np.array_equal(again.status, batch.status[: half.num_rows])


def test_shuffling_the_past_does_change_it(batch, events, spine, service, tmp_path):
    """So that the test above can fail."""
    table = events["departures"]
    order = np.random.default_rng(2).permutation(table.num_rows)
    at = table.column_names.index("dep_delay")
    mixed = table.set_column(at, "dep_delay", table["dep_delay"].take(order))
    again = joined(tmp_path, events | {"departures": mixed}, spine, service)
    assert not np.array_equal(again.words, batch.words)


def test_most_features_of_most_flights_are_there(batch):
    present = (batch.status == FeatureStatus.PRESENT).mean(axis=0)
    named = dict(zip(batch.service.columns, present, strict=True))
    assert named["origin_departures:dep_delay_count_1h"] > 0.99
    assert named["schedule:hour"] == 1
    assert named["plane_facts:seats"] > 0.8
    assert not (batch.status == FeatureStatus.UNAVAILABLE).any()
