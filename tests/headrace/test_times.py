"""Times: microseconds in UTC, durations with units."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.times import format_us, from_us, parse_duration_us, to_us, utc_date


@pytest.mark.parametrize(
    ("text", "us"),
    [("7us", 7), ("2ms", 2000), ("90s", 90_000_000), ("5min", 300_000_000), ("1h", 3_600_000_000),
     ("7d", 604_800_000_000), (timedelta(seconds=1.5), 1_500_000)],
)  # fmt: skip
def test_durations(text: str | timedelta, us: int) -> None:
    assert parse_duration_us(text) == us


@pytest.mark.parametrize("text", ["", "5", "5 min", "-1h", "1.5h", "1week"])
def test_a_duration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration_us(text)


@given(st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5))])))
def test_times_survive_the_round_trip(when: datetime) -> None:
    assert from_us(to_us(when)) == when
    assert datetime.fromisoformat(format_us(to_us(when))) == when
    assert utc_date(to_us(when)) == when.astimezone(UTC).date()


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        to_us(datetime(2013, 1, 1))  # noqa: DTZ001


def test_days_before_the_epoch() -> None:
    assert utc_date(-1) == date(1969, 12, 31)
