"""Times: UTC, int64 microseconds since the Unix epoch, everywhere (CONTRACTS §1)."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_US = {"us": 1, "ms": 1000, "s": SECOND_US, "min": MINUTE_US, "h": HOUR_US, "d": DAY_US}
_DURATION = re.compile(r"(\d+)(us|ms|s|min|h|d)")


def parse_duration_us(text: str | timedelta) -> int:
    """Return the microseconds of a duration such as `"90s"`, `"5min"`, `"7d"` or a timedelta.

    Raises ValueError that shows the accepted units.
    """
    if isinstance(text, timedelta):
        return text // timedelta(microseconds=1)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a duration such as '90s', '5min', '24h' or '7d', got {text!r}")
    return int(match[1]) * _UNITS_US[match[2]]


def to_us(when: datetime) -> int:
    """Return the microseconds of an aware datetime. Raises ValueError for a naive one."""
    if when.tzinfo is None:
        raise ValueError(f"expected a time with a time zone, got {when.isoformat()} without one")
    return (when - _EPOCH) // timedelta(microseconds=1)


def from_us(time_us: int) -> datetime:
    """Return the aware UTC datetime of microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=time_us)


def utc_date(time_us: int) -> date:
    """Return the UTC calendar day that holds `time_us`."""
    return from_us(time_us).date()


def format_us(time_us: int) -> str:
    """Return ISO 8601 text with a trailing Z."""
    return from_us(time_us).isoformat().replace("+00:00", "Z")
