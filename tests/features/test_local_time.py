"""Local time: against zoneinfo, one time at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import local_hour, local_offset_us, local_weekday
from headrace.errors import InvalidArgumentError
from headrace.times import to_us

ZONES = [
    "America/New_York", "America/Puerto_Rico", "America/Phoenix", "Pacific/Honolulu",
    "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "Europe/London",
    "UTC",
]  # fmt: skip
aware = st.datetimes(min_value=datetime(1890, 1, 1), max_value=datetime(2070, 1, 1))  # noqa: DTZ001


@given(st.lists(aware, min_size=1, max_size=5), st.sampled_from(ZONES))
@settings(deadline=None, max_examples=60)
def test_hours_and_weekdays_are_those_of_zoneinfo(times: list[datetime], zone: str) -> None:
    local = [t.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)) for t in times]
    time_us = np.array([to_us(t.replace(tzinfo=UTC)) for t in times], dtype=np.int64)
    assert local_hour(time_us, zone).tolist() == [t.hour for t in local]
    assert local_weekday(time_us, zone).tolist() == [t.weekday() for t in local]


@pytest.mark.parametrize(
    ("utc", "hour"),
    [
        ("2013-03-10T06:59:59.999999", 1),  # the second before daylight saving begins
        ("2013-03-10T07:00:00", 3),
        ("2013-11-03T05:59:59.999999", 1),
        ("2013-11-03T06:00:00", 1),  # the hour that comes twice
        ("2013-12-31T23:59:59", 18),
        ("2014-01-01T05:00:00", 0),
    ],
)
def test_the_changes_of_new_york(utc: str, hour: int) -> None:
    time_us = np.array([to_us(datetime.fromisoformat(utc).replace(tzinfo=UTC))])
    assert local_hour(time_us, "America/New_York").tolist() == [hour]


def test_no_times_are_no_hours() -> None:
    assert local_hour(np.array([], dtype=np.int64), "UTC").tolist() == []


@pytest.mark.parametrize("zone", ["America/Gotham", "", "../etc/passwd", "/etc/passwd"])
def test_an_unknown_zone_is_named(zone: str) -> None:
    with pytest.raises(InvalidArgumentError, match="unknown time zone"):
        local_hour(np.array([0]), zone)


@pytest.mark.parametrize("time_us", [-(2**63), 2**63 - 1, -62_135_596_800_000_000])
def test_a_time_outside_of_the_calendar_is_named(time_us: int) -> None:
    with pytest.raises(InvalidArgumentError, match="outside of the calendar"):
        local_offset_us(np.array([time_us], dtype=np.int64), "Europe/London")
