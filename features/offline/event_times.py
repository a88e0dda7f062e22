"""The times of a team's own files and tables, as UTC microseconds.

A local time that a clock change makes ambiguous is the later of the two: an event may then seem to
be known an hour too late, never too early, so no training row sees its future.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from features.arrow import Arrow, microseconds
from headrace.errors import InvalidArgumentError

# After the time of a day, as a date ends like an offset.
_HAS_ZONE = r"\d{2}:\d{2}.*([zZ]|[+-]\d{2}(:?\d{2})?)$|T\d{2}([zZ]|[+-]\d{2}(:?\d{2})?)$"
_FINER_THAN_US = r"(\.\d{6})\d+"


def utc_us(column: Arrow, time_zone: str | None, name: str, where: str) -> Arrow:
    """Return a chunked array of times as int64 UTC microseconds; nulls stay nulls.

    column: integers (UTC microseconds), timestamps, dates, or ISO 8601 text. Those without a zone
    are local times of `time_zone`. Raises InvalidArgumentError where that is None, and for a local
    time that does not exist, for what cannot be read as a time, and for other types.
    """
    kind = column.type
    if pa.types.is_null(kind) or pa.types.is_integer(kind):
        return _checked_cast(column, pa.int64(), name, where)
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us"))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _from_text(column, time_zone, name, where)
    elif not pa.types.is_timestamp(kind):
        raise InvalidArgumentError(
            f"column {name!r} holds no times",
            where=where,
            expected="integers (UTC microseconds), timestamps, or ISO 8601 text",
            got=str(kind),
        )
    if column.type.tz is not None:
        return microseconds(column)
    return _of_zone(column, time_zone, name, where)


def _of_zone(column: Arrow, time_zone: str | None, name: str, where: str) -> Arrow:
    """Return naive timestamps as UTC microseconds."""
    if column.null_count == len(column):
        return column.cast(pa.int64())
    if time_zone is None:
        raise InvalidArgumentError(
            f"column {name!r} has times without a time zone",
            where=where,
            expected="times with a zone, or a location that says which they are of",
            got=pc.drop_null(column)[0].as_py(),
            mend="say time_zone='UTC', or an IANA name such as 'Europe/Berlin'",
        )
    try:
        aware = pc.assume_timezone(column, time_zone, ambiguous="latest", nonexistent="raise")
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError(
            f"column {name!r} holds a local time that a clock change skips",
            where=where,
            expected=f"times that exist in {time_zone}",
            got=str(error).splitlines()[0],
            mend="mend the data, or name the zone that its clock is of",
        ) from error
    return microseconds(aware)


def _from_text(column: Arrow, time_zone: str | None, name: str, where: str) -> Arrow:
    text = pc.replace_substring_regex(pc.utf8_trim_whitespace(column), _FINER_THAN_US, r"\1")
    integers = pc.match_substring_regex(text, r"^-?\d+$")
    zoned = pc.match_substring_regex(text, _HAS_ZONE)
    nothing = pa.scalar(None, text.type)
    as_integer = pc.if_else(integers, text, nothing)
    as_zoned = pc.if_else(zoned, text, nothing)
    as_local = pc.if_else(pc.or_(integers, zoned), nothing, text)
    return pc.coalesce(
        _checked_cast(as_integer, pa.int64(), name, where),
        _checked_cast(as_zoned, pa.timestamp("us", "UTC"), name, where).cast(pa.int64()),
        _of_zone(_checked_cast(as_local, pa.timestamp("us"), name, where), time_zone, name, where),
    )


def _checked_cast(column: Arrow, kind: pa.DataType, name: str, where: str) -> Arrow:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError(
            f"column {name!r} holds what is no time",
            where=where,
            expected="UTC microseconds, or ISO 8601 such as '2026-01-31T08:00:00Z'",
            got=str(error).splitlines()[0],
        ) from error
