"""Checks that every definition shares: names, durations, and what was meant instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from datetime import timedelta

from headrace.errors import InvalidArgumentError
from headrace.times import parse_duration_us

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
# The store adds these columns to every source.
RESERVED_NAMES = frozenset({"event_time", "created_time", "sequence"})


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return the mend that names the closest known names, or lists them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=2)
    if close:
        return f"did you mean {' or '.join(repr(n) for n in close)}?"
    return f"known: {', '.join(sorted(names)[:20])}" if names else None


def unknown(kind: str, name: object, known: Iterable[str], where: str) -> InvalidArgumentError:
    """Return the error for a name that does not exist."""
    return InvalidArgumentError(
        f"unknown {kind} {name!r}", where=where, mend=did_you_mean(str(name), known)
    )


def check_name(name: object, kind: str) -> None:
    """Raise InvalidArgumentError unless `name` can name a `kind`."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"a name of {kind} is not usable",
            expected="a letter, then up to 63 letters, digits or _",
            got=repr(name),
        )


def check_unique(names: Iterable[str], kind: str, where: str) -> None:
    """Raise InvalidArgumentError when a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidArgumentError(f"{kind} {name!r} is there twice", where=where)
        seen.add(name)


def duration_us(value: str | timedelta, what: str, where: str) -> int:
    """Return the microseconds of a duration. Raises InvalidArgumentError that names `what`."""
    try:
        duration = parse_duration_us(value)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(
            f"{what} is not a duration",
            where=where,
            expected="such as '90s', '5min', '24h' or '7d'",
            got=repr(value),
        ) from error
    if duration < 0:
        raise InvalidArgumentError(
            f"{what} is negative", where=where, expected="0 or more", got=str(value)
        )
    return duration


def duration_label(duration_us: int) -> str:
    """Return the shortest label of a duration, such as `90s` or `7d`."""
    units = (("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000))
    for unit, size_us in (*units, ("ms", 1000)):
        if duration_us and duration_us % size_us == 0:
            return f"{duration_us // size_us}{unit}"
    return f"{duration_us}us"
