"""Local hour and weekday of UTC times, vectorised.

The offsets of a zone come from the IANA data, found once per zone and year: `zoneinfo` answers one
time at a time, a training set asks for hundreds of thousands.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidArgumentError
from headrace.times import DAY_US, HOUR_US, SECOND_US, from_us, to_us

# The years that datetime can tell, less one at each end for the offset.
_YEAR_MIN, _YEAR_MAX = 2, 9998
# 1 January 1970 was a Thursday: Monday is 0.
_EPOCH_WEEKDAY = 3


def local_offset_us(time_us: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Return the offset from UTC at each time: local = UTC + offset. int64[n] microseconds.

    Raises InvalidArgumentError for an unknown zone and for times outside of the years 2 to 9998.
    """
    times = np.asarray(time_us, dtype=np.int64)
    years = times.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970
    out = np.empty(times.shape, dtype=np.int64)
    for year in sorted(set(years.tolist())):
        if not _YEAR_MIN <= year <= _YEAR_MAX:
            raise InvalidArgumentError(
                "a time is outside of the calendar",
                where="local time",
                expected=f"a year from {_YEAR_MIN} to {_YEAR_MAX}",
                got=year,
            )
        rows = years == year
        starts, offsets = _year(zone, year)
        out[rows] = offsets[np.searchsorted(starts, times[rows], side="right") - 1]
    return out


def local_hour(time_us: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Return the local hour of the day, 0 to 23. Raises as `local_offset_us` does."""
    local = np.asarray(time_us, dtype=np.int64) + local_offset_us(time_us, zone)
    return local // HOUR_US % 24


def local_weekday(time_us: NDArray[np.int64], zone: str) -> NDArray[np.int64]:
    """Return the local day of the week, Monday 0 to Sunday 6. Raises as `local_offset_us` does."""
    local = np.asarray(time_us, dtype=np.int64) + local_offset_us(time_us, zone)
    return (local // DAY_US + _EPOCH_WEEKDAY) % 7


@lru_cache(maxsize=1024)
def _year(zone: str, year: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where in a UTC year each offset begins, and the offsets.

    A day has at most one change: no zone of the IANA data has had two.
    """
    info = _zone(zone)
    begin = to_us(datetime(year, 1, 1, tzinfo=UTC))
    end = to_us(datetime(year + 1, 1, 1, tzinfo=UTC))
    starts = [begin]
    offsets = [_offset_us(info, begin)]
    for day in range(begin, end, DAY_US):
        after = min(day + DAY_US, end)
        if _offset_us(info, after) == offsets[-1]:
            continue
        low, high = day, after
        while high - low > SECOND_US:
            middle = low + (high - low) // (2 * SECOND_US) * SECOND_US
            if _offset_us(info, middle) == offsets[-1]:
                low = middle
            else:
                high = middle
        starts.append(high)
        offsets.append(_offset_us(info, high))
    return np.array(starts, dtype=np.int64), np.array(offsets, dtype=np.int64)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidArgumentError(
            f"unknown time zone {name!r}",
            expected="an IANA name such as 'America/New_York'",
            mend="if the name is right, install the time zone data (apt install tzdata)",
        ) from error


def _offset_us(info: ZoneInfo, time_us: int) -> int:
    offset = from_us(time_us).astimezone(info).utcoffset()
    assert offset is not None
    return offset // timedelta(microseconds=1)
